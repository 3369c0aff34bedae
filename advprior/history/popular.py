"""Decayed counts of everyone's events at many moments, for a few advertisers or all: what a fit asks batch by batch.

`advprior.history.counts.popularity` goes through all events for each list of moments. Here that is done once, up to a
time every day; a moment then costs a row of the table and the events since.
"""

from __future__ import annotations

import numpy as np

from advprior.history.counts import DAY
from advprior.history.histories import Histories
from advprior.store.arrays import Double, Float, Int

TABLE = 300_000_000  # cells of times × advertisers: several days lie between two where they would be more


class PopularityTable:
    """Decayed counts of everyone's events before any moment.

    Parameters
    ----------
    histories : Histories
    half_life : float
        Days.
    size : int
        N.

    Examples
    --------
    >>> h = Histories(("u",), ("",), np.array([0, 2]), np.array([0, 10 * DAY]), np.array([0, 1]))
    >>> table = PopularityTable(h, 10.0, 3)
    >>> table(np.array([0, 10 * DAY, 20 * DAY])).round(2).tolist()
    [[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.25, 0.5, 0.0]]
    >>> table(np.array([20 * DAY]), np.array([1, 2])).tolist()
    [[0.5, 0.0]]
    """

    def __init__(self, histories: Histories, half_life: float, size: int) -> None:
        self._half_life, self._size = half_life * DAY, size
        order = np.argsort(histories.time, kind="stable")
        self._time, self._advertiser = histories.time[order], histories.advertiser[order]
        self._start = int(self._time[0]) if len(order) else 0
        days = (int(self._time[-1]) - self._start) // DAY + 1 if len(order) else 1
        self._every = -(-days * size // TABLE) * DAY
        count = -(-days * DAY // self._every)
        self._stops = np.searchsorted(self._time, self._start + np.arange(count) * self._every)
        self._rows: Float = np.zeros((count, size), np.float32)
        running = np.zeros(size)
        for i in range(1, count):
            running *= 0.5 ** (self._every / self._half_life)
            self._add(running, int(self._stops[i - 1]), int(self._stops[i]), self._start + i * self._every)
            self._rows[i] = running

    def _add(self, counted: Double, start: int, stop: int, moment: int) -> None:
        """Count the events of some rows as of a moment."""
        if stop > start:
            weight = 0.5 ** ((moment - self._time[start:stop]) / self._half_life)
            counted += np.bincount(self._advertiser[start:stop], weights=weight, minlength=self._size)

    def __call__(self, moments: Int, columns: Int | None = None) -> Double:
        """Decayed counts [M, C] strictly before each moment (microseconds), of C advertisers or of all."""
        place = np.clip((moments - self._start) // self._every, 0, len(self._rows) - 1)
        stops = np.searchsorted(self._time, moments)
        out = np.empty((len(moments), self._size if columns is None else len(columns)))
        for i, (row, stop) in enumerate(zip(place.tolist(), stops.tolist(), strict=True)):
            moment = int(moments[i])
            decay = 0.5 ** (max(moment - self._start - row * self._every, 0) / self._half_life)
            counted = self._rows[row] * decay
            first = int(self._stops[row])
            if stop > first:
                counted = counted.astype(np.float64)
                self._add(counted, first, stop, moment)
            out[i] = counted if columns is None else counted[columns]
        return out
