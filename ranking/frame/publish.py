"""Publishing the baseline's views: profiles, users' histories and ads' popularity, each swapped in by one rename."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from advprior.store.arrays import Int
from advprior.store.contract import (
    AD_ID,
    ADS,
    ADVERTISER_ID,
    ADVERTISERS,
    ARRIVED,
    CATEGORY,
    CLICKED,
    CREATED_TIMESTAMP,
    DEPARTMENT,
    EVENT_TIMESTAMP,
    EVENTS,
    IMPRESSIONS,
    LABEL,
    PROFILE_PREFIX,
    TABLE_FILE,
    TIMESTAMP,
    USER_HISTORY_VIEW,
    USER_ID,
    USER_PROFILE_VIEW,
    USERS,
    VALUE,
    TimePlan,
)
from advprior.store.existence import ads_exist_from, users_exist_from
from advprior.store.progress import tracked
from advprior.store.runs import manifest_digest, new_run, publish_version
from advprior.store.tables import (
    TABLES_FIX,
    load_label_delay,
    load_tables,
    load_time_plan,
    read_parquet,
    require_impressions,
    write_parquet_parts,
)
from advprior.store.times import moment_us
from ranking.frame.history import history_parts
from ranking.frame.numbering import HistoryIds
from ranking.frame.popularity import AdCounts, Outcomes, ad_stats, own_rates
from ranking.frame.preflight import features_run_key
from ranking.frame.snapshots import snapshots_to_keep
from ranking.frame.stream_counts import stream_rows
from ranking.frame.views import BASELINE_VIEWS, view_folder

#: What is counted of the two tables that may be long.
_COUNTED = {
    EVENTS: (USER_ID, ADVERTISER_ID, CATEGORY, DEPARTMENT, VALUE, TIMESTAMP, ARRIVED),
    IMPRESSIONS: (USER_ID, AD_ID, TIMESTAMP, LABEL, CLICKED),
}
_IDS = (USER_ID, AD_ID, ADVERTISER_ID, CATEGORY)


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

    def parts(self, view: str, folder: Path) -> Iterator[pd.DataFrame]:
        """The table of one view, part by part; what lies beside it goes into the folder."""
        users, ads, events = (self.tables[name] for name in ("users", "ads", "events"))
        if view == USER_PROFILE_VIEW:
            yield profile_table(users, self.users_from, self.plan.feature_snapshots(), self.plan.lag)
        elif view == USER_HISTORY_VIEW:
            streams = stream_rows(users, self.ids, self.tables, self.label_delay)
            history = history_parts(users, self.ids, streams, self.snapshots, self.plan.lag, folder)
            rates = own_rates(len(users), self.outcomes, self.snapshots)
            for index, (snapshot, part) in enumerate(zip(self.snapshots, history, strict=True)):
                own = slice(index * len(users), (index + 1) * len(users))
                whole = part.assign(**{name: values[own] for name, values in rates.items()})
                yield self._existing(whole, self.users_from, [snapshot])
        else:
            counts = AdCounts(ads, self.ids, events, self.outcomes)
            yield self._existing(ad_stats(ads, counts, self.snapshots, self.plan.lag), self.ads_from, self.snapshots)

    @staticmethod
    def _existing(table: pd.DataFrame, exist_from: Int, snapshots: Sequence[datetime]) -> pd.DataFrame:
        """A snapshot-major table less the rows of who does not exist yet at their snapshot."""
        moments = np.array([moment_us(s) for s in snapshots], dtype=np.int64)
        exists = (exist_from <= moments[:, None]).ravel()
        return table if exists.all() else table[exists].reset_index(drop=True)


def _load(tables: Path) -> dict[str, pd.DataFrame]:
    """Canonical tables; of events and impressions what is counted, ids as categories: a text a row is what costs."""
    import pyarrow.parquet as pq

    require_impressions(tables)
    loaded = load_tables(tables, USERS, ADVERTISERS, ADS)
    for name, counted in _COUNTED.items():
        path = Path(tables) / f"{name}.parquet"
        columns = [c for c in counted if c in pq.read_schema(path).names] if path.is_file() else None
        table = read_parquet(path, columns=columns, coded=_IDS, fix=TABLES_FIX)
        loaded[name] = table.assign(**{c: table[c].astype("category") for c in _IDS if c in table})
    return {name: table.reset_index(drop=True) for name, table in loaded.items()}


def publish_features(tables: Path, repo: Path) -> dict[str, int]:
    """Build and publish ``user_profile``, ``user_history`` and ``ad_stats``; returns rows per view.

    Each view is written whole beside the old one and then swapped in by one rename.
    """
    source = _Source(_load(tables), load_time_plan(tables), load_label_delay(tables))
    inputs = {"tables": manifest_digest(tables)}
    rows = {}
    for view in tracked(BASELINE_VIEWS, "features", "view"):
        link = view_folder(repo, view)
        building = link.parent / ".building" / view
        key = features_run_key(tables, view)
        with new_run(building, f"rank features {view}", config={}, inputs=inputs, key=key) as run:
            rows[view] = write_parquet_parts(source.parts(view, run.path), run.path / TABLE_FILE)
            run.facts.update(
                rows=rows[view],
                snapshots=[s.isoformat() for s in source.snapshots],
                snapshot_every_s=source.plan.snapshot_every.total_seconds(),
                lag_s=source.plan.lag.total_seconds(),
            )
        publish_version(building, link)
        with suppress(OSError):  # an interrupted run may have left something there
            building.parent.rmdir()
    return rows
