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
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.arrays import Int
from advprior.store.contract import CATALOG_VERSION, HISTORY_ROW, USER_ID
from advprior.store.times import DAY_US, moment_us
from ranking.frame.counts import CountsBefore
from ranking.frame.fading import fading
from ranking.frame.history_files import LevelFiles
from ranking.frame.numbering import HistoryIds
from ranking.frame.snapshots import time_columns
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
    files : LevelFiles
    rows : StreamRows
    ids : HistoryIds
    """

    def __init__(self, files: LevelFiles, rows: StreamRows, ids: HistoryIds) -> None:
        self._files, self._level, self._rows = files, files.level, rows
        self._counts = LevelCounts(rows, files.numbering, ids)

    @property
    def _has_tokens(self) -> bool:
        return self._rows.stream is EVENTS and self._level in LEVELS

    def at(self, moment: int, first_row: int) -> dict[str, Any]:
        """Columns of a snapshot whose first user has this row; events tell of distinct ids too."""
        import pyarrow as pa

        stream, size, users = self._rows.stream, self._counts.size, self._rows.users
        keys, values = self._counts.at(moment)
        self._files.append(keys + first_row * size, values)
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


@dataclass(frozen=True)
class CountedSnapshots:
    """Which snapshots are counted, and under which row numbers: snapshot index · users + user index.

    Attributes
    ----------
    snapshots : sequence of datetime
        All of the publication.
    lag : timedelta
        After which a row is available.
    version : str
        Of the catalog of ids.
    start : int
        The first that is counted; those before it stand.
    users : int
        Of the publication.
    first_user : int
        Index of the first of those whose rows are counted.
    """

    snapshots: Sequence[datetime]
    lag: timedelta
    version: str
    start: int
    users: int
    first_user: int = 0

    def of_users_from(self, first_user: int) -> CountedSnapshots:
        """The same of the users from one on."""
        return replace(self, first_user=first_user)

    def __iter__(self) -> Iterator[tuple[datetime, int]]:
        """Each snapshot that is counted, with the row of the first user."""
        for index in range(self.start, len(self.snapshots)):
            yield self.snapshots[index], index * self.users + self.first_user


def counted_parts(
    users: pd.DataFrame,
    streams: Sequence[StreamRows],
    ids: HistoryIds,
    snapshots: CountedSnapshots,
    files: Sequence[LevelFiles],
) -> Iterator[pd.DataFrame]:
    """Rows of some users, snapshot by snapshot; each level's keys and values go into its files.

    Parameters
    ----------
    users : DataFrame
    streams : sequence of StreamRows
        Of these users; events are the first.
    ids : HistoryIds
    snapshots : CountedSnapshots
    files : sequence of LevelFiles
    """
    if not list(snapshots):
        return
    rows_of = {rows.stream: rows for rows in streams}
    levels = [_Level(of_level, rows_of[of_level.stream], ids) for of_level in files]
    activity = _Activity(streams[0])
    for snapshot, first_row in snapshots:
        moment, columns = moment_us(snapshot), dict[str, Any]()
        columns |= activity.at(moment)
        for level in levels:
            columns |= level.at(moment, first_row)
        lists = {name: column for name, column in columns.items() if isinstance(column, pd.Series)}
        yield pd.DataFrame(
            {
                USER_ID: users[USER_ID].to_numpy(),
                **time_columns([snapshot], snapshots.lag, len(users)),
                HISTORY_ROW: np.arange(first_row, first_row + len(users), dtype=np.int64),
                CATALOG_VERSION: snapshots.version,
                **{name: c.astype(np.float32) for name, c in columns.items() if name not in lists},
                **lists,
            }
        )
