"""The sequence network: a small causal transformer over a user's events, alone or on an LLM's encodings."""
