"""The sequence network: a small causal transformer over a user's purchases, alone or on top of an LLM's encodings."""
