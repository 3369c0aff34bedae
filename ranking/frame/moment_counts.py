"""Counts of groups before a few moments, from rows in any order: what some users' rows say can be added to others'.

`ranking.frame.counts` sorts all rows and answers for any moment. Popularity is asked of a few moments only, so a row is
worth no more than its group and the span between two moments that it lies in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from advprior.store.arrays import Int


@dataclass(frozen=True, eq=False)
class RowsBetween:
    """Rows by group and span, those that there are.

    Attributes
    ----------
    keys : int array [cells]
        group · M + span, ascending and distinct. Span k ends with moment k and begins with the one before it.
    rows : int array [cells]
    """

    keys: Int
    rows: Int

    @classmethod
    def count(cls, groups: Int, times: Int, moments: Int) -> RowsBetween:
        """Rows of each group (≥ 0) before the last of M ascending moments.

        >>> cells = RowsBetween.count(np.array([0, 1, 1, 0]), np.array([5, 5, 10, 20]), np.array([10, 20]))
        >>> cells.keys.tolist(), cells.rows.tolist()
        ([0, 2, 3], [1, 1, 1])
        """
        span = np.searchsorted(moments, times, side="right")
        inside = (span < len(moments)) & (groups >= 0)
        keys, rows = np.unique(groups[inside] * len(moments) + span[inside], return_counts=True)
        return cls(keys, rows)


class MomentCounts:
    """Rows per group strictly before each of some moments, as a sum of what is added.

    Parameters
    ----------
    size : int
        Groups.
    moments : int array [M]
        Ascending, microseconds since 1970.

    Examples
    --------
    >>> counts = MomentCounts(2, np.array([10, 20]))
    >>> counts.add(RowsBetween.count(np.array([0, 1, 1]), np.array([5, 5, 10]), counts.moments))
    >>> counts.before(10).tolist(), counts.before(20).tolist()
    ([1, 1], [1, 2])
    """

    def __init__(self, size: int, moments: Int) -> None:
        self.moments = moments
        self._spans: Int = np.zeros((size, len(moments)), np.int64)

    def add(self, cells: RowsBetween) -> None:
        """Further rows."""
        self._spans.reshape(-1)[cells.keys] += cells.rows

    def before(self, moment: int) -> Int:
        """Rows of each group, int array [size], before one of the moments."""
        at = int(np.searchsorted(self.moments, moment))
        assert self.moments[at] == moment
        rows: Int = self._spans[:, : at + 1].sum(axis=1)
        return rows

    def regrouped(self, group: Int, size: int) -> MomentCounts:
        """Counts of groups of groups: int array [groups], −1 for one that is in none."""
        counts = MomentCounts(size, self.moments)
        np.add.at(counts._spans, group[group >= 0], self._spans[group >= 0])
        return counts
