"""What the logits of a fit start from, made for the points of one batch: no [points, advertisers] array for all.

Of one batch it may be asked for some advertisers alone: a softmax over a wide catalog, sampled or block by block, needs
no more at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from advprior.history.counts import DAY
from advprior.history.histories import Histories
from advprior.history.popular import PopularityTable
from advprior.predictors.around import Around
from advprior.predictors.offset import Offset, OffsetTerms
from advprior.predictors.terms import places
from advprior.store.arrays import Float, Int


@dataclass(frozen=True)
class Logits:
    """Logits of P points over N advertisers: what they share by time, and what is each point's own.

    Attributes
    ----------
    shared : callable
        Columns [C] (None: all N) -> float32 [P, C], a new array.
    point, index : int64 [n]
        Points and advertisers of the cells that differ.
    value : float32 [n]
        What each cell adds.
    size : int
        N.
    """

    shared: Callable[[Int | None], Float]
    point: Int
    index: Int
    value: Float
    size: int

    def at(self, columns: Int | None = None) -> Float:
        """Logits [P, C] of some advertisers, all different, or of all."""
        out = self.shared(columns)
        if columns is None:
            out[self.point, self.index] += self.value
        else:
            place, among = places(columns, self.index, self.size)
            out[self.point[among], place] += self.value[among]
        return out


class Start(ABC):
    """Logits that a network's answer is added to."""

    @abstractmethod
    def logits(self, user: Int, moment: Int, end: Int) -> Logits:
        """Logits of P points.

        Parameters
        ----------
        user, moment : int64 [P]
            Events of the user before the moment (microseconds) are known.
        end : int64 [P]
            When the label comes, where drift is that around it.
        """

    def __call__(self, user: Int, moment: Int, end: Int, columns: Int | None = None) -> Float:
        """`logits` [P, C] of some advertisers, or of all."""
        return self.logits(user, moment, end).at(columns)


class Nothing(Start):
    """Logits that start from zero, of N = ``size`` advertisers."""

    def __init__(self, size: int) -> None:
        self._size = size

    def logits(self, user: Int, moment: Int, end: Int) -> Logits:
        """See `Start`."""
        none = np.zeros(0, np.int64)

        def shared(columns: Int | None) -> Float:
            return np.zeros((len(user), self._size if columns is None else len(columns)), np.float32)

        return Logits(shared, none, none, np.zeros(0, np.float32), self._size)


class AsOf(Start):
    """Drift and habit as of each point's moment: what scoring starts from.

    Parameters
    ----------
    offset : Offset
    histories : Histories
    size : int
        N.
    """

    def __init__(self, offset: Offset, histories: Histories, size: int) -> None:
        self._offset, self._histories, self._size = offset, histories, size
        self._tables = [PopularityTable(histories, h, size) for h in offset.terms.popular]

    def logits(self, user: Int, moment: Int, end: Int) -> Logits:
        """See `Start`."""
        return self._logits(user, moment, moment)

    def _logits(self, user: Int, moment: Int, drift_at: Int) -> Logits:
        """Logits with habit as of one time [P] and drift as of another."""
        shape, weights = self._offset.terms, np.asarray(self._offset.weights, np.float32)
        moments, row = np.unique(drift_at, return_inverse=True)

        def shared(columns: Int | None) -> Float:
            drift = np.zeros((len(moments), self._size if columns is None else len(columns)), np.float32)
            for table, half_life, weight in zip(self._tables, shape.popular, weights, strict=False):
                drift += weight * shape.log(table(moments, columns), half_life)
            rows: Float = drift[row]
            return rows

        offsets, index, own = shape.own_cells(self._histories, user, moment, self._size)
        point = np.repeat(np.arange(len(user)), np.diff(offsets))
        return Logits(shared, point, index, weights[len(self._tables) :] @ own, self._size)


class SoFar(AsOf):
    """As `AsOf`, but with drift as of the day's beginning: popularity hardly moves within a day."""

    def logits(self, user: Int, moment: Int, end: Int) -> Logits:
        """See `Start`."""
        return self._logits(user, moment, moment // DAY * DAY)


class AroundLabel(Start):
    """Drift around each point's label, and habit as of its moment: what a network is fitted on top of.

    Parameters
    ----------
    around : Around
    shape : OffsetTerms
        Of habit.
    weights : tuple of float
        Of the drift, then of habit.
    """

    def __init__(self, around: Around, shape: OffsetTerms, weights: tuple[float, ...]) -> None:
        self._around, self._shape, self._weights = around, shape, np.asarray(weights, np.float32)

    def logits(self, user: Int, moment: Int, end: Int) -> Logits:
        """See `Start`."""
        terms = self._around.terms(self._shape, user, moment, end)
        rows = terms.shared[0]

        def shared(columns: Int | None) -> Float:
            chosen = rows[terms.row] if columns is None else rows[terms.row[:, None], columns]
            logits: Float = self._weights[0] * chosen
            return logits

        return Logits(shared, terms.point, terms.index, self._weights @ terms.value, terms.size)
