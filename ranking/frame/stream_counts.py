"""Rows of each stream by user, and their counts per user and id as of any snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    """

    stream: Stream
    owner: Int
    times: Int
    codes: Mapping[str, Int]
    users: int
    value: Any
    answered: Bool
    answer_delay_us: int = 0


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
    return StreamRows(streams.EVENTS, owner, times, codes, len(users), value, np.zeros(n, dtype=bool))


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
    """One stream's rows per user and id of one numbering, counted by DuckDB as of any snapshot.

    Attributes
    ----------
    rows : StreamRows
    size : int
        Ids of the numbering.
    exist_from : int array [size]
        From when each id exists, see `HistoryIds`.
    keys, times : int arrays
        user · size + id, and time, of each row that has an id.

    Parameters
    ----------
    rows : StreamRows
    numbering : str
    ids : HistoryIds
    connection : duckdb.DuckDBPyConnection, optional
        One of its own without.
    """

    def __init__(self, rows: StreamRows, numbering: str, ids: HistoryIds, connection: Any = None) -> None:
        import duckdb
        import pyarrow as pa

        codes, size = rows.codes[numbering], ids.sizes[numbering]
        whole = (codes >= 0) & (rows.owner >= 0)
        self.rows, self.size, self.exist_from = rows, size, ids.exist_from[numbering]
        self.times = rows.times[whole]
        self.keys = rows.owner[whole] * size + codes[whole]
        self._connection, self._table = connection or duckdb.connect(), f"{rows.stream.name}_{numbering}"
        columns = {"k": self.keys, "t": self.times, "answered": rows.answered[whole]}
        self._connection.register(self._table, pa.table(columns))

    def at(self, moment: int) -> tuple[Int, Float]:
        """Keys (user · size + id) with a row in reach of a snapshot, ascending, and their values.

        Returns
        -------
        int array [n], float32 [n, quantities]
            Values in the order of `Stream.quantities`.
        """
        stream = self.rows.stream
        counts = [
            "count(*)" if days is None else f"count(*) FILTER (t >= {moment - days * DAY_US})"
            for days in stream.windows.values()
        ]
        answers = ""
        if stream.answers:
            # an answer counts some time after its row; rows at the row's own time were no sequel to it
            until = moment - self.rows.answer_delay_us
            last = f"SELECT k, max(t) AS last FROM {self._table} WHERE answered AND t < {until} GROUP BY k"
            answers = f"LEFT JOIN ({last}) USING (k)"
            counts.append("count(*) FILTER (last IS NULL OR t > last)")
        reach = "" if stream.reach_days is None else f"AND t >= {moment - stream.reach_days * DAY_US}"
        # rows of one user, id and time are of one visit
        inside = f"SELECT {'DISTINCT' if stream.occasions else ''} k, t FROM {self._table} WHERE t < {moment} {reach}"
        columns = ", ".join(f"{count} AS c{i}" for i, count in enumerate([*counts, "max(t)"]))
        table = self._connection.execute(
            f"SELECT k, {columns} FROM ({inside}) {answers} GROUP BY k ORDER BY k"
        ).to_arrow_table()
        keys, *values = (column.to_numpy() for column in table.columns)
        values[-1] = (moment - values[-1]) / DAY_US
        exist = (self.exist_from <= moment)[keys % max(self.size, 1)]
        out: Float = np.stack([value[exist].astype(np.float32) for value in values], axis=1)
        return keys[exist], out
