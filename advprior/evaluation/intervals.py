"""Paired intervals: two arms on the same users, users drawn again with replacement.

Written here because `ranking`, which has its own for slates, is never imported by this side.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
CHUNK = 4_000_000  # drawn users held at once


def paired_bootstrap(
    differences: Array, weights: Array, of: npt.NDArray[np.int64], *, replicates: int, seed: int
) -> tuple[Array, Array, Array]:
    """Mean difference and its 95 % interval for K ratios of sums over users.

    Parameters
    ----------
    differences : float64 [U, K]
        Weighted differences of each user.
    weights : float64 [U, S]
        Each user's weight in S segments.
    of : int64 [K]
        Segment of every column of ``differences``.
    replicates, seed : int

    Returns
    -------
    difference, low, high : float64 [K]
        NaN where a segment is empty.

    Examples
    --------
    >>> found = paired_bootstrap(np.ones((5, 1)), np.ones((5, 1)), np.array([0]), replicates=20, seed=0)
    >>> [float(x[0]) for x in found]
    [1.0, 1.0, 1.0]
    """
    rng = np.random.default_rng(seed)
    users = len(differences)
    drawn = np.full((replicates, len(of)), np.nan)
    step = max(CHUNK // max(users, 1), 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = differences.sum(0) / weights.sum(0)[of]
        for start in range(0, replicates if users else 0, step):
            size = min(step, replicates - start)
            cell = rng.integers(users, size=(size, users)) + np.arange(size)[:, None] * users
            times = np.bincount(cell.ravel(), minlength=size * users).reshape(size, users).astype(np.float64)
            drawn[start : start + size] = (times @ differences) / (times @ weights)[:, of]
    low, high = np.full(len(of), np.nan), np.full(len(of), np.nan)
    some = ~np.isnan(drawn).all(axis=0)
    if some.any():
        low[some], high[some] = np.nanpercentile(drawn[:, some], [2.5, 97.5], axis=0)
    return mean, low, high
