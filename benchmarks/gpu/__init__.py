"""How the GPU does beside the CPU of the same machine: one table, and no table where there is no GPU."""
