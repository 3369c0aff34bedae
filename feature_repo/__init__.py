"""The store's contract: what `advprior` writes and `ranking` reads, shared by both sides.

The two packages never import each other; names, schemas, coded errors and run folders that
both need live here. Feast reads only ``definitions.py`` and ``feature_store.yaml``
(``.feastignore`` hides the rest from ``feast apply``).
"""
