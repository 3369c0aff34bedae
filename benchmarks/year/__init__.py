"""A year in production in some twenty minutes: ``python -m benchmarks.year``, and what ``make bench-year`` prints."""
