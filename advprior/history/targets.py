"""Targets: the advertisers that a user turns to within a horizon after a point in time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from advprior.history.histories import Histories
from advprior.store.arrays import Int


def next_advertisers(histories: Histories, user: Int, after: Int, horizon: int | Int) -> tuple[Int, Int]:
    """Distinct advertisers with ``after < time <= after + horizon``, for P (user, time) points.

    Parameters
    ----------
    histories : Histories
    user : int64 [P]
        User index of each point.
    after : int64 [P]
        Microseconds; events at that very time are history, not target.
    horizon : int, or int64 [P]
        Microseconds; see also `first_occasion`.

    Returns
    -------
    offsets : int64 [P + 1]
    advertiser : int64 [offsets[-1]]
        Targets of point p are ``advertiser[offsets[p]:offsets[p + 1]]``.
    """
    low = histories.seek(user, after + 1)
    high = np.maximum(histories.seek(user, after + horizon + 1), low)
    counts = high - low
    point = np.repeat(np.arange(len(user)), counts)
    row = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(low, counts)
    size = int(histories.advertiser.max()) + 1 if len(histories.advertiser) else 1
    pairs = np.unique(point * size + histories.advertiser[row])
    offsets = np.concatenate([[0], np.cumsum(np.bincount(pairs // size, minlength=len(user)))])
    return offsets.astype(np.int64), (pairs % size).astype(np.int64)


def first_occasion(histories: Histories, user: Int, after: Int, horizon: int) -> Int:
    """Horizon [P] that ends with the first occasion after each point, ``horizon`` where none lies within it.

    Targets within it are the paper's: the first advertiser, or several where they were turned to at the very same time.

    >>> h = Histories(("u",), ("",), np.array([0, 3]), np.array([5, 5, 9]), np.array([0, 2, 1]))
    >>> first_occasion(h, np.array([0, 0, 0]), np.array([1, 5, 9]), 7).tolist()
    [4, 4, 7]
    """
    if not len(histories.time):
        return np.full(len(user), horizon, np.int64)
    # one sorted key of user and the time's rank: microseconds times many users would overflow 64 bits
    times, rank = np.unique(histories.time, return_inverse=True)
    keys = histories.user_of_row * (len(times) + 1) + rank
    row = np.searchsorted(keys, user * (len(times) + 1) + np.searchsorted(times, after, side="right"))
    distance = histories.time[np.minimum(row, len(keys) - 1)] - after
    return np.where((row < histories.offsets[user + 1]) & (distance <= horizon), distance, horizon).astype(np.int64)


def dense(offsets: Int, advertiser: Int, size: int) -> npt.NDArray[np.float32]:
    """Multi-hot matrix [P, size] of targets."""
    out = np.zeros((len(offsets) - 1, size), np.float32)
    out[np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)), advertiser] = 1.0
    return out


def quality(log_probs: npt.NDArray[np.float32], truth: npt.NDArray[np.float32]) -> dict[str, float]:
    """Quality of priors against multi-hot truth, over points with at least one target.

    Returns
    -------
    dict
        ``nll`` per target (nats); ``recall@5`` and ``recall@20``: share of targets among the best k,
        mean over points; ``points``.

    Examples
    --------
    >>> lp = np.log(np.array([[.7, .2, .1]], np.float32))
    >>> quality(lp, np.array([[0, 1, 0]], np.float32))["nll"].__round__(3)
    1.609
    """
    some = truth.sum(1) > 0
    log_probs, truth = log_probs[some], truth[some]
    if not len(truth):
        return {"nll": float("nan"), "recall@5": float("nan"), "recall@20": float("nan"), "points": 0}
    result = {"nll": float(-(log_probs * truth).sum() / truth.sum())}
    order = np.argsort(-log_probs, axis=1, kind="stable")
    hits = np.take_along_axis(truth, order, axis=1)
    for k in (5, 20):
        result[f"recall@{k}"] = float((hits[:, :k].sum(1) / np.minimum(truth.sum(1), k)).mean())
    result["points"] = len(truth)
    return result
