"""Drift between what a ranker was trained on and what it is fed: `advprior rank drift`."""
