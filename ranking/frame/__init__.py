"""The point-in-time training frame: history features, the join, gathered priors, leak checks."""
