"""Publishing the baseline's views: profiles, users' histories and ads' popularity, each swapped in by one rename."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.arrays import Int
from advprior.store.contract import (
    ADVERTISER_ID,
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    PROFILE_PREFIX,
    TABLE_FILE,
    USER_HISTORY_VIEW,
    USER_ID,
    USER_PROFILE_VIEW,
    TimePlan,
)
from advprior.store.existence import ads_exist_from, users_exist_from
from advprior.store.progress import tracked
from advprior.store.runs import manifest_digest, new_run, publish_version
from advprior.store.tables import load_label_delay, load_tables, load_time_plan, write_parquet
from advprior.store.times import moment_us
from ranking.frame.history import user_history
from ranking.frame.numbering import HistoryIds
from ranking.frame.popularity import AdCounts, Outcomes, ad_stats, own_rates
from ranking.frame.preflight import features_run_key
from ranking.frame.snapshots import snapshots_to_keep
from ranking.frame.stream_counts import stream_rows
from ranking.frame.views import BASELINE_VIEWS, view_folder


def profile_table(users: pd.DataFrame, exist_from: Int, snapshots: Sequence[datetime], lag: timedelta) -> pd.DataFrame:
    """One row per user, known from the first snapshot at which the user exists: a refresh makes no row before it.

    Parameters
    ----------
    users : DataFrame
    exist_from : int array [users]
        See `advprior.store.existence.users_exist_from`.
    snapshots : sequence of datetime
        Every snapshot of the data, the oldest too.
    lag : timedelta
    """
    grid = np.array([moment_us(s) for s in snapshots], dtype=np.int64)
    first = np.searchsorted(grid, exist_from)
    exists = first < len(grid)
    moments = pd.DatetimeIndex([s + lag for s in snapshots]).as_unit("us")[first[exists]]
    available = pd.Series(moments)
    users = users[exists].reset_index(drop=True)
    profile = users[[c for c in users.columns if c.startswith(PROFILE_PREFIX)]]
    if profile.empty:  # a view needs a feature: one that nobody has stands for none
        profile = pd.DataFrame({f"{PROFILE_PREFIX}none": pd.Series([None] * len(users), dtype=object)})
    keys = {USER_ID: users[USER_ID], EVENT_TIMESTAMP: available, CREATED_TIMESTAMP: available}
    return pd.concat([pd.DataFrame(keys), profile], axis=1)


@dataclass(frozen=True)
class _Source:
    """Canonical tables, and what several views are computed from: worked out once."""

    tables: dict[str, pd.DataFrame]
    plan: TimePlan
    label_delay: timedelta

    @cached_property
    def ids(self) -> HistoryIds:
        return HistoryIds(self.tables["advertisers"][ADVERTISER_ID].tolist(), self.tables["ads"], self.ads_from)

    @cached_property
    def ads_from(self) -> Int:
        return ads_exist_from(self.tables["ads"], self.tables["impressions"])

    @cached_property
    def snapshots(self) -> list[datetime]:
        return snapshots_to_keep(self.plan)

    @cached_property
    def outcomes(self) -> Outcomes:
        return Outcomes.of(self.tables["users"], self.tables["ads"], self.tables["impressions"], self.label_delay)

    @cached_property
    def users_from(self) -> Int:
        return users_exist_from(self.tables["users"], self.tables["events"], self.tables["impressions"])

    def table(self, view: str, folder: Path) -> pd.DataFrame:
        """The table of one view; what lies beside it goes into the folder."""
        users, ads, events = (self.tables[name] for name in ("users", "ads", "events"))
        if view == USER_PROFILE_VIEW:
            return profile_table(users, self.users_from, self.plan.feature_snapshots(), self.plan.lag)
        if view == USER_HISTORY_VIEW:
            streams = stream_rows(users, self.ids, self.tables, self.label_delay)
            history = user_history(users, self.ids, streams, self.snapshots, self.plan.lag, folder)
            rates: dict[str, Any] = dict(own_rates(len(users), self.outcomes, self.snapshots))
            return self._existing(history.assign(**rates), self.users_from)
        counts = AdCounts(ads, self.ids, events, self.outcomes)
        return self._existing(ad_stats(ads, counts, self.snapshots, self.plan.lag), self.ads_from)

    def _existing(self, table: pd.DataFrame, exist_from: Int) -> pd.DataFrame:
        """A snapshot-major table less the rows of who does not exist yet at their snapshot."""
        moments = np.array([moment_us(s) for s in self.snapshots], dtype=np.int64)
        exists = (exist_from <= moments[:, None]).ravel()
        return table if exists.all() else table[exists].reset_index(drop=True)


def publish_features(tables: Path, repo: Path) -> dict[str, int]:
    """Build and publish ``user_profile``, ``user_history`` and ``ad_stats``; returns rows per view.

    Each view is written whole beside the old one and then swapped in by one rename.
    """
    loaded = load_tables(tables, "users", "advertisers", "ads", "events", "impressions")
    whole = {name: table.reset_index(drop=True) for name, table in loaded.items()}
    source = _Source(whole, load_time_plan(tables), load_label_delay(tables))
    inputs = {"tables": manifest_digest(tables)}
    rows = {}
    for view in tracked(BASELINE_VIEWS, "features", "view"):
        link = view_folder(repo, view)
        building = link.parent / ".building" / view
        key = features_run_key(tables, view)
        with new_run(building, f"rank features {view}", config={}, inputs=inputs, key=key) as run:
            table = source.table(view, run.path)
            write_parquet(table, run.path / TABLE_FILE)
            run.facts.update(
                rows=len(table),
                snapshots=[s.isoformat() for s in source.snapshots],
                snapshot_every_s=source.plan.snapshot_every.total_seconds(),
                lag_s=source.plan.lag.total_seconds(),
            )
            rows[view] = len(table)
        publish_version(building, link)
        with suppress(OSError):  # an interrupted run may have left something there
            building.parent.rmdir()
    return rows
