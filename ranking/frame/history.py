"""Each user's own history as of every snapshot: the honest baseline that a prior must beat.

Everything is computed strictly before a snapshot and available a stated lag later. A user's own counts
(per stream and level, see `ranking.frame.streams`) are sparse and large, so they stay out of the point-in-time join:
the table carries a pointer (``history_row``), and the counts lie beside it as sorted arrays that training maps into
memory and searches (`ranking.frame.gather`). For serving the same counts stand in the user's row as lists, which the
join leaves out and materializing takes along (`ranking.service.histories`).

An *occasion* is one (user, time): the rows of one visit count once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.arrays import Int
from advprior.store.contract import CATALOG_VERSION, HISTORY_ROW, USER_ID
from advprior.store.runs import write_json
from advprior.store.times import DAY_US, moment_us
from ranking.frame.appended import AppendedArray
from ranking.frame.counts import CountsBefore
from ranking.frame.fading import fading
from ranking.frame.numbering import HISTORY_IDS, HistoryIds
from ranking.frame.snapshots import time_columns
from ranking.frame.standing import Standing, StandingHistory, StandingRows
from ranking.frame.stream_counts import LevelCounts, StreamRows
from ranking.frame.streams import EVENTS, LEVELS, WINDOWS, token_column

_PLURAL = {
    "advertiser": "advertisers",
    "category": "categories",
    "ad": "ads",
    "department": "departments",
}  # of the baseline


def windowed(counts: CountsBefore, moment: int) -> dict[str, Int]:
    """Rows per group in the last 1, 4, 12 weeks and ever, strictly before ``moment``."""
    total = counts.before(moment)
    recent = {name: total - counts.before(moment - days * DAY_US) for name, days in WINDOWS.items()}
    return {**recent, "all": total}


def list_column(lengths: Int, values: Any, kind: Any) -> pd.Series[Any]:
    """A column of lists from the length of each row's list, and all their values.

    Examples
    --------
    >>> import pyarrow as pa
    >>> pa.array(list_column(np.array([2, 0, 1]), np.array([5, 7, 9]), pa.int32())).to_pylist()
    [[5, 7], [], [9]]
    """
    import pyarrow as pa

    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)  # int32 ends at 2 billion counts
    lists = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values, kind))
    return pd.Series(lists, dtype=pd.ArrowDtype(lists.type))


class _Activity:
    """Occasions, days since the last and the first, and value of each user, as of any snapshot."""

    def __init__(self, events: StreamRows) -> None:
        self._events = events
        self._occasions = CountsBefore(events.owner, events.times, events.users, distinct=True)
        self._first = self._occasions.first()

    def at(self, moment: int) -> dict[str, Any]:
        """Columns [users]."""
        events = self._events
        columns: dict[str, Any] = {
            f"activity_occasions_{name}": count for name, count in windowed(self._occasions, moment).items()
        }
        last = self._occasions.last_before(moment)
        columns["activity_days_since_last"] = np.where(last >= 0, (moment - last) / DAY_US, np.nan)
        columns["activity_days_since_first"] = np.where(last >= 0, (moment - self._first) / DAY_US, np.nan)
        before = events.times < moment
        for name, since in (("4w", moment - WINDOWS["4w"] * DAY_US), ("all", np.iinfo(np.int64).min)):
            inside = before & (events.times >= since)
            value = np.bincount(events.owner[inside], weights=events.value[inside], minlength=events.users)
            columns[f"activity_value_{name}"] = value
        return columns


class _Level:
    """One level of a stream: its counts as of any snapshot, appended to the level's files and as lists of users' rows.

    Parameters
    ----------
    level, numbering : str
    rows : StreamRows
    ids : HistoryIds
    folder : Path
    """

    def __init__(self, level: str, numbering: str, rows: StreamRows, ids: HistoryIds, folder: Path) -> None:
        self._level, self._numbering, self._rows = level, numbering, rows
        self._counts = LevelCounts(rows, numbering, ids)
        keys, values = rows.stream.files(level)
        self._keys = AppendedArray(folder / keys, np.dtype(np.int64))
        self._values = AppendedArray(folder / values, np.dtype(np.float32), len(rows.stream.quantities))

    @property
    def _has_tokens(self) -> bool:
        return self._rows.stream is EVENTS and self._level in LEVELS

    def at(self, moment: int, first_row: int) -> dict[str, Any]:
        """Columns of a snapshot whose first user has this row; events tell of distinct ids too."""
        import pyarrow as pa

        stream, size, users = self._rows.stream, self._counts.size, self._rows.users
        keys, values = self._counts.at(moment)
        self._keys.append(keys + first_row * size)
        self._values.append(values)
        owner, columns = keys // max(size, 1), dict[str, Any]()
        if stream is EVENTS and self._level in _PLURAL:
            recent = values[:, stream.quantities.index("4w")] > 0
            for window, counted in (("all", owner), ("4w", owner[recent])):
                name = f"activity_distinct_{_PLURAL[self._level]}_{window}"
                columns[name] = np.bincount(counted, minlength=users)
        lengths = np.bincount(owner, minlength=users)
        ids_name, values_name = stream.online(self._level)
        columns[ids_name] = list_column(lengths, (keys % max(size, 1)).astype(np.int32), pa.int32())
        columns[values_name] = list_column(lengths * values.shape[1], values.ravel(), pa.float32())
        if self._has_tokens:
            tokens = self._tokens(moment, keys)
            columns[token_column(self._level)] = list_column(lengths * tokens.shape[1], tokens.ravel(), pa.float32())
        return columns

    def _tokens(self, moment: int, keys: Int) -> Any:
        """What the towers read of each key: float32 [keys, fades]."""
        counts = self._counts
        before = slice(int(np.searchsorted(counts.times, moment)))
        faded = fading((moment - counts.times[before]) / DAY_US, counts.place[before], len(counts.keys))
        return faded[np.searchsorted(counts.keys, keys)]

    def take_over(self, rows: StandingRows) -> None:
        """Append the counts of published rows."""
        for keys, values in rows.counts(self._rows.stream.files(self._level), self._numbering):
            self._keys.append(keys)
            self._values.append(values)

    def close(self) -> None:
        self._keys.close()
        self._values.close()


def history_parts(
    users: pd.DataFrame,
    streams: Sequence[StreamRows],
    snapshots: Sequence[datetime],
    lag: timedelta,
    folder: Path,
    standing: StandingHistory,
) -> Iterator[Any]:
    """The table of scalars, pointers and lists, part by part; each level's keys and values go into ``folder``.

    Rows are snapshot-major: ``history_row`` = snapshot index · users + user index. First come those of the snapshots
    that stand, as Arrow tables, then each other snapshot as a data frame. Memory is that of one, or of `ROWS` rows.

    Parameters
    ----------
    users : DataFrame
    streams : sequence of StreamRows
        Of these users; events are the first.
    snapshots : sequence of datetime
    lag : timedelta
    folder : Path
    standing : StandingHistory
        Of the same users, with the numbering that is counted by.
    """
    n, ids = len(users), standing.ids
    catalog = ids.to_json(rows.stream for rows in streams)
    write_json(folder / HISTORY_IDS, catalog)
    levels = [
        _Level(level, numbering, rows, ids, folder)
        for rows in streams
        for level, numbering in rows.stream.levels_in(ids.sizes).items()
    ]
    for table, rows in standing.parts(catalog["version"], [rows.stream for rows in streams]):
        for level in levels:
            level.take_over(rows)
        yield table
    activity = _Activity(streams[0])
    for index in range(len(standing.snapshots), len(snapshots)):
        moment, columns = moment_us(snapshots[index]), dict[str, Any]()
        columns |= activity.at(moment)
        for level in levels:
            columns |= level.at(moment, index * n)
        lists = {name: column for name, column in columns.items() if isinstance(column, pd.Series)}
        yield pd.DataFrame(
            {
                USER_ID: users[USER_ID].to_numpy(),
                **time_columns([snapshots[index]], lag, n),
                HISTORY_ROW: np.arange(index * n, (index + 1) * n, dtype=np.int64),
                CATALOG_VERSION: catalog["version"],
                **{name: c.astype(np.float32) for name, c in columns.items() if name not in lists},
                **lists,
            }
        )
    for level in levels:
        level.close()


def user_history(
    users: pd.DataFrame,
    ids: HistoryIds,
    streams: Sequence[StreamRows],
    snapshots: Sequence[datetime],
    lag: timedelta,
    folder: Path,
) -> pd.DataFrame:
    """The whole table of `history_parts`, counted anew."""
    nothing = StandingHistory(Standing(folder, []), ids, users[USER_ID])
    parts: Iterator[pd.DataFrame] = history_parts(users, streams, snapshots, lag, folder, nothing)
    return pd.concat(parts, ignore_index=True)
