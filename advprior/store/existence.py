"""From when a user or an ad exists: nobody has features or a prior before, offline as online.

A row of the tables is of today. A user who signed up in May has a row for April's impressions too if nobody asks, and
then a ranker learns from users that a service cannot know yet. So each exists from a moment on: its ``known_from``, or
just after its first event or impression.

pandas is imported by whoever holds a table: the command line imports this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from advprior.store.arrays import Int
from advprior.store.contract import (
    AD_ID,
    ADS,
    ARRIVED,
    EVENTS,
    IMPRESSIONS,
    KNOWN_FROM,
    TIMESTAMP,
    USER_ID,
    USERS,
)
from advprior.store.times import counting_times, micros

if TYPE_CHECKING:
    import pandas as pd

#: Of a user or an ad that nothing tells of.
NEVER = np.iinfo(np.int64).max


def users_exist_from(users: pd.DataFrame, events: pd.DataFrame, impressions: pd.DataFrame | None = None) -> Int:
    """Microseconds since 1970 from which each user exists, int64 [users]; `NEVER` without any row.

    A user exists at a snapshot that is not earlier: their ``known_from``, or else just after their first event counts
    (`advprior.store.times.counting_times`) or their first impression, since a snapshot sees what is strictly before it.

    Parameters
    ----------
    users, events, impressions : DataFrame
        Canonical tables; impressions may be absent.

    Examples
    --------
    >>> import pandas as pd
    >>> at = pd.to_datetime(["1970-01-02", "1970-01-03"], utc=True)
    >>> events = pd.DataFrame({"user_id": ["u", "u"], "timestamp": at[::-1]})
    >>> users = pd.DataFrame({"user_id": ["u", "v"]})
    >>> (users_exist_from(users, events) == [86_400_000_001, NEVER]).tolist()
    [True, True]
    """
    rows = [(events[USER_ID], counting_times(events))]
    if impressions is not None:
        rows.append((impressions[USER_ID], micros(impressions[TIMESTAMP])))
    return _stated(users, _first(users[USER_ID], rows))


def ads_exist_from(ads: pd.DataFrame, impressions: pd.DataFrame) -> Int:
    """Microseconds since 1970 from which each ad exists, int64 [ads]; as `users_exist_from`, by impressions alone."""
    return _stated(ads, _first(ads[AD_ID], [(impressions[AD_ID], micros(impressions[TIMESTAMP]))]))


def load_users_exist_from(folder: Path, ids: Sequence[str]) -> Int:
    """`users_exist_from` of some users of finished canonical tables, int64 [ids]; rows do not pass through memory."""
    users = _stating(folder, USERS, USER_ID)
    rows = [_first_rows(folder, name, USER_ID) for name in (EVENTS, IMPRESSIONS)]
    return _of_ids(ids, users[USER_ID], _stated(users, _first(users[USER_ID], [row for row in rows if row])))


def load_ads_exist_from(folder: Path, ids: Sequence[str]) -> Int:
    """`ads_exist_from` of some ads of finished canonical tables, int64 [ids]; rows do not pass through memory."""
    ads, rows = _stating(folder, ADS, AD_ID), _first_rows(folder, IMPRESSIONS, AD_ID)
    return _of_ids(ids, ads[AD_ID], _stated(ads, _first(ads[AD_ID], [rows] if rows else [])))


def _stating(folder: Path, name: str, key: str) -> pd.DataFrame:
    """Ids of a table, and what it states of when they were known."""
    from advprior.store.tables import parquet_columns, read_parquet

    path = Path(folder) / f"{name}.parquet"
    columns = [column for column in parquet_columns(path) if column in (key, KNOWN_FROM)]
    return read_parquet(path, columns=columns, coded=[key])


def _first_rows(folder: Path, name: str, key: str) -> tuple[pd.Series[Any], Int] | None:
    """Ids that a table has rows of, and the time from which the first row of each counts; None without its file.

    What arrives together keeps its order, a microsecond apart (`advprior.store.times.counting_times`): the first of
    these counts when it arrives.
    """
    import tempfile

    from advprior.store import duck

    path = Path(folder) / f"{name}.parquet"
    if name == IMPRESSIONS and not path.exists():
        return None
    rows = duck.require(path)
    with tempfile.TemporaryDirectory() as spill, duck.connected(Path(spill), duck.FEW_COLUMNS) as connection:
        columns = {row[0] for row in connection.execute(f"DESCRIBE SELECT * FROM {rows}").fetchall()}
        late = name == EVENTS and ARRIVED in columns
        counts = f"greatest({TIMESTAMP}, coalesce({ARRIVED}, {TIMESTAMP}))" if late else TIMESTAMP
        first = connection.execute(
            f"SELECT CAST({key} AS VARCHAR) AS id, min(epoch_us({counts})) AS first FROM {rows} GROUP BY ALL"
        ).df()
    return first["id"], first["first"].to_numpy(np.int64)


def _of_ids(ids: Sequence[str], table_ids: pd.Series[Any], exist_from: Int) -> Int:
    """The moments of some ids of a table; `NEVER` for one that it does not have."""
    import pandas as pd

    of_table = pd.Series(exist_from, index=table_ids.astype(str))
    of_ids: Int = of_table.reindex(list(ids), fill_value=NEVER).to_numpy(np.int64)
    return of_ids


def _first(ids: pd.Series[Any], rows: Sequence[tuple[pd.Series[Any], Int]]) -> Int:
    """Just after the first of the rows of each id."""
    import pandas as pd

    index = pd.Index(ids.astype(object))
    first = np.full(len(index), NEVER)
    for owner, moments in rows:
        codes, owners = pd.factorize(owner)  # of categories, without a text object a row
        place = np.append(index.get_indexer(pd.Index(owners).astype(object)), -1)[codes]
        whose = place >= 0
        np.minimum.at(first, place[whose], moments[whose] + 1)
    return first


def _stated(table: pd.DataFrame, first: Int) -> Int:
    """``known_from`` where the table has it."""
    if KNOWN_FROM not in table:
        return first
    given = table[KNOWN_FROM].notna().to_numpy()
    return np.where(given, micros(table[KNOWN_FROM]), first)
