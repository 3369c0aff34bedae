"""Paired intervals: all arms on the same users, who are drawn again with replacement; seeds by `store.uncertainty`.

Percentile intervals of the bootstrap (Efron 1979), stretched by what training leaves in a difference. Seeds are not
drawn again: among three, drawn with replacement, the variance is a third too small.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from advprior.store.arrays import Double
from advprior.store.uncertainty import spread, with_luck_of

CHUNK = 4_000_000  # drawn users held at once
LEVEL = 0.95


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


def interval(arm: Double, baseline: Double, users: ArrayLike) -> tuple[Double, Double]:
    """95 % interval of each difference of two arms: low and high [K], NaN where a column has no number.

    Seeds of equally many are compared one by one, so that a blend stays paired with the run inside it, and what both
    owe to a seed cancels; of unlike numbers they are independent, and a single one has no spread of its own.

    Parameters
    ----------
    arm, baseline : float array [seeds, 1 + replicates, K]
        Values of each seed on the users as they are, then on those of each replicate.
    users : int array [K]
        Users whose rows each column is told by.
    """
    paired = len(arm) == len(baseline) or min(len(arm), len(baseline)) == 1
    differences = arm - baseline if paired else arm - baseline.mean(axis=0, keepdims=True)
    ends = np.empty((2, arm.shape[2]))
    for k, count in enumerate(np.asarray(users)):
        one = spread(differences[None, :, :, k], int(count), LEVEL)
        if not paired:
            other = arm[:, :, k].mean(axis=0, keepdims=True) - baseline[:, :, k]
            one = with_luck_of(one, spread(other[None], int(count), LEVEL), LEVEL)
        ends[:, k] = one.low, one.high
    return ends[0], ends[1]
