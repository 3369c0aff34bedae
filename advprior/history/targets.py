"""Targets: the advertisers that a user turns to within a horizon after a point in time.

A point has a handful of them among all advertisers: they are held as indices (`Targets`), never as a row a point.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from advprior.history.histories import Histories
from advprior.store.arrays import Bool, Double, Float, Int

RECALLS = (5, 20)  # places that recall is given for


@dataclass(frozen=True)
class Targets:
    """What P points turn to, of ``size`` advertisers (or product categories).

    Attributes
    ----------
    offsets : int64 [P + 1]
        Targets of point p are ``index[offsets[p]:offsets[p + 1]]``.
    index : int64 [offsets[-1]]
        Distinct within a point.
    value : float32 [offsets[-1]]
        What each counts for: 1 of a target as such.
    size : int
        N.

    Examples
    --------
    >>> targets = Targets.of(np.array([0, 1, 3]), np.array([2, 0, 1]), 3)
    >>> targets.dense().tolist(), targets.shares().take(np.array([1])).dense().tolist()
    ([[0.0, 0.0, 1.0], [1.0, 1.0, 0.0]], [[0.5, 0.5, 0.0]])
    """

    offsets: Int
    index: Int
    value: Float
    size: int

    @classmethod
    def of(cls, offsets: Int, index: Int, size: int) -> Targets:
        """Targets that count for one each."""
        return cls(offsets, index, np.ones(len(index), np.float32), size)

    @classmethod
    def none(cls, points: int, size: int = 0) -> Targets:
        """Points that turn to nothing."""
        return cls.of(np.zeros(points + 1, np.int64), np.zeros(0, np.int64), size)

    @classmethod
    def from_dense(cls, matrix: Float) -> Targets:
        """Of a matrix [P, N]: its cells that are not zero."""
        point, index = np.nonzero(matrix)
        offsets = np.searchsorted(point, np.arange(len(matrix) + 1))
        value = matrix[point, index].astype(np.float32)
        return cls(offsets.astype(np.int64), index.astype(np.int64), value, matrix.shape[1])

    @classmethod
    def joined(cls, parts: Sequence[Targets]) -> Targets:
        """Points of several, one after another."""
        counts = np.concatenate([part.counts for part in parts])
        index, value = (np.concatenate([getattr(part, name) for part in parts]) for name in ("index", "value"))
        return cls(_stops(counts), index, value, parts[0].size)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> Int:
        """How many targets each point has [P]."""
        return np.diff(self.offsets)

    @property
    def point(self) -> Int:
        """The point of each target [offsets[-1]]."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.counts)

    @property
    def totals(self) -> Double:
        """What all targets of a point count for [P]."""
        totals: Double = np.bincount(self.point, weights=self.value, minlength=len(self)).astype(np.float64)
        return totals

    def take(self, points: Int | Bool) -> Targets:
        """Those of some points, by their number or by a mask [P]."""
        chosen: Int = np.arange(len(self), dtype=np.int64)[points]
        offsets, at = rows_of(self.offsets, chosen)
        return Targets(offsets, self.index[at], self.value[at], self.size)

    def times(self, weight: Float | Double) -> Targets:
        """With what a point's targets count for multiplied by its weight [P]."""
        value = (self.value * weight[self.point]).astype(np.float32)
        return Targets(self.offsets, self.index, value, self.size)

    def shares(self) -> Targets:
        """A point's targets share it: what they count for sums to one, or to less where it was less."""
        return self.times(1.0 / np.maximum(self.totals, 1.0))

    def at(self, columns: Int) -> Float:
        """What each point's columns [P, K] count for; zero of what is no target."""
        if not len(self.index):
            return np.zeros(columns.shape, np.float32)
        keys, wanted = self.point * self.size + self.index, np.arange(len(self))[:, None] * self.size + columns
        order = np.argsort(keys, kind="stable")
        place = np.minimum(np.searchsorted(keys[order], wanted), len(keys) - 1)
        return np.where(keys[order][place] == wanted, self.value[order][place], np.float32(0.0))

    def dense(self) -> Float:
        """As a matrix [P, N]."""
        out = np.zeros((len(self), self.size), np.float32)
        out[self.point, self.index] = self.value
        return out


def rows_of(offsets: Int, chosen: Int) -> tuple[Int, Int]:
    """Rows of some points, whose own are ``offsets[p]:offsets[p + 1]``: their offsets, and which rows they are.

    >>> [x.tolist() for x in rows_of(np.array([0, 2, 3, 5]), np.array([2, 0]))]
    [[0, 2, 4], [3, 4, 0, 1]]
    """
    counts = np.diff(offsets)[chosen]
    stops = _stops(counts)
    return stops, np.arange(stops[-1]) + np.repeat(offsets[chosen] - stops[:-1], counts)


def _stops(counts: Int) -> Int:
    """Offsets [P + 1] of counts [P]."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


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


def targets_of(histories: Histories, user: Int, after: Int, horizon: int | Int, size: int) -> Targets:
    """`next_advertisers` of P points, of a catalog of ``size``."""
    return Targets.of(*next_advertisers(histories, user, after, horizon), size)


def first_occasion(histories: Histories, user: Int, after: Int, horizon: int) -> Int:
    """Horizon [P] that ends with the first occasion after each point, ``horizon`` where none lies within it.

    Targets within it are the paper's: the first advertiser, or several where they were turned to at the very same time.

    >>> h = Histories(("u",), ("",), np.array([0, 3]), np.array([5, 5, 9]), np.array([0, 2, 1]))
    >>> first_occasion(h, np.array([0, 0, 0]), np.array([1, 5, 9]), 7).tolist()
    [4, 4, 7]
    """
    if not len(histories.time):
        return np.full(len(user), horizon, np.int64)
    row = histories.seek(user, after + 1)
    distance = histories.time[np.minimum(row, len(histories.time) - 1)] - after
    return np.where((row < histories.offsets[user + 1]) & (distance <= horizon), distance, horizon).astype(np.int64)


def dense(offsets: Int, advertiser: Int, size: int) -> Float:
    """Multi-hot matrix [P, size] of targets."""
    return Targets.of(offsets, advertiser, size).dense()


def quality(log_probs: Float, truth: Float | Targets) -> dict[str, float]:
    """Quality of priors [P, N] against truth, over points with at least one target.

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
    return quality_of_blocks([log_probs], truth if isinstance(truth, Targets) else Targets.from_dense(truth))


def quality_of_blocks(blocks: Iterable[Float], truth: Targets) -> dict[str, float]:
    """As `quality`, of priors that come as blocks of points [b, N], one after another: never all at once."""
    at, ranks, start = [np.zeros(0, np.float32)], [np.zeros(0, np.int64)], 0
    for block in blocks:
        part = truth.take(np.arange(start, start + len(block)))
        start += len(block)
        at.append(block[part.point, part.index])
        ranks.append(_ranks(block, part))
    return quality_of_targets(np.concatenate(at), np.concatenate(ranks), truth)


def quality_by_row(log_probs: Float, row: Int, truth: Targets) -> dict[str, float]:
    """As `quality`, of priors [R, N] that many points share: point p is given ``log_probs[row[p]]``."""
    place = np.empty(log_probs.shape, np.int32)
    order = np.argsort(-log_probs, axis=1, kind="stable")
    np.put_along_axis(place, order, np.arange(log_probs.shape[1], dtype=np.int32)[None], axis=1)
    of_target = row[truth.point]
    ranks = place[of_target, truth.index].astype(np.int64)
    return quality_of_targets(log_probs[of_target, truth.index], ranks, truth)


def quality_of_targets(log_probs: Float, ranks: Int, truth: Targets) -> dict[str, float]:
    """As `quality`, from the log-prob and the rank (from 0) of every target [offsets[-1]]."""
    some = truth.counts > 0
    if not some.any():
        return {"nll": float("nan"), **{f"recall@{k}": float("nan") for k in RECALLS}, "points": 0}
    value, totals = truth.value.astype(np.float64), truth.totals
    result = {"nll": float(-(log_probs * value).sum() / value.sum())}
    for k in RECALLS:
        hits = np.bincount(truth.point, weights=value * (ranks < k), minlength=len(truth))
        result[f"recall@{k}"] = float((hits[some] / np.minimum(totals[some], k)).mean())
    result["points"] = int(some.sum())
    return result


def _ranks(log_probs: Float, truth: Targets) -> Int:
    """Rank of each target in its point's row, from 0; of equals the one with the smaller index comes first."""
    ranks = np.empty(len(truth.index), np.int64)
    for i, (point, index) in enumerate(zip(truth.point.tolist(), truth.index.tolist(), strict=True)):
        row = log_probs[point]
        # not a number: behind all others
        better = np.count_nonzero(~(row <= row[index]))
        ranks[i] = better + np.count_nonzero(row[:index] == row[index])
    return ranks
