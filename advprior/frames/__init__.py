"""The Python interface on data frames, for notebooks; `advprior` exposes it. The commands work on files instead."""
