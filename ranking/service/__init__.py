"""The ranking service: one user's row from the online store, a slate of ads in milliseconds.

What the store holds: `views`, `rows`, `reader` and `redis_reader`, `ads`, and what its numbers mean: `catalogs`.
What the ranker reads of it: `plan`, `priors`, `histories`, `matrix`, and `predictor`, which scores.
Which ads are ranked: `candidates`, `towers`, `quota`.
`engine` ranks a `slate`, with `resources` that are renewed under traffic, and says why in `explanations`.
HTTP: `app` puts `routes`, `messages`, `answers`, `problems`, `keys`, `metrics`, `middleware` and the `page` together.
Only `reader`, `redis_reader`, `views` and `rollback` know Feast.
"""
