"""Rows of each stream by user, and their counts per user and id as of any snapshot."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.arrays import Bool, Float, Int
from advprior.store.contract import AD_ID, CLICKED, EVENTS, IMPRESSIONS, LABEL, TIMESTAMP, USER_ID, VALUE
from advprior.store.times import DAY_US, counting_times, micros
from ranking.frame import streams
from ranking.frame.counts import codes_of
from ranking.frame.numbering import HistoryIds
from ranking.frame.streams import Stream

_LONG_AGO = np.iinfo(np.int64).min // 2  # of what has not happened; a moment less any window is later


@dataclass(frozen=True)
class StreamRows:
    """Rows of one stream by user.

    Attributes
    ----------
    stream : Stream
    owner : int array [rows]
        Place of the user.
    times : int array [rows]
        Time from which each counts, microseconds since 1970.
    codes : mapping of str to int array [rows]
        Id of each row by numbering, −1 where it has none.
    users : int
    value : float64 [rows]
        Value of each event; zeros for other streams.
    answered : bool array [rows]
        Rows that the user answered; none for a stream without answers.
    answer_delay_us : int
        How long after its row an answer counts.
    told_from : mapping of str to int array [rows]
        By numbering: microseconds since 1970 from which a row's id is told, where an ad that may come later tells it.
        At an earlier moment the row has none.
    """

    stream: Stream
    owner: Int
    times: Int
    codes: Mapping[str, Int]
    users: int
    value: Any
    answered: Bool
    answer_delay_us: int = 0
    told_from: Mapping[str, Int] = field(default_factory=dict)


def log_streams(columns: Container[str]) -> list[Stream]:
    """Streams of a log whose impressions have these columns: clicks where it knows of any.

    >>> [stream.name for stream in log_streams(["label"])]
    ['history', 'exposures']
    """
    return [streams.EVENTS, streams.EXPOSURES, *([streams.CLICKS] if CLICKED in columns else [])]


def stream_rows(
    users: pd.DataFrame, ids: HistoryIds, tables: Mapping[str, pd.DataFrame], label_delay: timedelta
) -> list[StreamRows]:
    """Events, exposures, and clicks where the log has them, from canonical tables.

    An exposure is answered by its click. Where the log has no clicks it is answered by a positive label, which counts
    once it is complete: ``label_delay`` after the impression.
    """
    return [
        _event_rows(users, ids, tables[EVENTS]),
        *_shown_rows(users, ids, tables[IMPRESSIONS], label_delay),
    ]


def _event_rows(users: pd.DataFrame, ids: HistoryIds, events: pd.DataFrame) -> StreamRows:
    n = len(events)
    value = np.nan_to_num(events[VALUE].to_numpy(np.float64)) if VALUE in events else np.zeros(n)
    owner = codes_of(events[USER_ID], users[USER_ID])
    times, codes = counting_times(events), ids.event_codes(events)
    told = ids.told_from(events, codes)
    return StreamRows(streams.EVENTS, owner, times, codes, len(users), value, np.zeros(n, dtype=bool), told_from=told)


def _shown_rows(
    users: pd.DataFrame, ids: HistoryIds, impressions: pd.DataFrame, label_delay: timedelta
) -> list[StreamRows]:
    n = len(impressions)
    owner, times = codes_of(impressions[USER_ID], users[USER_ID]), micros(impressions[TIMESTAMP])
    codes = ids.ad_codes(impressions[AD_ID])
    zeros = np.zeros(n)
    if CLICKED not in impressions:
        answered, delay = (impressions[LABEL] == 1).to_numpy(bool), label_delay // timedelta(microseconds=1)
        return [StreamRows(streams.EXPOSURES, owner, times, codes, len(users), zeros, answered, delay)]
    clicked = (impressions[CLICKED] == 1).to_numpy(bool)
    of_clicks = {name: code[clicked] for name, code in codes.items()}
    nothing = np.zeros(int(clicked.sum()))
    clicks = StreamRows(
        streams.CLICKS, owner[clicked], times[clicked], of_clicks, len(users), nothing, nothing.astype(bool)
    )
    return [StreamRows(streams.EXPOSURES, owner, times, codes, len(users), zeros, clicked), clicks]


class LevelCounts:
    """One stream's rows per user and id of one numbering, counted as of any snapshot.

    Rows lie in time order, so that a window is a slice of them; what a snapshot has in common with the one before it
    (the counts ever, the newest row of each key) is carried over. Ascending snapshots cost what came in between, and
    the rows in their windows; an earlier one begins anew.

    Attributes
    ----------
    rows : StreamRows
    size : int
        Ids of the numbering.
    keys : int array [distinct]
        user · size + id of all rows that have an id, ascending and distinct.
    place : int array [rows with an id]
        Which of the keys each row has, in time order.
    times : int array [rows with an id]
        Ascending.

    Parameters
    ----------
    rows : StreamRows
    numbering : str
    ids : HistoryIds
    """

    def __init__(self, rows: StreamRows, numbering: str, ids: HistoryIds) -> None:
        codes, self.size = rows.codes[numbering], ids.sizes[numbering]
        self.rows = rows
        self._exist_from = ids.exist_from[numbering]
        whole = np.flatnonzero((codes >= 0) & (rows.owner >= 0))
        self.keys, place = np.unique(rows.owner[whole] * self.size + codes[whole], return_inverse=True)
        place = place.astype(np.int32 if len(self.keys) < 2**31 else np.int64)
        told = rows.told_from.get(numbering, np.zeros(0, np.int64))
        told = told[whole] if len(told) else np.zeros(len(whole), np.int64)
        order = np.lexsort([told, place, rows.times[whole]])
        self.place, self.times, told = place[order], rows.times[whole][order], told[order]
        first = self._of_visits() if rows.stream.occasions else np.ones(len(self.place), np.bool_)
        self._counted = _InTime.of(self.place[first], self.times[first], told[first])
        answered = rows.answered[whole][order]
        self._answers = _InTime.of(self.place[answered], self.times[answered])
        self._begin()

    def _of_visits(self) -> Bool:
        """Rows of one user, id and time are of one visit: the first of them, the one that is told of first."""
        first = np.ones(len(self.place), np.bool_)
        first[1:] = (np.diff(self.place) != 0) | (np.diff(self.times) != 0)
        return first

    def _begin(self) -> None:
        self._ever = np.zeros(len(self.keys), np.int64)
        self._newest, self._answered = (np.full(len(self.keys), _LONG_AGO) for _ in range(2))
        self._counted.done = self._answers.done = 0
        self._moment = _LONG_AGO

    def _advance(self, moment: int) -> None:
        """Carry on to a snapshot."""
        if moment < self._moment:
            self._begin()
        self._moment = moment
        place, times = self._counted.until(moment)
        self._ever += np.bincount(place, minlength=len(self.keys))
        np.maximum.at(self._newest, place, times)
        # an answer counts some time after its row; rows at the row's own time were no sequel to it
        np.maximum.at(self._answered, *self._answers.until(moment - self.rows.answer_delay_us))

    def at(self, moment: int) -> tuple[Int, Float]:
        """Keys (user · size + id) with a row in reach of a snapshot, ascending, and their values.

        Returns
        -------
        int array [n], float32 [n, quantities]
            Values in the order of `Stream.quantities`.
        """
        self._advance(moment)
        stream, n = self.rows.stream, len(self.keys)
        reach = _LONG_AGO + 1 if stream.reach_days is None else moment - stream.reach_days * DAY_US
        of_keys = self._newest >= reach
        of_keys &= (self._exist_from <= moment)[self.keys % max(self.size, 1)]
        present = np.flatnonzero(of_keys)
        out: Float = np.empty((len(present), len(stream.quantities)), np.float32)
        for column, days in enumerate(stream.windows.values()):
            counts = self._ever
            if days is not None:
                counts = np.bincount(self._counted.since(moment - days * DAY_US)[0], minlength=n)
            out[:, column] = counts[present]
        if stream.answers:
            place, times = self._counted.since(reach)
            out[:, -2] = np.bincount(place[times > self._answered[place]], minlength=n)[present]
        out[:, -1] = (moment - self._newest[present]) / DAY_US
        return self.keys[present], out


@dataclass
class _InTime:
    """Rows in the order in which they count, gone through up to a moment.

    Parameters
    ----------
    place, times : int arrays [rows]
    counts : int array [rows]
        Ascending, never before a row's time: a row counts at any moment that is later. The times themselves, where
        nothing is told later.
    done : int
        How many of them lie before the moment.
    """

    place: Int
    times: Int
    counts: Int
    done: int = 0

    @classmethod
    def of(cls, place: Int, times: Int, told: Int | None = None) -> _InTime:
        """Of rows in time order; a row whose id is told at a moment counts at that very moment, too."""
        if told is None or not (late := told > times).any():
            return cls(place, times, times)
        counts = np.where(late, told - 1, times)
        order = np.argsort(counts, kind="stable")
        return cls(place[order], times[order], counts[order])

    def until(self, moment: int) -> tuple[Int, Int]:
        """Place and time of the next rows that count before a moment."""
        start, self.done = self.done, int(np.searchsorted(self.counts, moment))
        return self.place[start : self.done], self.times[start : self.done]

    def since(self, moment: int) -> tuple[Int, Int]:
        """Place and time of the rows gone through whose time is not before a moment."""
        start = int(np.searchsorted(self.counts[: self.done], moment))
        place, times = self.place[start : self.done], self.times[start : self.done]
        if self.counts is self.times:
            return place, times
        inside = times >= moment
        return place[inside], times[inside]
