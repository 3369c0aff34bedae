"""Users' pasts as arrays: the catalog, histories, targets, counts, and fingerprints of what a prior depends on."""
