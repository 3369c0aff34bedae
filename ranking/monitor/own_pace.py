"""How far a feature moves by itself: what chance gives so few users or ads, and what time does to it.

Ages grow by a day a day and counts since the start never fall: of such features any two windows differ, and an alarm
that rings whenever somebody looks is no alarm. How a feature moved *within* training is known, so a move since then
counts only where it is beyond what chance and that pace explain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from advprior.store.arrays import Bool, Int
from advprior.store.times import micros
from ranking.frame.row_blocks import SomeRows
from ranking.monitor.psi import psi

#: A stationary feature is beyond chance so seldom; a hundred features a day ask for few.
ALPHA = 1e-4


@dataclass(frozen=True)
class Scale:
    """What a move between two sides is held against.

    Parameters
    ----------
    units : (int, int)
        Independent units on either side: rows of one user, or of one ad, are alike.
    later : bool [reference rows], optional
        The later half of the reference in time; None where it cannot be parted.
    distance : float
        From the reference to the current side, in distances of the halves.

    Examples
    --------
    >>> round(Scale((400, 200)).reach(6), 3)
    0.193
    """

    units: tuple[int, int]
    later: Bool | None = None
    distance: float = 0.0

    @classmethod
    def of(cls, reference: pd.DataFrame, current: pd.DataFrame, time: str, keys: Sequence[str]) -> Scale:
        """Of two frames.

        Parameters
        ----------
        time : str
            Their time column.
        keys : sequence of str
            Columns of what a feature is of: the one with the fewest distinct values says how many units there are. One
            that the current side lacks is left out there.
        """
        at, now = micros(reference[time]).astype(np.float64), micros(current[time]).astype(np.float64)
        units = _units(reference, keys), _units(current, keys)
        later: Bool = at > (at.min() + at.max()) / 2
        if later.all() or not later.any():
            return cls(units)
        between = float(at[later].mean() - at[~later].mean())
        return cls(units, later, max(0.0, float(now.mean() - at.mean()) / between))

    def reach(self, bins: int, trend: float = 0.0) -> float:
        """The index that is exceeded with probability `ALPHA` where there is such a trend, or none.

        Without one it is a chi-square times ``1/n + 1/m`` (Yurdakul 2018). With one it is a noncentral chi-square: the
        larger the move, the more chance adds to it or takes from it. Its quantile is that of the chi-square with the
        same mean and variance (Patnaik, *Biometrika* 36, 1949).

        Examples
        --------
        >>> scale = Scale((400, 200))
        >>> [round(scale.reach(6, trend), 3) for trend in (0.0, 0.2, 1.0)]
        [0.193, 0.661, 1.817]
        """
        from scipy.stats import chi2

        unit, freedom = 1 / self.units[0] + 1 / self.units[1], max(1, bins - 1)
        apart = trend / unit
        factor = (freedom + 2 * apart) / (freedom + apart)
        return float(chi2.ppf(1 - ALPHA, (freedom + apart) / factor)) * factor * unit

    def trend(self, before: npt.ArrayLike, after: npt.ArrayLike) -> float:
        """The index that the pace between the reference's halves gives over the distance to the current side.

        For a small steady move the index grows with the square of the distance. Chance in the halves is left in: how
        far the pace itself is uncertain grows with the distance, too.

        Parameters
        ----------
        before, after : counts [bins] of the halves
        """
        return psi(before, after) * self.distance**2


class Levels:
    """What several ads may share, and which of it a feature of ads is of.

    Parameters
    ----------
    rows : SomeRows
    time : str
        Their time column.
    keys : sequence of str
        What several ads may share, such as their category or advertiser; the one with the fewest values is tried first.

    Examples
    --------
    >>> slate = {"at": [1, 1, 1, 2], "category": ["a", "a", "b", "a"], "of_category": [3, 3, 7, 4], "own": [1, 2, 3, 4]}
    >>> levels = Levels(SomeRows.all_of(pd.DataFrame(slate)), "at", ["category"])
    >>> levels.of(pd.Series(slate["of_category"])), levels.of(pd.Series(slate["own"]))
    ('category', None)
    """

    def __init__(self, rows: SomeRows, time: str, keys: Sequence[str]) -> None:
        moments = pd.factorize(rows.read([time])[time])[0] if keys else np.zeros(0, np.int64)
        sizes, self._groups = dict[str, int](), dict[str, tuple[Int, Int]]()
        for key in keys:
            values = rows.read([key])[key]
            sizes[key] = len(values.unique())
            self._groups[key] = _groups(moments, pd.factorize(values)[0])
        self._keys = sorted(keys, key=sizes.__getitem__)

    def of(self, values: pd.Series[Any]) -> str | None:
        """The key that a column is of: rows of one moment that share it always share the value; None: the ad's own."""
        if not self._keys:
            return None
        numbers = pd.factorize(values)[0].astype(np.float64)
        numbers[numbers < 0] = np.nan  # a missing value agrees with any
        for key in self._keys:
            order, starts = self._groups[key]
            if len(starts):
                least, most = (pick.reduceat(numbers[order], starts) for pick in (np.fmin, np.fmax))
                if ((least == most) | np.isnan(least)).all():
                    return key
        return None


def _groups(moments: Int, codes: Int) -> tuple[Int, Int]:
    """Rows of one moment and one key, where there are several, one group after the other; where each group begins."""
    whole = np.flatnonzero((codes >= 0) & (moments >= 0))
    pairs = moments[whole].astype(np.int64) * (int(codes.max(initial=-1)) + 1) + codes[whole]
    order = np.argsort(pairs, kind="stable")
    begins = np.append(np.flatnonzero(np.diff(pairs[order], prepend=-1)), len(order))
    lengths = np.diff(begins)
    several = np.repeat(lengths > 1, lengths)
    lengths = lengths[lengths > 1]
    return whole[order[several]].astype(np.int32), np.cumsum(lengths) - lengths


def _units(frame: pd.DataFrame, keys: Sequence[str]) -> int:
    return max(1, min(int(frame[key].nunique()) for key in keys if key in frame.columns))
