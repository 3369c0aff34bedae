"""Impressions whose user or ad has no row: those who did not exist yet, and those whose row was lost on the way.

The first is as it is online, and is counted and said. The second is a fault of the store (a view's time to live below
the distance of snapshots, say) that would leave a baseline empty without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.arrays import Bool
from advprior.store.contract import AD_ID, AD_STATS_VIEW, TIMESTAMP, USER_HISTORY_VIEW, USER_ID
from advprior.store.existence import load_ads_exist_from, load_users_exist_from
from advprior.store.tables import load_time_plan
from advprior.store.times import micros, moment_us


@dataclass(frozen=True)
class Expected:
    """Which impressions have a user, and an ad, with a row at the newest snapshot that was available.

    Attributes
    ----------
    by_view : dict of str to bool array [impressions]
        By view of the baseline.
    """

    by_view: dict[str, Bool]

    @classmethod
    def of(cls, tables: Path, shown: pd.DataFrame) -> Expected:
        """From canonical tables, for some of their impressions.

        Parameters
        ----------
        tables : Path
        shown : DataFrame
            Rows of canonical impressions.
        """
        plan = load_time_plan(tables)
        snapshots = plan.feature_snapshots()
        available = np.array([moment_us(s + plan.lag) for s in snapshots], dtype=np.int64)
        place = np.searchsorted(available, micros(shown[TIMESTAMP]), side="right") - 1
        newest = np.append([moment_us(s) for s in snapshots], -1)[place]
        users, ads = (pd.factorize(shown[key].astype(str)) for key in (USER_ID, AD_ID))
        user_from = load_users_exist_from(tables, list(users[1]))[users[0]]
        ad_from = load_ads_exist_from(tables, list(ads[1]))[ads[0]]
        return cls({USER_HISTORY_VIEW: user_from <= newest, AD_STATS_VIEW: ad_from <= newest})

    def counts(self) -> dict[str, int]:
        """Impressions of a user, and of an ad, that did not exist yet."""
        return {view: int((~expected).sum()) for view, expected in self.by_view.items()}

    def lost(self, view: str, snapshot: Any) -> int:
        """Impressions that should have a row of a view and have none (datetime64 array of the rows joined)."""
        return int((self.by_view[view] & np.isnat(snapshot)).sum())


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
