"""Publishing the baseline's views: profiles, users' histories and ads' popularity, each swapped in by one rename."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    AD_ID,
    ADS,
    ADVERTISER_ID,
    ADVERTISERS,
    ARRIVED,
    CATALOG_VERSION,
    CATEGORY,
    CLICKED,
    CLUSTER,
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
from ranking.frame.past import Past
from ranking.frame.popularity import AdCounts, Outcomes, Tally, ad_stats, rates_at
from ranking.frame.preflight import FEATURES_VERSION, features_run_key
from ranking.frame.snapshots import snapshots_to_keep
from ranking.frame.standing import ROWS, Standing, StandingHistory
from ranking.frame.stream_counts import StreamRows, stream_rows
from ranking.frame.views import BASELINE_VIEWS, view_folder

#: What is counted of the two tables that may be long.
_COUNTED = {
    EVENTS: (USER_ID, ADVERTISER_ID, CATEGORY, DEPARTMENT, CLUSTER, VALUE, TIMESTAMP, ARRIVED),
    IMPRESSIONS: (USER_ID, AD_ID, TIMESTAMP, LABEL, CLICKED),
}
_IDS = (USER_ID, AD_ID, ADVERTISER_ID, CATEGORY)
#: A dictionary of ids only: trying one for each column of numbers and lists took most of the time, and more bytes.
_WRITING: dict[str, Any] = {"use_dictionary": [USER_ID, AD_ID, CATALOG_VERSION, "ad_category"], "compression": "zstd"}


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
class Source:
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
    def streams(self) -> list[StreamRows]:
        return stream_rows(self.tables["users"], self.ids, self.tables, self.label_delay)

    @cached_property
    def users_from(self) -> Int:
        return users_exist_from(self.tables["users"], self.tables["events"], self.tables["impressions"])

    @cached_property
    def past(self) -> Past:
        """What all snapshots tell of."""
        settings = {
            "code": FEATURES_VERSION,
            "lag": self.plan.lag,
            "every": self.plan.snapshot_every,
            "label_delay": self.label_delay,
            "streams": [rows.stream.name for rows in self.streams],
            "numberings": sorted(self.ids.sizes),
        }
        who = (self.tables["users"][USER_ID], self.tables["ads"][AD_ID], self.users_from, self.ads_from)
        return Past(*who, self.ids, self.streams[0], self.outcomes, settings)

    def parts(self, view: str, folder: Path, current: Path | None) -> Iterator[Any]:
        """The table of one view, part by part; what lies beside it goes into the folder.

        Parameters
        ----------
        view : str
        folder : Path
        current : Path, optional
            What is published now. Rows of it that stand are taken over.
        """
        users, ads, events = (self.tables[name] for name in ("users", "ads", "events"))
        if view == USER_PROFILE_VIEW:
            yield profile_table(users, self.users_from, self.plan.feature_snapshots(), self.plan.lag)
            return
        standing = Standing(folder, []) if current is None else Standing.of(current, self.snapshots, self.past)
        if view == USER_HISTORY_VIEW:
            yield from self._history(users, folder, StandingHistory(standing, self.ids, users[USER_ID]))
        else:
            yield from standing.parts()
            yield from self._ad_stats(ads, events, self.snapshots[len(standing.snapshots) :])

    def _history(self, users: pd.DataFrame, folder: Path, standing: StandingHistory) -> Iterator[Any]:
        tally = Tally(self.outcomes, self.outcomes.user, len(users))
        counted = iter(self.snapshots[len(standing.snapshots) :])
        for part in history_parts(users, self.streams, self.snapshots, self.plan.lag, folder, standing):
            if isinstance(part, pd.DataFrame):
                snapshot = next(counted)
                part = part.assign(**rates_at(tally, moment_us(snapshot)))
                part = self._existing(part, self.users_from, [snapshot])
            yield part

    def _ad_stats(
        self, ads: pd.DataFrame, events: pd.DataFrame, snapshots: Sequence[datetime]
    ) -> Iterator[pd.DataFrame]:
        """So many snapshots at once that a part has at most `ROWS` rows, or is of one."""
        if not snapshots:
            return
        counts, at_once = AdCounts(ads, self.ids, events, self.outcomes), max(1, ROWS // max(1, len(ads)))
        for start in range(0, len(snapshots), at_once):
            some = snapshots[start : start + at_once]
            yield self._existing(ad_stats(ads, counts, some, self.plan.lag), self.ads_from, some)

    @staticmethod
    def _existing(table: pd.DataFrame, exist_from: Int, snapshots: Sequence[datetime]) -> pd.DataFrame:
        """A snapshot-major table less the rows of who does not exist yet at their snapshot."""
        moments = np.array([moment_us(s) for s in snapshots], dtype=np.int64)
        exists = (exist_from <= moments[:, None]).ravel()
        return table if exists.all() else table[exists].reset_index(drop=True)


def _load(tables: Path) -> dict[str, pd.DataFrame]:
    """Canonical tables; of events and impressions what is counted, ids as categories: a text a row is what costs.

    Users, ads and advertisers are in the order of their ids, however the log was exported today.
    """
    import pyarrow.parquet as pq

    require_impressions(tables)
    loaded = load_tables(tables, USERS, ADVERTISERS, ADS)
    for name, id_ in ((USERS, USER_ID), (ADVERTISERS, ADVERTISER_ID), (ADS, AD_ID)):
        loaded[name] = loaded[name].sort_values(id_, kind="stable")
    for name, counted in _COUNTED.items():
        path = Path(tables) / f"{name}.parquet"
        columns = [c for c in counted if c in pq.read_schema(path).names] if path.is_file() else None
        table = read_parquet(path, columns=columns, coded=_IDS, fix=TABLES_FIX)
        loaded[name] = table.assign(**{c: table[c].astype("category") for c in _IDS if c in table})
    return {name: table.reset_index(drop=True) for name, table in loaded.items()}


def publish_features(tables: Path, repo: Path, *, anew: bool = False) -> dict[str, int]:
    """Build and publish ``user_profile``, ``user_history`` and ``ad_stats``; returns rows per view.

    Each view is written whole beside the old one and then swapped in by one rename. Rows of snapshots whose past has
    not changed are taken over from what is published.

    Parameters
    ----------
    tables, repo : Path
    anew : bool
        Count every snapshot again.
    """
    source = Source(_load(tables), load_time_plan(tables), load_label_delay(tables))
    inputs = {"tables": manifest_digest(tables)}
    rows = {}
    for view in tracked(BASELINE_VIEWS, "features", "view"):
        link = view_folder(repo, view)
        building = link.parent / ".building" / view
        key = features_run_key(tables, view)
        with new_run(building, f"rank features {view}", config={}, inputs=inputs, key=key) as run:
            parts = source.parts(view, run.path, None if anew else link)
            writing = {} if view == USER_PROFILE_VIEW else _WRITING
            rows[view] = write_parquet_parts(parts, run.path / TABLE_FILE, **writing)
            run.facts.update(
                rows=rows[view],
                snapshots=[s.isoformat() for s in source.snapshots],
                snapshot_every_s=source.plan.snapshot_every.total_seconds(),
                lag_s=source.plan.lag.total_seconds(),
            )
            if view != USER_PROFILE_VIEW and source.snapshots:
                run.facts["past"] = source.past.until(moment_us(source.snapshots[-1]))
        publish_version(building, link)
        with suppress(OSError):  # an interrupted run may have left something there
            building.parent.rmdir()
    return rows
