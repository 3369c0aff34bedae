"""What the logits of a fit start from, made for the points of one batch: no [points, advertisers] array is ever held.

With ``columns`` it is that of some advertisers alone: a sampled softmax asks for no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from advprior.history.counts import DAY
from advprior.history.histories import Histories
from advprior.history.popular import PopularityTable
from advprior.predictors.around import Around
from advprior.predictors.offset import Offset, OffsetTerms
from advprior.predictors.terms import places
from advprior.store.arrays import Float, Int


class Start(Protocol):
    """Logits that a network's answer is added to."""

    def __call__(self, user: Int, moment: Int, end: Int, columns: Int | None = None) -> Float:
        """Logits [P, C] of P points of C advertisers, or of all.

        Parameters
        ----------
        user, moment : int64 [P]
            Events of the user before the moment (microseconds) are known.
        end : int64 [P]
            When the label comes, where drift is that around it.
        columns : int64 [C], optional
        """


@dataclass(frozen=True)
class Nothing:
    """Logits that start from zero, of N = ``size`` advertisers."""

    size: int

    def __call__(self, user: Int, moment: Int, end: Int, columns: Int | None = None) -> Float:
        """See `Start`."""
        return np.zeros((len(user), self.size if columns is None else len(columns)), np.float32)


class AsOf:
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

    def __call__(self, user: Int, moment: Int, end: Int, columns: Int | None = None) -> Float:
        """See `Start`."""
        return self._logits(user, moment, moment, columns)

    def _logits(self, user: Int, moment: Int, drift_at: Int, columns: Int | None) -> Float:
        """Logits [P, C] with habit as of one time [P] and drift as of another."""
        shape, weights = self._offset.terms, self._offset.weights
        moments, row = np.unique(drift_at, return_inverse=True)
        drift = np.zeros((len(moments), self._size if columns is None else len(columns)), np.float32)
        for table, half_life, weight in zip(self._tables, shape.popular, weights[: len(self._tables)], strict=True):
            drift += np.float32(weight) * shape.log(table(moments, columns), half_life)
        logits: Float = drift[row]
        offsets, index, own = shape.own_cells(self._histories, user, moment, self._size)
        point = np.repeat(np.arange(len(user)), np.diff(offsets))
        habit = np.asarray(weights[len(self._tables) :], np.float32) @ own
        if columns is None:
            logits[point, index] += habit
        else:
            place, among = places(columns, index, self._size)
            logits[point[among], place] += habit[among]
        return logits


class SoFar(AsOf):
    """As `AsOf`, but with drift as of the day's beginning: popularity hardly moves within a day."""

    def __call__(self, user: Int, moment: Int, end: Int, columns: Int | None = None) -> Float:
        """See `Start`."""
        return self._logits(user, moment, moment // DAY * DAY, columns)


@dataclass(frozen=True)
class AroundLabel:
    """Drift around each point's label, and habit as of its moment: what a network is fitted on top of.

    Attributes
    ----------
    around : Around
    shape : OffsetTerms
        Of habit.
    weights : tuple of float
        Of the drift, then of habit.
    """

    around: Around
    shape: OffsetTerms
    weights: tuple[float, ...]

    def __call__(self, user: Int, moment: Int, end: Int, columns: Int | None = None) -> Float:
        """See `Start`."""
        terms = self.around.terms(self.shape, user, moment, end)
        return terms.logits(self.weights) if columns is None else terms.at(self.weights, columns)
