"""All of the LLM that needs torch: where it comes from, how it is tuned and exported."""
