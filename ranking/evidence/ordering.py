"""Rows by request and falling score: what comes first, and how few advertisers it goes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from advprior.store.arrays import Int


@dataclass(frozen=True)
class Sorted:
    """Rows by request and falling score.

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

    @classmethod
    def of(cls, request: ArrayLike, score: ArrayLike) -> Sorted:
        """Sort rows; equal scores keep their order."""
        order = np.lexsort((-np.asarray(score, dtype=np.float64), np.asarray(request)))
        _, compact = np.unique(np.asarray(request)[order], return_inverse=True)
        starts = np.flatnonzero(np.diff(compact, prepend=-1))
        return cls(order, compact, np.arange(len(order)) - starts[compact], starts)

    def running(self, mask: NDArray[np.bool_]) -> Int:
        """How many of the request's rows up to and with each one are in a mask of the sorted rows."""
        total = np.cumsum(mask)
        before = np.concatenate([[0], total])[self.starts]
        counts: Int = total - before[self.request]
        return counts


def concentration(advertiser: Int, weights: Any = None) -> float:
    """Herfindahl–Hirschman index of advertisers: the sum of their squared shares, 1 / N … 1.

    >>> import numpy as np
    >>> concentration(np.array([0, 0, 1, 1]))
    0.5
    """
    count = np.bincount(advertiser, weights=weights)
    return float(np.sum((count / count.sum()) ** 2)) if count.sum() else float("nan")
