"""Counts as of a moment, per group: the one primitive behind every history and popularity feature.

Rows are sorted once by (group, time); a count strictly before any moment is then a binary search per group.
Strictness is exact: times are compared by their rank among the times that occur, in microseconds.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

Ints = npt.NDArray[np.int64]

DAY_US = 86_400_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def micros(times: pd.Series[pd.Timestamp]) -> Ints:
    """Microseconds since 1970 of a column of UTC times."""
    return times.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy("datetime64[us]").astype(np.int64)


def moment_us(moment: datetime) -> int:
    """Microseconds since 1970 of one moment with a zone, exactly.

    >>> from datetime import UTC
    >>> moment_us(datetime(1970, 1, 2, tzinfo=UTC)) == DAY_US
    True
    """
    return (moment - _EPOCH) // timedelta(microseconds=1)


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
        Count a (group, time) once: several rows of one basket are one occasion.

    Examples
    --------
    >>> counts = CountsBefore(np.array([0, 0, 1]), np.array([10, 20, 20]), 2)
    >>> counts.before(20).tolist(), counts.last_before(21).tolist()
    ([1, 0], [20, 20])
    """

    def __init__(self, groups: Ints, times: Ints, n_groups: int, *, distinct: bool = False) -> None:
        self._times, ranks = np.unique(times, return_inverse=True)
        self._stride = len(self._times) + 1
        keys = groups.astype(np.int64) * self._stride + ranks
        self._keys = np.unique(keys) if distinct else np.sort(keys)
        self._bases = np.arange(n_groups, dtype=np.int64) * self._stride
        self._starts = np.searchsorted(self._keys, self._bases)

    def before(self, moment: int) -> Ints:
        """Rows of each group with time < ``moment``: int array [n_groups]."""
        rank = int(np.searchsorted(self._times, moment))
        return np.searchsorted(self._keys, self._bases + rank) - self._starts

    def last_before(self, moment: int) -> Ints:
        """Newest time < ``moment`` of each group, −1 where there is none: int array [n_groups]."""
        counts = self.before(moment)
        found = np.full(len(counts), -1, dtype=np.int64)
        some = counts > 0
        found[some] = self._times[self._keys[(self._starts + counts - 1)[some]] % self._stride]
        return found

    def first(self) -> Ints:
        """Oldest time of each group, −1 for an empty one: int array [n_groups]."""
        found = np.full(len(self._bases), -1, dtype=np.int64)
        some = np.diff(np.append(self._starts, len(self._keys))) > 0
        found[some] = self._times[self._keys[self._starts[some]] % self._stride]
        return found


def compact(*codes: tuple[Ints, int]) -> tuple[Ints, Ints]:
    """Groups of combined codes: (distinct combined codes, ascending; group of each row).

    Each argument is (codes, how many there can be); combined = ((a · n_b) + b) · n_c + c …
    """
    combined = codes[0][0].astype(np.int64)
    for values, count in codes[1:]:
        combined = combined * count + values
    found, inverse = np.unique(combined, return_inverse=True)
    return found, inverse
