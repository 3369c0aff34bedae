"""The sequence network: a small causal transformer over a user's purchases, alone or on an LLM's encodings."""
