"""Rows by request and falling score: what comes first, and how few advertisers it goes to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from advprior.store.arrays import Bool, Double, Int


@dataclass(frozen=True)
class Sorted:
    """Rows by request and falling score; equal scores stand in an order drawn at random, the same in every call.

    A file's own order may know the label (clicks logged first): it must not break ties.

    Parameters
    ----------
    order : int array [rows]
        Sorted row to original row.
    request : int array [rows]
        Compact number of the request of each sorted row, ``0 … requests − 1``.
    place : int array [rows]
        Place of each sorted row in its request; 0 is the request's best.
    starts : int array [requests]
        First sorted row of each request.
    new_tie : bool array [rows]
        Whether a sorted row's request or score is another than that of the row before it.

    Examples
    --------
    >>> rows = Sorted.of([7, 7, 3], [0.1, 0.9, 0.5])
    >>> rows.order.tolist(), rows.place.tolist()
    ([2, 1, 0], [0, 0, 1])
    """

    order: Int
    request: Int
    place: Int
    starts: Int
    new_tie: Bool

    @classmethod
    def of(cls, request: ArrayLike, score: ArrayLike) -> Sorted:
        """Sort rows."""
        values = np.asarray(score, dtype=np.float64)
        order = np.lexsort((-values, np.asarray(request)))
        _, compact = np.unique(np.asarray(request)[order], return_inverse=True)
        starts = np.flatnonzero(np.diff(compact, prepend=-1))
        place = np.arange(len(order)) - starts[compact]
        new_tie = (place == 0) | (np.diff(values[order], prepend=np.nan) != 0)
        equal = np.flatnonzero(~new_tie | ~np.append(new_tie[1:], True))  # rows that are tied with another
        if len(equal):
            drawn = np.random.default_rng(0).random(len(equal))
            order[equal] = order[equal[np.lexsort((drawn, np.cumsum(new_tie)[equal]))]]
        return cls(order, compact, place, starts, new_tie)

    @cached_property
    def ties(self) -> tuple[Int, Int]:
        """Of each sorted row: rows of its request and score, and the place of the first of them."""
        tie = np.cumsum(self.new_tie) - 1
        return np.bincount(tie)[tie], self.place[self.new_tie][tie]

    def shown(self, load: int) -> Double:
        """Chance of each sorted row to be among its request's first ``load``, ties broken at random.

        >>> Sorted.of([1, 1, 1], [0.9, 0.5, 0.5]).shown(2).tolist()
        [1.0, 0.5, 0.5]
        """
        tied, first = self.ties
        return np.clip((load - first) / tied, 0.0, 1.0)

    def running(self, mask: NDArray[np.bool_]) -> Int:
        """How many of the request's rows up to and with each one are in a mask of the sorted rows."""
        total = np.cumsum(mask)
        before = np.concatenate([[0], total])[self.starts]
        counts: Int = total - before[self.request]
        return counts


def expected_reciprocal(before: Int, tied: Int, hits: Double) -> Double:
    """Mean of 1 / place of the first hit over the orders of tied rows; one value for each group of ties.

    With p rows before n tied ones of which m are hits, the first hit stands j-th among them with probability
    C(n - j, m - 1) / C(n, m): the value is that sum over 1 / (p + j).

    Parameters
    ----------
    before, tied : int array [groups]
    hits : float array [groups]
        At least one.

    Examples
    --------
    >>> import numpy as np
    >>> expected_reciprocal(np.array([0]), np.array([3]), np.array([1.0])).round(3).tolist()
    [0.611]
    """
    from scipy.special import gammaln

    ends = (tied - hits + 1).astype(np.int64)  # the last place among the tied that the first hit can have
    group = np.repeat(np.arange(len(ends)), ends)
    j = np.arange(len(group)) - np.repeat(np.cumsum(ends) - ends, ends) + 1
    n, m = tied[group].astype(np.float64), hits[group]
    chance = gammaln(n - j + 1) - gammaln(m) - gammaln(n - j - m + 2)
    chance -= gammaln(n + 1) - gammaln(m + 1) - gammaln(n - m + 1)
    return np.asarray(np.bincount(group, np.exp(chance) / (before[group] + j), len(ends)), dtype=np.float64)


def concentration(advertiser: Int, weights: Any = None) -> float:
    """Herfindahl–Hirschman index of advertisers: the sum of their squared shares, 1 / N … 1.

    >>> import numpy as np
    >>> concentration(np.array([0, 0, 1, 1]))
    0.5
    """
    count = np.bincount(advertiser, weights=weights)
    return float(np.sum((count / count.sum()) ** 2)) if count.sum() else float("nan")
