"""Rows that come late: they change no snapshot that is published.

A log that is exported every night brings rows of days ago. Nobody could have known them at the snapshots in between,
and what was published of those is what users were served. A log that says when a row ``arrived`` is believed. Of any
other, the tables that are there already tell: a row that they lack, and that is older than their newest snapshot,
counts from that snapshot on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from advprior.store.arrays import Int
from advprior.store.contract import ADVERTISER_ID, ARRIVED, EVENTS, TIMESTAMP, USER_ID
from advprior.store.runs import MANIFEST
from advprior.store.tables import load_time_plan, read_parquet, write_parquet
from advprior.store.times import exact_times, micros, moment_us

if TYPE_CHECKING:
    import pandas as pd

#: Beside the tables: which rows were late, and since when they count. What a row is known by, and a moment.
LATE_FILE = "late_events.parquet"
#: Beside the tables: rows that were there before and are not any more, where there are any.
GONE_FILE, WAS_LATE = "gone_events.parquet", "was_late"
_ROW, _COUNTS_FROM = "row", "counts_from_us"
_NEVER = np.iinfo(np.int64).max
_ODD = np.uint64(0x9E3779B97F4A7C15)  # spreads the first, second, … of equal rows (2^64 / golden ratio)


@dataclass(frozen=True)
class LateRows:
    """Events with the time from which each counts, and what was found.

    Parameters
    ----------
    events : DataFrame
        With ``arrived`` where a row was ever late.
    ledger : DataFrame
        For `LATE_FILE`.
    came : int
        Rows that came late this time.
    gone : DataFrame
        User, time and advertiser of rows before the newest snapshot that are no longer there, corrected or deleted;
        `WAS_LATE` says which of them had come late.
    """

    events: pd.DataFrame
    ledger: pd.DataFrame
    came: int
    gone: pd.DataFrame

    def save(self, folder: Path) -> None:
        """Write the ledger beside the tables, and the rows that are gone where there are any."""
        write_parquet(self.ledger, Path(folder) / LATE_FILE)
        if len(self.gone):
            write_parquet(self.gone, Path(folder) / GONE_FILE)


def mark_late(events: pd.DataFrame, earlier: Path) -> LateRows | None:
    """Compare events with the tables that were written before; None where there is nothing to tell.

    That is where the log says itself when its rows arrived, and where there are no earlier tables.

    Parameters
    ----------
    events : DataFrame
        Canonical.
    earlier : Path
        The finished tables that these will replace.
    """
    import pandas as pd

    if ARRIVED in events or not (earlier / MANIFEST).is_file():
        return None
    before = read_parquet(earlier / f"{EVENTS}.parquet", columns=[USER_ID, TIMESTAMP, ADVERTISER_ID])
    newest = moment_us(load_time_plan(earlier).feature_snapshots()[-1])
    ledger = pd.DataFrame({_ROW: np.zeros(0, np.uint64), _COUNTS_FROM: np.zeros(0, np.int64)})
    if (earlier / LATE_FILE).is_file():
        ledger = read_parquet(earlier / LATE_FILE)
    rows, earlier_rows = row_numbers(events), row_numbers(before)
    late = ~np.isin(rows, earlier_rows) & (micros(events[TIMESTAMP]) < newest)
    lacking = ~np.isin(earlier_rows, rows) & (micros(before[TIMESTAMP]) < newest)
    gone = before[lacking].assign(**{WAS_LATE: np.isin(earlier_rows[lacking], ledger[_ROW])}).reset_index(drop=True)
    came = pd.DataFrame({_ROW: rows[late], _COUNTS_FROM: np.full(int(late.sum()), newest)})
    ledger = pd.concat([ledger, came], ignore_index=True).drop_duplicates(_ROW)
    ledger = ledger[np.isin(ledger[_ROW], rows)].reset_index(drop=True)
    if not len(ledger):
        return LateRows(events, ledger, 0, gone)
    order = np.argsort(ledger[_ROW].to_numpy())
    place = np.minimum(np.searchsorted(ledger[_ROW].to_numpy()[order], rows), len(order) - 1)
    matches = ledger[_ROW].to_numpy()[order][place] == rows
    counts_from: Int = np.where(matches, ledger[_COUNTS_FROM].to_numpy()[order][place], _NEVER)
    arrived = exact_times(counts_from).set_axis(events.index)
    return LateRows(events.assign(**{ARRIVED: arrived}), ledger, len(came), gone)


def row_numbers(events: pd.DataFrame) -> npt.NDArray[np.uint64]:
    """What each event is known by, uint64 [events]: its user, time and advertiser, and which of such rows it is.

    Other columns may be corrected, or be added to the log, without a row becoming another.

    >>> import pandas as pd
    >>> at = pd.to_datetime(["2024-01-01", "2024-01-01", "2024-01-01"], utc=True)
    >>> events = pd.DataFrame({"user_id": ["u", "u", "v"], "timestamp": at, "advertiser_id": "a", "value": 1.0})
    >>> numbers = row_numbers(events)
    >>> len(set(numbers)), set(row_numbers(events[::-1].assign(value=2.0))) == set(numbers)
    (3, True)
    """
    import pandas as pd

    identity = pd.DataFrame(
        {
            USER_ID: events[USER_ID].astype(str).to_numpy(),
            TIMESTAMP: micros(events[TIMESTAMP]),
            ADVERTISER_ID: events[ADVERTISER_ID].astype(object).where(events[ADVERTISER_ID].notna(), "").astype(str),
        }
    ).reset_index(drop=True)
    digests = pd.util.hash_pandas_object(identity, index=False)
    nth = digests.groupby(digests, sort=False).cumcount().to_numpy().astype(np.uint64)
    numbers: npt.NDArray[np.uint64] = digests.to_numpy() + nth * _ODD
    return numbers
