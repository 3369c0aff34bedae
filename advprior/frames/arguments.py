"""What the Python interface is given: refused with a code and a cure where it is not what is asked for.

In a notebook the commonest slips are another type than a frame (a dictionary of tables, a path), a missing column, a
time that does not parse and a user with two profiles. Each would end somewhere inside pandas.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pandas as pd

from advprior.frames.priors import utc
from advprior.store.contract import TIMESTAMP, USER_ID
from advprior.store.errors import AdvpriorError


def require_frame(table: Any, name: str, columns: tuple[str, ...]) -> pd.DataFrame:
    """The table, where it is a frame with these columns.

    Raises
    ------
    AdvpriorError
        ``PRI081``.
    """
    if not isinstance(table, pd.DataFrame):
        tables = isinstance(table, dict) and bool(table)
        raise AdvpriorError(
            "PRI081",
            f"{name} is no data frame",
            where=name,
            actual=f"a {type(table).__name__}" + (f" of {', '.join(map(str, table))}" if tables else ""),
            expected=f"a pandas.DataFrame with {', '.join(columns)}",
            fix='score_users(predictor, tables["events"], snapshot, profiles=tables["users"])'
            if tables
            else "pandas.read_parquet(path), or DataFrame(...)",
        )
    missing = [column for column in columns if column not in table]
    if missing:
        raise AdvpriorError(
            "PRI081",
            f"{name} lacks {', '.join(missing)}",
            where=name,
            actual=", ".join(map(str, table.columns)),
            expected=", ".join(columns),
            fix="rename the columns: frame.rename(columns={...})",
        )
    return table


def require_moment(moment: datetime | str, name: str) -> pd.Timestamp:
    """A time in UTC.

    Raises
    ------
    AdvpriorError
        ``PRI081`` where it is none.
    """
    reason = repr(moment)
    try:
        stamp: Any = utc(moment)
    except (TypeError, ValueError) as error:
        stamp, reason = None, f"{moment!r}: {error}"
    if pd.isna(stamp):
        raise AdvpriorError(
            "PRI081",
            f"{name} is no time",
            where=name,
            actual=reason[:200],
            expected="a datetime, or an ISO date or time",
            fix=f'{name}="2024-03-01"',
        )
    return pd.Timestamp(stamp)


def require_times(table: pd.DataFrame, name: str, column: str = TIMESTAMP) -> pd.Series[pd.Timestamp]:
    """A column of times, in UTC; only ``timestamp`` needs one in every row.

    Raises
    ------
    AdvpriorError
        ``PRI081`` where it holds no times, or none in some row.
    """
    try:
        times = pd.to_datetime(table[column], utc=True)
        reason = f"{int(times.isna().sum())} rows without one"
    except (TypeError, ValueError, OverflowError) as error:
        times, reason = pd.Series([pd.NaT] * (len(table) + 1)), str(error)
    if times.isna().any() and (column == TIMESTAMP or len(times) != len(table)):
        raise AdvpriorError(
            "PRI081",
            f"{name} has rows without a time",
            where=f"{name}, column {column}",
            actual=reason[:200],
            expected="a time in every row",
            fix="frame.assign(timestamp=pandas.to_datetime(frame.timestamp, utc=True)).dropna(subset=['timestamp'])",
        )
    return times


def require_users(table: pd.DataFrame, name: str, *, once: bool) -> None:
    """Refuse rows without a user, and a user of several rows where there may be one.

    Raises
    ------
    AdvpriorError
        ``PRI081``.
    """
    ids = table[USER_ID]
    wrong = ids.isna() | (ids.astype(str).duplicated() if once else False)
    if wrong.any():
        raise AdvpriorError(
            "PRI081",
            f"{name} has rows without a user" + (", or several of one" if once else ""),
            where=f"{name}, column {USER_ID}",
            actual=f"{int(wrong.sum())} such rows, of user {ids[wrong].iloc[0]}",
            expected="one row a user" if once else "a user in every row",
            fix=f"{name}.dropna(subset=['{USER_ID}'])" + (f".drop_duplicates('{USER_ID}')" if once else ""),
        )
