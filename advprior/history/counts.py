"""Decayed counts of events as of any cut-off: what the predictors without a network read.

An event t days before the cut-off weighs ``0.5 ** (t / half_life)``; one at or after it weighs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from advprior.history.histories import Histories
from advprior.history.subset import Crowd, Part
from advprior.store.arrays import Int
from advprior.store.times import DAY_US

DAY = DAY_US
CELLS = 4_000_000  # of a matrix of counts filled at once


@dataclass(frozen=True)
class OwnCells:
    """Decayed counts of users' own events where they are not zero, at P points.

    Attributes
    ----------
    offsets : int64 [P + 1]
        Cells of point p are ``offsets[p]:offsets[p + 1]``.
    index : int64 [offsets[-1]]
        Advertiser of each cell, ascending within a point.
    counted : float32 [H, offsets[-1]]
        One row a half-life.
    """

    offsets: Int
    index: Int
    counted: npt.NDArray[np.float32]


def popularity(histories: Histories, cutoffs: Int, half_life: float, size: int) -> npt.NDArray[np.float64]:
    """Decayed counts of everyone's events [len(cutoffs), size], strictly before each cut-off, in any order.

    One pass over events and sorted cut-offs: what counted at one cut-off decays to the next, and only the
    events between the two are added. Exact to rounding; thousands of cut-offs cost no more than a few.
    A part of the users brings what is known of everyone.
    """
    if isinstance(histories, Part):
        return histories.crowd.popularity(cutoffs, half_life)
    order = np.argsort(histories.time, kind="stable")
    moments, index = np.unique(cutoffs, return_inverse=True)
    return decayed([(histories.time[order], histories.advertiser[order])], moments, half_life, size)[index]


def decayed(rows: Iterable[tuple[Int, Int]], moments: Int, half_life: float, size: int) -> npt.NDArray[np.float64]:
    """Decayed counts [len(moments), size] strictly before each of ascending moments, of rows that come in parts.

    Every addition is made in the order of the rows, so that the parts they come in change no bit of the counts.

    Parameters
    ----------
    rows : iterable of (time, advertiser)
        Ascending in time, from part to part too.

    Examples
    --------
    >>> time, advertiser = np.array([0, DAY, DAY, 2 * DAY]), np.array([0, 1, 1, 0])
    >>> decayed([(time, advertiser)], np.array([2 * DAY, 3 * DAY]), 1.0, 2).tolist()
    [[0.25, 1.0], [0.625, 0.5]]
    >>> decayed([(time[:2], advertiser[:2]), (time[2:], advertiser[2:])], np.array([2 * DAY]), 1.0, 2).tolist()
    [[0.25, 1.0]]
    """
    out = np.zeros((len(moments), size))
    span: npt.NDArray[Any] = np.zeros(size)
    i = 0

    def close() -> None:
        before = out[i - 1] * 0.5 ** ((moments[i] - moments[i - 1]) / (half_life * DAY)) if i else 0.0
        out[i] = before + span

    for time, advertiser in rows:
        start = 0
        while i < len(moments):
            stop = int(np.searchsorted(time, moments[i], side="left"))
            if stop > start:
                weight = 0.5 ** ((moments[i] - time[start:stop]) / (half_life * DAY))
                if span.any():  # goes on from what an earlier part added
                    every = np.concatenate([np.arange(size), advertiser[start:stop]])
                    span = np.bincount(every, weights=np.concatenate([span, weight]), minlength=size)
                else:
                    span = np.bincount(advertiser[start:stop], weights=weight, minlength=size)
            if stop == len(time):  # the next part may have more before this moment
                break
            close()
            span, start, i = np.zeros(size), stop, i + 1
    while i < len(moments):
        close()
        span, i = np.zeros(size), i + 1
    return out


def crowd(histories: Histories, cutoffs: Int, half_lives: Iterable[float], size: int) -> Crowd:
    """What scorers with these half-lives (days) ask of everyone at these cut-offs, to go with some users' histories."""
    moments = np.unique(cutoffs)
    return Crowd(moments, {float(h): popularity(histories, moments, h, size) for h in half_lives})


def crowd_of(histories: Histories) -> object:
    """What counts of everyone hang on: a part's crowd, which other parts may share, or the histories themselves."""
    return histories.crowd if isinstance(histories, Part) else histories


class PopularityCache:
    """Decayed counts of everyone's events, kept between the shards of one run: the same for all users."""

    def __init__(self, half_life: float, size: int) -> None:
        self._half_life = half_life
        self._size = size
        self._seen: tuple[object, bytes, npt.NDArray[np.float32]] | None = None

    def __call__(self, histories: Histories, cutoffs: Int) -> npt.NDArray[np.float32]:
        """As `popularity`, float32."""
        key = cutoffs.tobytes()
        if self._seen is None or self._seen[0] is not crowd_of(histories) or self._seen[1] != key:
            fresh = popularity(histories, cutoffs, self._half_life, self._size).astype(np.float32)
            self._seen = (crowd_of(histories), key, fresh)
        return self._seen[2]


def own_points(histories: Histories, user: Int, cutoff: Int, half_life: float, size: int) -> npt.NDArray[np.float32]:
    """Decayed counts of the events of the user of each (user, cut-off) point [P, size], strictly before the cut-off."""
    out = np.zeros((len(user), size), np.float32)
    step = max(CELLS // max(size, 1), 1)
    for start in range(0, len(user), step):
        part = slice(start, start + step)
        point, row = past_rows(histories, user[part], cutoff[part])
        weight = 0.5 ** ((cutoff[part][point] - histories.time[row]) / (half_life * DAY))
        cells = point * size + histories.advertiser[row]
        points = len(user[part])
        out[part] = np.bincount(cells, weights=weight, minlength=points * size).reshape(points, size)
    return out


def own_cells(histories: Histories, user: Int, cutoff: Int, half_lives: Sequence[float], size: int) -> OwnCells:
    """As `own_points` at several half-lives, without the zeros: a user turned to a few of all advertisers."""
    offsets, index = [np.zeros(1, np.int64)], [np.zeros(0, np.int64)]
    counted = [np.zeros((len(half_lives), 0), np.float32)]
    rows = np.cumsum(histories.seek(user, cutoff) - histories.offsets[user])
    start = 0
    while start < len(user):  # as many points at once as have so many events, one at least
        seen = int(rows[start - 1]) if start else 0
        stop = max(int(np.searchsorted(rows, seen + CELLS, side="right")), start + 1)
        point, row = past_rows(histories, user[start:stop], cutoff[start:stop])
        cells, place = _distinct(point * size + histories.advertiser[row], (stop - start) * size)
        age = (cutoff[start:stop][point] - histories.time[row]) / DAY
        weights = [np.bincount(place, weights=0.5 ** (age / h), minlength=len(cells)) for h in half_lives]
        counted.append(np.asarray(weights, np.float32).reshape(len(half_lives), len(cells)))
        index.append(cells % size)
        offsets.append(offsets[-1][-1] + np.searchsorted(cells, np.arange(1, stop - start + 1) * size))
        start = stop
    return OwnCells(np.concatenate(offsets), np.concatenate(index), np.concatenate(counted, axis=1))


def _distinct(keys: Int, most: int) -> tuple[Int, Int]:
    """Distinct keys in ascending order, and which of them each is: counted, where that costs less than sorting."""
    if most > CELLS:
        distinct, place = np.unique(keys, return_inverse=True)
        return distinct, place
    seen = np.zeros(most, np.bool_)
    seen[keys] = True
    return np.flatnonzero(seen), (np.cumsum(seen) - 1)[keys]


def past_rows(histories: Histories, user: Int, cutoff: Int) -> tuple[Int, Int]:
    """Rows of the user of each (user, cut-off) point strictly before the cut-off: (point, row), in order of both.

    >>> h = Histories(("u", "v"), ("", ""), np.array([0, 2, 3]), np.array([1, 2, 1]), np.array([0, 1, 0]))
    >>> point, row = past_rows(h, np.array([1, 0, 0]), np.array([1, 2, 9]))
    >>> point.tolist(), row.tolist()
    ([1, 2, 2], [0, 0, 1])
    """
    return _between(histories.offsets[user], histories.seek(user, cutoff))


def later_rows(histories: Histories, user: Int, moment: Int) -> tuple[Int, Int]:
    """Rows of the user of each (user, moment) point at the moment or after it: (point, row), in order of both.

    >>> h = Histories(("u", "v"), ("", ""), np.array([0, 2, 3]), np.array([1, 2, 1]), np.array([0, 1, 0]))
    >>> point, row = later_rows(h, np.array([1, 0, 0]), np.array([1, 2, 9]))
    >>> point.tolist(), row.tolist()
    ([0, 1], [2, 1])
    """
    return _between(histories.seek(user, moment), histories.offsets[user + 1])


def _between(start: Int, stop: Int) -> tuple[Int, Int]:
    """Every row from ``start`` to ``stop`` of each point [P]: (point, row)."""
    length = stop - start
    point = np.repeat(np.arange(len(start), dtype=np.int64), length)
    row = np.arange(length.sum(), dtype=np.int64) - np.repeat(np.cumsum(length) - length, length) + start[point]
    return point, row


def first_times(histories: Histories) -> Int:
    """Time of each user's first event [U]; the largest integer for who has none.

    >>> first_times(Histories(("u",), ("",), np.array([0, 2]), np.array([3, 9]), np.array([0, 1]))).tolist()
    [3]
    """
    first = np.full(len(histories), np.iinfo(np.int64).max)
    some = np.diff(histories.offsets) > 0
    first[some] = histories.time[histories.offsets[:-1][some]]
    return first


def weekly_points(histories: Histories, first: int, last: int, every: int) -> tuple[Int, Int]:
    """(user, cut-off) pairs on a grid that ends at ``last``, users with an event before the cut-off only."""
    cutoffs = np.arange(last, first - 1, -every, dtype=np.int64)[::-1]
    started = first_times(histories)
    user, moment = np.meshgrid(np.arange(len(histories), dtype=np.int64), cutoffs, indexing="ij")
    keep = started[user] < moment
    return user[keep], moment[keep]
