"""Drift of a label's own time, both sides of it: what a network is fitted on top of where labels reach over months.

It then learns how a user differs from everyone at that time, and not which advertisers were about to be in fashion
(`advprior.predictors.offset`). One row of N numbers a day is held; with it, what a point's own user did is known
exactly at the few advertisers that it concerns.
"""

from __future__ import annotations

import numpy as np

from advprior.history import counts
from advprior.history.histories import Histories
from advprior.predictors.offset import FLOOR, OffsetTerms
from advprior.predictors.terms import Terms
from advprior.store.arrays import Double, Float, Int

POINTS = 20_000
TABLE = 300_000_000  # cells of days × advertisers: days share a row where they would be more


class Around:
    """Log of the events of everyone else around a day, before and after it: the drift of that very time.

    A point's label lies on that day, and the same user may turn to the same advertiser after it: neither is drift, so
    what the point's own user does from its moment on is taken out. Events that are a user's first are left out, as
    their labels are. For fitting alone: it knows what came after.

    Parameters
    ----------
    past : Histories
        Events before the cut-off of what is fitted.
    half_life : float
        Days, to both sides.
    size : int
        N.
    """

    def __init__(self, past: Histories, half_life: float, size: int) -> None:
        self._past, self._size, self._decay = past, size, 0.5 ** (1.0 / half_life)
        later = past.time > counts.first_times(past)[past.user_of_row]
        day = past.time[later] // counts.DAY
        self._first = int(day.min()) if len(day) else 0
        self._days = int(day.max()) - self._first + 1 if len(day) else 1
        self._step = -(-self._days * size // TABLE)
        keys = past.advertiser[later] * self._days + (day - self._first)
        self._keys, events = np.unique(keys, return_counts=True)
        self._events: Double = events.astype(np.float64)
        self._before, self._after = self._sides()
        self._log = self._table()

    def _sides(self) -> tuple[Double, Double]:
        """Decayed events of an advertiser before each of its days, and after it."""
        advertiser, day = self._keys // self._days, self._keys % self._days
        before, after = np.zeros(len(day)), np.zeros(len(day))
        start = np.flatnonzero(np.diff(advertiser, prepend=-1))
        lengths = np.diff(np.append(start, len(day)))
        # the k-th day of all advertisers that have so many: a pass for each day of the busiest one
        order = np.argsort(-lengths, kind="stable")
        start, lengths = start[order], lengths[order]
        ends = start + lengths - 1
        for k in range(1, int(lengths.max(initial=0))):
            some = int(np.searchsorted(-lengths, -k, side="left"))
            row = start[:some] + k
            before[row] = (before[row - 1] + self._events[row - 1]) * self._decay ** (day[row] - day[row - 1])
            row = ends[:some] - k
            after[row] = (after[row + 1] + self._events[row + 1]) * self._decay ** (day[row + 1] - day[row])
        return before, after

    def _table(self) -> Float:
        """Log of the sums [rows, N], float32: a row for each day, or for the first of several."""
        day, advertiser = self._keys % self._days, self._keys // self._days
        order = np.argsort(day, kind="stable")
        stops = np.searchsorted(day[order], np.arange(self._days + 1))
        out = np.zeros((-(-self._days // self._step), self._size), np.float32)

        def daily(i: int) -> tuple[Int, Double]:
            part = order[stops[i] : stops[i + 1]]
            return advertiser[part], self._events[part]

        running = np.zeros(self._size)
        for i in range(self._days):
            running *= self._decay
            where, events = daily(i)
            running[where] += events
            if i % self._step == 0:
                out[i // self._step] = running
        running[:] = 0.0
        for i in range(self._days - 1, -1, -1):
            if i % self._step == 0:
                out[i // self._step] += running
            where, events = daily(i)
            running[where] += events
            running *= self._decay
        out += FLOOR
        return np.log(out, out=out)

    def _sums(self, day: Int, advertiser: Int) -> Double:
        """Decayed events [n] around some days of some advertisers, exactly."""
        out = np.zeros(len(day))
        if not len(self._keys):
            return out
        keys = advertiser * self._days + day
        place = np.searchsorted(self._keys, keys)
        for side, neighbour in ((self._before, place - 1), (self._after, place)):
            at = np.clip(neighbour, 0, len(self._keys) - 1)
            own = (neighbour >= 0) & (neighbour < len(self._keys)) & (self._keys[at] // self._days == advertiser)
            at = at[own]
            apart = np.abs(self._keys[at] % self._days - day[own])
            out[own] += (side[at] + self._events[at]) * self._decay**apart
        return out

    def cells(self, user: Int, moment: Int, end: Int) -> tuple[Int, Int, Int, Float]:
        """The row of each point [P], and where it differs for the point: (point, advertiser, by how much) [n] each."""
        day = np.clip(end // counts.DAY - self._first, 0, self._days - 1)
        points, advertisers, amounts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
        for start in range(0, len(user), POINTS):  # whose later events are looked at together
            part = slice(start, start + POINTS)
            point, row = counts.later_rows(self._past, user[part], moment[part])
            apart = np.abs(self._past.time[row] // counts.DAY - self._first - day[part][point])
            # an advertiser or a few of each point: only their cells change
            cells, place = np.unique(point * self._size + self._past.advertiser[row], return_inverse=True)
            own = np.bincount(place, weights=self._decay**apart, minlength=len(cells))
            of_point, advertiser = start + cells // self._size, cells % self._size
            # rounding may leave a little less than nothing
            rest = np.maximum(self._sums(day[of_point], advertiser) - own, 0.0)
            points.append(of_point)
            advertisers.append(advertiser)
            amounts.append(
                (np.log(rest + FLOOR) - self._log[day[of_point] // self._step, advertiser]).astype(np.float32)
            )
        return day // self._step, np.concatenate(points), np.concatenate(advertisers), np.concatenate(amounts)

    def __call__(self, user: Int, moment: Int, end: Int) -> Float:
        """[P, N] around the day of ``end`` (microseconds); a day outside is the nearest one inside.

        Parameters
        ----------
        user : int64 [P]
        moment : int64 [P]
            Microseconds: from it on, the events of ``user`` are left out. One event at least lies before it.
        end : int64 [P]
            When the label comes.
        """
        row, point, advertiser, amount = self.cells(user, moment, end)
        out: Float = self._log[row]
        out[point, advertiser] += amount
        return out

    def terms(self, shape: OffsetTerms, user: Int, moment: Int, end: Int) -> Terms:
        """Drift around each label as the one drift, then habit by ``shape``, of P points; the rows are not copied."""
        row, point, advertiser, amount = self.cells(user, moment, end)
        offsets, index, own = shape.own_cells(self._past, user, moment, self._size)
        of_habit = np.repeat(np.arange(len(user)), np.diff(offsets)) * self._size + index
        of_drift = point * self._size + advertiser
        keys = np.union1d(of_habit, of_drift)
        value = np.zeros((1 + len(own), len(keys)), np.float32)
        value[0, np.searchsorted(keys, of_drift)] = amount
        value[1:, np.searchsorted(keys, of_habit)] = own
        stops = np.searchsorted(keys, np.arange(len(user) + 1) * self._size)
        return Terms(self._log[None], row, stops, keys % self._size, value)
