"""Counts as of a moment, per group: the one primitive behind every history and popularity feature.

Rows are sorted once by (group, time); a count strictly before any moment is then a binary search per group.
Strictness is exact: times are compared by their rank among the times that occur, in microseconds.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from advprior.store.arrays import Int


def codes_of(values: Any, catalog: Any) -> Int:
    """Place of each value in a catalog of distinct values, −1 where it is not in it: int64 [values].

    >>> codes_of(["b", "x", None], ["a", "b"]).tolist()
    [1, -1, -1]
    """
    import pandas as pd

    codes: Int = pd.Index(catalog).get_indexer(pd.Index(values)).astype(np.int64)
    return codes


class CountsBefore:
    """Rows per group strictly before a moment.

    Parameters
    ----------
    groups : int array [rows]
        Group of each row, 0 … n_groups − 1.
    times : int array [rows]
        Microseconds since 1970.
    n_groups : int
    distinct : bool
        Count a (group, time) once: several rows of one visit are one occasion.

    Examples
    --------
    >>> counts = CountsBefore(np.array([0, 0, 1]), np.array([10, 20, 20]), 2)
    >>> counts.before(20).tolist(), counts.last_before(21).tolist()
    ([1, 0], [20, 20])
    """

    def __init__(self, groups: Int, times: Int, n_groups: int, *, distinct: bool = False) -> None:
        self._times, ranks = np.unique(times, return_inverse=True)
        self._stride = len(self._times) + 1
        keys = groups.astype(np.int64) * self._stride + ranks
        self._keys = np.unique(keys) if distinct else np.sort(keys)
        self._bases = np.arange(n_groups, dtype=np.int64) * self._stride
        self._starts = np.searchsorted(self._keys, self._bases)

    def before(self, moment: int | Int) -> Int:
        """Rows of each group with time < ``moment``, one for all or one for each: int array [n_groups]."""
        rank = np.searchsorted(self._times, moment)
        return np.searchsorted(self._keys, self._bases + rank) - self._starts

    def last_before(self, moment: int) -> Int:
        """Newest time < ``moment`` of each group, −1 in an empty one: int array [n_groups]."""
        counts = self.before(moment)
        newest = np.full(len(counts), -1, dtype=np.int64)
        some = counts > 0
        newest[some] = self._times[self._keys[(self._starts + counts - 1)[some]] % self._stride]
        return newest

    def first(self) -> Int:
        """Oldest time of each group, −1 for an empty one: int array [n_groups]."""
        oldest = np.full(len(self._bases), -1, dtype=np.int64)
        some = np.diff(np.append(self._starts, len(self._keys))) > 0
        oldest[some] = self._times[self._keys[self._starts[some]] % self._stride]
        return oldest


def compact(*codes: tuple[Int, int]) -> tuple[Int, Int]:
    """Groups of combined codes: (distinct combined codes, ascending; group of each row).

    Each argument is (codes, how many there can be); combined = ((a · n_b) + b) · n_c + c …
    """
    combined = codes[0][0].astype(np.int64)
    for values, count in codes[1:]:
        combined = combined * count + values
    distinct, group = np.unique(combined, return_inverse=True)
    return distinct, group
