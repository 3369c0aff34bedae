"""Each user's own history as of every snapshot: the honest baseline that a prior must beat.

Everything is computed strictly before a snapshot and available a stated lag later. A user's own counts
(per stream and level, see `ranking.frame.streams`) are sparse and large, so they stay out of the point-in-time join:
the table carries a pointer (``history_row``), and the counts lie beside it as sorted arrays that training maps into
memory and searches (`ranking.frame.gather`). For serving the same counts stand in the user's row as lists, which the
join leaves out and materializing takes along (`ranking.service.histories`).

An *occasion* is one (user, time): the rows of one visit count once.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.arrays import Int
from advprior.store.contract import CATALOG_VERSION, HISTORY_ROW, USER_ID
from advprior.store.runs import write_json
from advprior.store.times import DAY_US, moment_us
from ranking.frame.counts import CountsBefore
from ranking.frame.fading import fading
from ranking.frame.numbering import HISTORY_IDS, HistoryIds
from ranking.frame.snapshots import Scalars, time_columns
from ranking.frame.stream_counts import LevelCounts, StreamRows
from ranking.frame.streams import EVENTS, LEVELS, WINDOWS, token_column

_PLURAL = {"advertiser": "advertisers", "category": "categories", "ad": "ads", "department": "departments"}


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


def _add_activity(scalars: Scalars, events: StreamRows, moments: Sequence[int]) -> None:
    """Occasions, days since the last and the first, and value, per user and snapshot."""
    occasions = CountsBefore(events.owner, events.times, events.users, distinct=True)
    first = occasions.first()
    for moment in moments:
        for name, count in windowed(occasions, moment).items():
            scalars.add(f"activity_occasions_{name}", count)
        last = occasions.last_before(moment)
        scalars.add("activity_days_since_last", np.where(last >= 0, (moment - last) / DAY_US, np.nan))
        scalars.add("activity_days_since_first", np.where(last >= 0, (moment - first) / DAY_US, np.nan))
        before = events.times < moment
        for name, since in (("4w", moment - WINDOWS["4w"] * DAY_US), ("all", np.iinfo(np.int64).min)):
            inside = before & (events.times >= since)
            value = np.bincount(events.owner[inside], weights=events.value[inside], minlength=events.users)
            scalars.add(f"activity_value_{name}", value)


def _add_distinct(scalars: Scalars, level: str, counts: LevelCounts, moments: Sequence[int]) -> None:
    """Distinct ids of a level per user and snapshot, ever and in the last four weeks."""
    owner, users = counts.groups // counts.size, counts.rows.users
    for moment in moments:
        total, exist = counts.before(moment), counts.exist(moment)
        recent = total - counts.before(moment - WINDOWS["4w"] * DAY_US)
        for window, count in (("all", total), ("4w", recent)):
            distinct = np.bincount(owner[exist & (count > 0)], minlength=users)
            scalars.add(f"activity_distinct_{_PLURAL[level]}_{window}", distinct)


def _tokens(counts: LevelCounts, keys: Sequence[Int], moments: Sequence[int]) -> Any:
    """What the towers read of each key of each snapshot: float32 [keys · fades]."""
    times = counts.times
    parts = [
        fading((moment - times) / DAY_US, counts.place, len(counts.groups))[np.searchsorted(counts.groups, key)]
        for moment, key in zip(moments, keys, strict=True)
    ]
    return np.concatenate(parts).ravel()


def _write_level(level: str, counts: LevelCounts, moments: Sequence[int], folder: Path) -> dict[str, pd.Series[Any]]:
    """Write the keys and values of one level; returns its list columns of users' rows."""
    import pyarrow as pa

    stream, size, n = counts.rows.stream, counts.size, counts.rows.users
    keys, parts = zip(*map(counts.at, moments), strict=True)
    values = np.concatenate(parts)
    whole = np.concatenate([key + index * n * size for index, key in enumerate(keys)])
    keys_file, values_file = stream.files(level)
    np.save(folder / keys_file, whole)
    np.save(folder / values_file, values)
    lengths = np.bincount(whole // size, minlength=n * len(moments))
    ids_name, values_name = stream.online(level)
    columns = {
        ids_name: list_column(lengths, (whole % size).astype(np.int32), pa.int32()),
        # the same memory as what was written
        values_name: list_column(lengths * values.shape[1], values.ravel(), pa.float32()),
    }
    if stream is EVENTS and level in LEVELS:
        tokens = _tokens(counts, keys, moments)
        width = len(tokens) // max(len(whole), 1)
        columns[token_column(level)] = list_column(lengths * width, tokens, pa.float32())
    return columns


def user_history(
    users: pd.DataFrame,
    ids: HistoryIds,
    streams: Sequence[StreamRows],
    snapshots: Sequence[datetime],
    lag: timedelta,
    folder: Path,
) -> pd.DataFrame:
    """Write each level's keys and values into ``folder`` and return the table of scalars, pointers and lists.

    Rows are snapshot-major: ``history_row`` = snapshot index · users + user index.

    Parameters
    ----------
    users : DataFrame
    ids : HistoryIds
    streams : sequence of StreamRows
        Of these users; events are the first.
    snapshots : sequence of datetime
    lag : timedelta
    folder : Path
    """
    n = len(users)
    moments = [moment_us(s) for s in snapshots]
    scalars = Scalars()
    _add_activity(scalars, streams[0], moments)
    lists: dict[str, pd.Series[Any]] = {}
    for rows in streams:
        for level, numbering in rows.stream.levels_in(ids.sizes).items():
            counts = LevelCounts(rows, numbering, ids)
            if rows.stream is EVENTS:
                _add_distinct(scalars, level, counts, moments)
            lists |= _write_level(level, counts, moments, folder)
    catalog = ids.to_json(rows.stream for rows in streams)
    write_json(folder / HISTORY_IDS, catalog)
    return pd.DataFrame(
        {
            USER_ID: np.tile(users[USER_ID].to_numpy(), len(snapshots)),
            **time_columns(snapshots, lag, n),
            HISTORY_ROW: np.arange(n * len(snapshots), dtype=np.int64),
            CATALOG_VERSION: catalog["version"],
            **scalars.columns(),
            **lists,
        }
    )
