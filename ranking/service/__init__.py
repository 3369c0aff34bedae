"""The ranking service: one user's row from the online store, a slate of ads in milliseconds.

`reader` and `ads` hold what the store says, `catalogs` what its numbers mean, `features` turns both into the
ranker's matrix, `engine` ranks and degrades, `app` speaks HTTP. Only `reader` and `rollback` know Feast.
"""
