"""What the baseline's views are made of: canonical tables, and rows of the log, all at once or in blocks of users."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
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
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    IMPRESSIONS,
    PROFILE_PREFIX,
    USER_HISTORY_VIEW,
    USER_ID,
    USER_PROFILE_VIEW,
    USERS,
    TimePlan,
)
from advprior.store.existence import ads_exist_from
from advprior.store.times import moment_us
from ranking.frame.ad_popularity import AdCounts, ad_stats, moments_of
from ranking.frame.history import CountedSnapshots
from ranking.frame.history_files import LevelFiles, level_files, standing_parts, write_catalog
from ranking.frame.log_rows import LogRows, existing
from ranking.frame.numbering import HistoryIds
from ranking.frame.past import Past, RowSums
from ranking.frame.preflight import FEATURES_VERSION
from ranking.frame.snapshots import snapshots_to_keep
from ranking.frame.standing import ROWS, Standing, StandingHistory
from ranking.frame.streams import Stream


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
class Source(ABC):
    """Canonical tables, and what several views are computed from: worked out once.

    Parameters
    ----------
    tables : dict of str to DataFrame
        Users, advertisers and ads, in the order of their ids.
    plan : TimePlan
    label_delay : timedelta
    """

    tables: dict[str, pd.DataFrame]
    plan: TimePlan
    label_delay: timedelta

    @property
    @abstractmethod
    def ads_from(self) -> Int:
        """Microseconds since 1970 from which each ad exists, int64 [ads]."""

    @property
    @abstractmethod
    def users_from(self) -> Int:
        """The same of users, int64 [users]."""

    @property
    @abstractmethod
    def streams(self) -> list[Stream]:
        """Those that the log has; events are the first."""

    @property
    @abstractmethod
    def ad_counts(self) -> AdCounts:
        """What all rows say of ads, before the snapshots."""

    @abstractmethod
    def row_sums(self, moment: int) -> RowSums:
        """Of all rows that count before a moment."""

    @abstractmethod
    def counted(self, snapshots: CountedSnapshots, files: Sequence[LevelFiles]) -> Iterator[Any]:
        """Rows of histories, of snapshots one after the other; their counts go into the files."""

    @cached_property
    def ids(self) -> HistoryIds:
        return HistoryIds(self.tables[ADVERTISERS][ADVERTISER_ID].tolist(), self.tables[ADS], self.ads_from)

    @cached_property
    def snapshots(self) -> list[datetime]:
        return snapshots_to_keep(self.plan)

    @cached_property
    def totals(self) -> dict[int, dict[str, int]]:
        """Outcomes of all users before each snapshot, by name."""
        return {moment: self.ad_counts.totals(moment) for moment in map(moment_us, self.snapshots)}

    @cached_property
    def past(self) -> Past:
        """What all snapshots tell of."""
        settings = {
            "code": FEATURES_VERSION,
            "lag": self.plan.lag,
            "every": self.plan.snapshot_every,
            "label_delay": self.label_delay,
            "streams": [stream.name for stream in self.streams],
            "numberings": sorted(self.ids.sizes),
        }
        who = (self.tables[USERS][USER_ID], self.tables[ADS][AD_ID], self.users_from, self.ads_from)
        return Past(*who, self.ids, self.row_sums, settings)

    def parts(self, view: str, folder: Path, current: Path | None) -> Iterator[Any]:
        """The table of one view, part by part; what lies beside it goes into the folder.

        Parameters
        ----------
        view : str
        folder : Path
        current : Path, optional
            What is published now. Rows of it that stand are taken over.
        """
        users = self.tables[USERS]
        if view == USER_PROFILE_VIEW:
            yield profile_table(users, self.users_from, self.plan.feature_snapshots(), self.plan.lag)
            return
        standing = Standing(folder, []) if current is None else Standing.of(current, self.snapshots, self.past)
        if view == USER_HISTORY_VIEW:
            yield from self._history(folder, StandingHistory(standing, self.ids, users[USER_ID]))
        else:
            yield from standing.parts()
            yield from self._ad_stats(self.snapshots[len(standing.snapshots) :])

    def _history(self, folder: Path, standing: StandingHistory) -> Iterator[Any]:
        """Rows are snapshot-major: first those of snapshots that stand, then each other one."""
        users, start = len(self.tables[USERS]), len(standing.snapshots)
        version = write_catalog(self.ids, self.streams, folder)
        with level_files(self.streams, self.ids, folder) as files:
            yield from standing_parts(standing, version, self.streams, files)
            if start < len(self.snapshots):
                yield from self.counted(CountedSnapshots(self.snapshots, self.plan.lag, version, start, users), files)

    def _ad_stats(self, snapshots: Sequence[datetime]) -> Iterator[pd.DataFrame]:
        """So many snapshots at once that a part has at most `ROWS` rows, or is of one."""
        ads = self.tables[ADS]
        at_once = max(1, ROWS // max(1, len(ads)))
        for start in range(0, len(snapshots), at_once):
            some = snapshots[start : start + at_once]
            yield existing(ad_stats(ads, self.ad_counts, some, self.plan.lag), self.ads_from, some)


@dataclass(frozen=True)
class WholeLog(Source):
    """All rows in memory: ``tables`` has events and impressions, too."""

    @cached_property
    def ads_from(self) -> Int:  # type: ignore[override]
        return ads_exist_from(self.tables[ADS], self.tables[IMPRESSIONS])

    @cached_property
    def rows(self) -> LogRows:
        return LogRows(self.tables, self.tables[ADS], self.ids, self.label_delay)

    @property
    def users_from(self) -> Int:
        return self.rows.users_from

    @cached_property
    def streams(self) -> list[Stream]:  # type: ignore[override]
        return [rows.stream for rows in self.rows.streams]

    @cached_property
    def ad_counts(self) -> AdCounts:  # type: ignore[override]
        moments = moments_of(self.snapshots)
        counts = AdCounts(self.ids, moments, clicks=self.rows.outcomes.clicked is not None)
        counts.add(self.rows.ad_rows(moments))
        return counts

    def row_sums(self, moment: int) -> RowSums:
        return self.rows.past(self.tables[USERS][USER_ID], self.tables[ADS][AD_ID]).sums(moment)

    def counted(self, snapshots: CountedSnapshots, files: Sequence[LevelFiles]) -> Iterator[Any]:
        return self.rows.history(snapshots, files, self.totals)
