"""Each user's own history as of every snapshot: the honest baseline that a prior must beat.

Everything is computed strictly before a snapshot and available a stated lag later. A user's own counts
(per advertiser, category and ad) are sparse and large, so they stay out of the point-in-time join: the table
carries a pointer (``history_row``), and the counts lie beside it as sorted arrays that training maps into
memory and searches (`ranking.frame.gather`). For serving the same counts stand in the user's row as lists, which the
join leaves out and materializing takes along (`ranking.service.histories`).

An *occasion* is one (user, time): the rows of one basket count once. "Ad" in a history means the ad's
advertiser × category, which is what an event can be matched to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.arrays import Float, Int
from advprior.store.contract import (
    AD_ID,
    ADVERTISER_ID,
    CATALOG_VERSION,
    CATEGORY,
    HISTORY_ROW,
    TIMESTAMP,
    USER_ID,
    VALUE,
)
from advprior.store.runs import digest, write_json
from advprior.store.times import DAY_US, micros, moment_us
from ranking.frame.counts import CountsBefore, codes_of, compact
from ranking.frame.fading import fading
from ranking.frame.snapshots import Scalars, time_columns

WINDOWS = {"1w": 7, "4w": 28, "12w": 84}  # days; "all" is the fourth
LEVELS = ("advertiser", "category", "ad")
_PLURAL = {"advertiser": "advertisers", "category": "categories", "ad": "ads"}
HISTORY_IDS = "history_ids.json"


def history_files(level: str) -> tuple[str, str]:
    """Names of a level's sorted keys (int64) and values (float32 [n, 5]: counts 1w, 4w, 12w, all; recency in days)."""
    return f"history_{level}_keys.npy", f"history_{level}_values.npy"


def online_columns(level: str) -> tuple[str, str]:
    """List columns of a level in a user's row: ids (int32 [n], ascending), values (float32 [5n], id by id)."""
    return f"history_{level}_ids", f"history_{level}_values"


def token_column(level: str) -> str:
    """List column of a level in a user's row: what the towers read of each id, float32 [2n], see `frame.fading`."""
    return f"history_{level}_tokens"


class HistoryIds:
    """The catalogs behind history keys, and the ids of each ad.

    Attributes
    ----------
    sizes : dict[str, int]
        Number of ids per level; a key is ``history_row · size + id``.
    ads : pandas.DataFrame
        Indexed by ad_id; columns advertiser, category, ad: ids (−1: the ad has no such thing).
    """

    def __init__(self, advertisers: Sequence[str], ads: pd.DataFrame) -> None:
        self.advertisers = list(advertisers)
        self.categories = sorted(ads[CATEGORY].dropna().unique().tolist())
        a, c = codes_of(ads[ADVERTISER_ID], self.advertisers), codes_of(ads[CATEGORY], self.categories)
        pairs = np.unique((a * (len(self.categories) + 1) + c)[(a >= 0) & (c >= 0)])
        self._pairs = pairs
        self.sizes = {"advertiser": len(self.advertisers), "category": len(self.categories), "ad": len(pairs)}
        self.ads = pd.DataFrame(
            {"advertiser": a, "category": c, "ad": self.pair_codes(a, c)}, index=pd.Index(ads[AD_ID], name=AD_ID)
        )

    def pair_codes(self, advertiser: Int, category: Int) -> Int:
        """Ids of advertiser × category, −1 where no ad has it."""
        wanted = advertiser * (len(self.categories) + 1) + category
        codes = codes_of(wanted, self._pairs)
        return np.where((advertiser >= 0) & (category >= 0), codes, -1)

    def event_codes(self, events: pd.DataFrame) -> dict[str, Int]:
        """Ids of each event per level, −1 where it has none."""
        a, c = codes_of(events[ADVERTISER_ID], self.advertisers), codes_of(events[CATEGORY], self.categories)
        return {"advertiser": a, "category": c, "ad": self.pair_codes(a, c)}

    def to_json(self) -> dict[str, Any]:
        """What lies beside the arrays, so that a reader needs nothing else; ``version`` is the digest of the rest."""
        about = {
            "sizes": self.sizes,
            "advertisers": self.advertisers,
            "categories": self.categories,
            "ads": {AD_ID: self.ads.index.tolist(), **{level: self.ads[level].tolist() for level in LEVELS}},
            "values": [*WINDOWS, "all", "recency_days"],
        }
        return {"version": digest(about), **about}


def load_history_ids(folder: Path) -> dict[str, Any]:
    """The catalogs beside a published history."""
    ids: dict[str, Any] = json.loads((Path(folder) / HISTORY_IDS).read_text())
    return ids


def windowed(counts: CountsBefore, moment: int) -> dict[str, Int]:
    """Rows per group in the last 1, 4, 12 weeks and ever, strictly before ``moment``."""
    total = counts.before(moment)
    recent = {name: total - counts.before(moment - days * DAY_US) for name, days in WINDOWS.items()}
    return {**recent, "all": total}


@dataclass(frozen=True)
class UserEvents:
    """Events by user: what every part of a history is counted from.

    Attributes
    ----------
    owner : int array [events]
        Place of the user.
    times : int array [events]
        Microseconds since 1970.
    spent : float64 [events]
        Value of each event, 0 where it has none.
    users : int
    """

    owner: Int
    times: Int
    spent: Any
    users: int

    @classmethod
    def of(cls, users: pd.DataFrame, events: pd.DataFrame) -> UserEvents:
        """From canonical tables."""
        spent = np.nan_to_num(events[VALUE].to_numpy(np.float64)) if VALUE in events else np.zeros(len(events))
        return cls(codes_of(events[USER_ID], users[USER_ID]), micros(events[TIMESTAMP]), spent, len(users))


def user_level_counts(
    events: UserEvents, codes: Int, size: int, moments: Sequence[int]
) -> Iterator[tuple[Int, Float, Int, Int]]:
    """Per snapshot: sorted keys (user · size + id), values [n, 5], and distinct ids per user ever and in 4 weeks."""
    whole = codes >= 0
    groups, rows = compact((events.owner[whole], events.users), (codes[whole], size))
    counts = CountsBefore(rows, events.times[whole], len(groups), distinct=True)
    owner = groups // size
    for moment in moments:
        by_window = windowed(counts, moment)
        seen = by_window["all"] > 0
        recency = (moment - counts.last_before(moment)) / DAY_US
        values = np.stack([*(by_window[name] for name in (*WINDOWS, "all")), recency], axis=1)[seen].astype(np.float32)
        ever = np.bincount(owner[seen], minlength=events.users)
        recent = np.bincount(owner[by_window["4w"] > 0], minlength=events.users)
        yield groups[seen], values, ever, recent


def list_column(parts: Sequence[tuple[Int, Any]], kind: Any) -> pd.Series[Any]:
    """A column of lists from (length of each row's list, all their values) parts.

    Examples
    --------
    >>> import pyarrow as pa
    >>> column = list_column([(np.array([2, 0]), np.array([5, 7])), (np.array([1]), np.array([9]))], pa.int32())
    >>> pa.array(column).to_pylist()
    [[5, 7], [], [9]]
    """
    import pyarrow as pa

    lengths = np.concatenate([length for length, _ in parts])
    values = np.concatenate([value for _, value in parts])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)  # int32 ends at 2 billion counts
    lists = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values, kind))
    return pd.Series(lists, dtype=pd.ArrowDtype(lists.type))


def _add_activity(scalars: Scalars, events: UserEvents, moments: Sequence[int]) -> None:
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
            value = np.bincount(events.owner[inside], weights=events.spent[inside], minlength=events.users)
            scalars.add(f"activity_value_{name}", value)


def _write_level(
    level: str, codes: Int, ids: HistoryIds, events: UserEvents, moments: Sequence[int], folder: Path
) -> tuple[Scalars, dict[str, pd.Series[Any]]]:
    """Write the keys and values of one level; returns its scalars and its list columns of users' rows."""
    import pyarrow as pa

    size, n = ids.sizes[level], events.users
    scalars = Scalars()
    keys: list[Int] = []
    values_of: list[Float] = []
    lists: tuple[list[tuple[Int, Any]], ...] = ([], [], [])  # ids, values, tokens
    whole = codes >= 0
    groups, place = compact((events.owner[whole], n), (codes[whole], size))
    for index, (key, values, ever, recent) in enumerate(user_level_counts(events, codes, size, moments)):
        keys.append(key + index * n * size)
        values_of.append(values)
        tokens = fading((moments[index] - events.times[whole]) / DAY_US, place, len(groups))
        tokens = tokens[np.searchsorted(groups, key)]
        lengths = np.bincount(key // size, minlength=n)
        held: tuple[Any, ...] = (key % size, values, tokens)
        for column, array in zip(lists, held, strict=True):
            width = array.size // max(len(key), 1)
            column.append((lengths * width, array.ravel()))
        scalars.add(f"activity_distinct_{_PLURAL[level]}_all", ever)
        scalars.add(f"activity_distinct_{_PLURAL[level]}_4w", recent)
    keys_file, values_file = history_files(level)
    np.save(folder / keys_file, np.concatenate(keys))
    np.save(folder / values_file, np.concatenate(values_of))
    names = (*online_columns(level), token_column(level))
    kinds = (pa.int32(), pa.float32(), pa.float32())
    return scalars, {n: list_column(c, kind) for n, c, kind in zip(names, lists, kinds, strict=True)}


def user_history(
    users: pd.DataFrame,
    ids: HistoryIds,
    events: pd.DataFrame,
    snapshots: Sequence[datetime],
    lag: timedelta,
    folder: Path,
) -> pd.DataFrame:
    """Write each level's keys and values into ``folder`` and return the table of scalars, pointers and lists.

    Rows are snapshot-major: ``history_row`` = snapshot index · users + user index.
    """
    n = len(users)
    moments = [moment_us(s) for s in snapshots]
    by_user = UserEvents.of(users, events)
    scalars = Scalars()
    _add_activity(scalars, by_user, moments)
    lists: dict[str, pd.Series[Any]] = {}
    for level, codes in ids.event_codes(events).items():
        of_level, columns = _write_level(level, codes, ids, by_user, moments, folder)
        scalars.parts |= of_level.parts
        lists |= columns
    catalog = ids.to_json()
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
