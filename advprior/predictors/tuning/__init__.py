"""What several fits share that needs torch: base models, what they make of texts, schedules, tracing."""
