"""The LLM prior: prompts, the predictor, zero-shot scoring, interests. No torch outside `tuning`."""
