"""Impressions whose user or ad has no row: those who did not exist yet, and those whose row was lost on the way.

The first is as it is online, and is counted and said. The second is a fault of the store (a view's time to live below
the distance of snapshots, say) that would leave a baseline empty without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.arrays import Bool, Int
from advprior.store.contract import AD_ID, AD_STATS_VIEW, ADS, TIMESTAMP, USER_HISTORY_VIEW, USER_ID, USERS
from advprior.store.existence import NEVER, load_ads_exist_from, load_users_exist_from
from advprior.store.tables import load_time_plan, read_parquet
from advprior.store.times import micros, moment_us
from ranking.frame.counts import codes_of


@dataclass(frozen=True, eq=False)
class Existence:
    """From when users and ads exist, and which snapshot is the newest at any time.

    Attributes
    ----------
    users, ads : pandas.Index
        Ids.
    user_from, ad_from : int array
        Microseconds since 1970 from which each exists.
    snapshots, available : int array [snapshots]
        Microseconds of each snapshot, and from when its rows are there.
    """

    users: pd.Index[Any]
    ads: pd.Index[Any]
    user_from: Int
    ad_from: Int
    snapshots: Int
    available: Int

    @classmethod
    def load(cls, tables: Path) -> Existence:
        """Of canonical tables."""
        plan = load_time_plan(tables)
        snapshots = np.array([moment_us(s) for s in plan.feature_snapshots()], dtype=np.int64)
        users, ads = (
            pd.Index(read_parquet(Path(tables) / f"{name}.parquet", columns=[key])[key].astype(str))
            for name, key in ((USERS, USER_ID), (ADS, AD_ID))
        )
        of_users, of_ads = load_users_exist_from(tables, list(users)), load_ads_exist_from(tables, list(ads))
        return cls(users, ads, of_users, of_ads, snapshots, snapshots + plan.lag // timedelta(microseconds=1))

    def expected(self, shown: pd.DataFrame) -> Expected:
        """Which of some rows of canonical impressions have a user, and an ad, with a row of features."""
        place = np.searchsorted(self.available, micros(shown[TIMESTAMP]), side="right") - 1
        newest = np.append(self.snapshots, -1)[place]
        exists = {}
        for view, key, index, exist_from in (
            (USER_HISTORY_VIEW, USER_ID, self.users, self.user_from),
            (AD_STATS_VIEW, AD_ID, self.ads, self.ad_from),
        ):
            codes, values = pd.factorize(shown[key])
            of_values = np.append(exist_from, NEVER)[codes_of(pd.Index(values).astype(str), index)]
            exists[view] = of_values[codes] <= newest
        return Expected(exists)


@dataclass(frozen=True)
class Expected:
    """Which impressions have a user, and an ad, with a row at the newest snapshot that was available.

    Attributes
    ----------
    by_view : dict of str to bool array [impressions]
        By view of the baseline.
    """

    by_view: dict[str, Bool]

    def counts(self) -> dict[str, int]:
        """Impressions of a user, and of an ad, that did not exist yet."""
        return {view: int((~expected).sum()) for view, expected in self.by_view.items()}

    def lost(self, view: str, snapshot: Any) -> Bool:
        """Impressions that should have a row of a view and have none (datetime64 array of the rows joined)."""
        lost: Bool = self.by_view[view] & np.isnat(snapshot)
        return lost


def not_yet_existing(counts: Mapping[str, int]) -> str | None:
    """What `Expected.counts` has, in words; None where everybody existed.

    >>> not_yet_existing({"user_history": 1200, "ad_stats": 0})
    '  1,200 impressions of users and 0 of ads that did not exist yet at the newest snapshot: no features, as online'
    """
    if not any(counts.values()):
        return None
    users, ads = counts[USER_HISTORY_VIEW], counts[AD_STATS_VIEW]
    return (
        f"  {users:,} impressions of users and {ads:,} of ads that did not exist yet at the newest snapshot: "
        "no features, as online"
    )
