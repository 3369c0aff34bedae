"""Scoring past one machine, on Spark: imported only where it is asked for."""
