"""The LLM: where it comes from, how it is tuned, exported and run."""
