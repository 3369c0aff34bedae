"""Paired intervals: all arms on the same users, users (and seeds) drawn again with replacement.

Percentile intervals of the bootstrap (Efron 1979). Written here because `ranking`, which has its own for slates, is
never imported by this side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from advprior.store.arrays import Double

CHUNK = 4_000_000  # drawn users held at once
LEVELS = (2.5, 97.5)  # percent


def resample(sums: Sequence[Double], *, replicates: int, seed: int) -> list[Double]:
    """Sums over users drawn with replacement, the same users for all arrays: [U, K] -> [replicates, K] each.

    Examples
    --------
    >>> ones, twos = resample([np.ones((5, 1)), np.full((5, 1), 2.0)], replicates=3, seed=0)
    >>> ones.ravel().tolist(), twos.ravel().tolist()
    ([5.0, 5.0, 5.0], [10.0, 10.0, 10.0])
    """
    rng = np.random.default_rng(seed)
    users = len(sums[0])
    drawn = [np.zeros((replicates, s.shape[1])) for s in sums]
    step = max(CHUNK // max(users, 1), 1)
    for start in range(0, replicates if users else 0, step):
        size = min(step, replicates - start)
        cell = rng.integers(users, size=(size, users)) + np.arange(size)[:, None] * users
        times = np.bincount(cell.ravel(), minlength=size * users).reshape(size, users).astype(np.float64)
        for out, s in zip(drawn, sums, strict=True):
            out[start : start + size] = times @ s
    return drawn


def seed_shares(seeds: int, *, replicates: int, seed: int) -> Double:
    """How much each of an arm's seeds counts in each replicate [replicates, seeds]: drawn with replacement too.

    Arms of equally many seeds are drawn the same ones, so that a blend stays paired with the run inside it.
    """
    if seeds == 1:
        return np.ones((replicates, 1))
    picked = np.random.default_rng([seed, seeds]).integers(seeds, size=(replicates, seeds))
    cell = picked + np.arange(replicates)[:, None] * seeds
    shares: Double = np.bincount(cell.ravel(), minlength=replicates * seeds).reshape(replicates, seeds) / seeds
    return shares


def interval(drawn: Double) -> tuple[Double, Double]:
    """95 % interval of replicates [replicates, K]: low and high [K], NaN where a column has no number."""
    low, high = np.full(drawn.shape[1], np.nan), np.full(drawn.shape[1], np.nan)
    some = ~np.isnan(drawn).all(axis=0)
    if some.any():
        # a segment may have nobody in a few of the draws; only then is the slow way needed
        percentile = np.nanpercentile if np.isnan(drawn[:, some]).any() else np.percentile
        low[some], high[some] = percentile(drawn[:, some], LEVELS, axis=0)
    return low, high
