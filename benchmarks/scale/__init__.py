"""What a size costs: each module is one row of `make bench-scale`, with a bound that it must keep."""
