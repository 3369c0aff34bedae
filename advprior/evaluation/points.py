"""The points of scored priors: users at every snapshot of a window, and what they turned to after it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from advprior.history.catalog import Catalog
from advprior.history.counts import past_rows
from advprior.history.histories import Histories, micros
from advprior.history.read import load_histories
from advprior.history.targets import Targets, targets_of
from advprior.store.arrays import Bool, Int
from advprior.store.contract import TimePlan
from advprior.store.errors import AdvpriorError
from advprior.store.tables import load_time_plan


@dataclass(frozen=True)
class ScoredOptions:
    """What is asked, and how intervals are drawn.

    Attributes
    ----------
    window : {"test", "valid"}
        Snapshots of the time plan's test or validation window whose labels end within it.
    horizon : timedelta
        Targets lie in ``[snapshot, snapshot + horizon)``.
    starts : tuple of Path
        Exported runs of a network, one a cut-off, whose habit and drift become an arm.
    replicates, seed : int
        Of the bootstrap of users.
    """

    window: Literal["test", "valid"] = "test"
    horizon: timedelta = timedelta(days=7)
    starts: tuple[Path, ...] = ()
    replicates: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class CutOff:
    """The points of one cut-off.

    Attributes
    ----------
    name : str
        Its first snapshot.
    tables : Path
    histories : Histories
    catalog : Catalog
    user, moment : int64 [P]
        Of each point: user and snapshot (microseconds). Users without a target are no point.
    truth : Targets
    """

    name: str
    tables: Path
    histories: Histories
    catalog: Catalog
    user: Int
    moment: Int
    truth: Targets

    @classmethod
    def of(cls, tables: Path, options: ScoredOptions) -> CutOff:
        """Points of finished tables; ``PRI041`` where their window has none."""
        histories, catalog = load_histories(tables)
        moments = np.asarray([micros(s) for s in window_snapshots(load_time_plan(tables), options)], np.int64)
        user = np.repeat(np.arange(len(histories), dtype=np.int64), len(moments))
        moment = np.tile(moments, len(histories))
        horizon = round(options.horizon.total_seconds() * 1_000_000)
        truth = targets_of(histories, user, moment - 1, horizon, len(catalog))
        some = truth.counts > 0
        if not some.any():
            raise nobody(
                tables, options, f"{len(moments)} snapshots whose {options.horizon} end within it, no event after any"
            )
        name = pd.Timestamp(int(moments[0]), unit="us", tz="UTC").isoformat()
        return cls(name, tables, histories, catalog, user[some], moment[some], truth.take(some))

    @property
    def last(self) -> int:
        """How many of the time plan's newest snapshots must be scored: those after the window's last one, too."""
        return sum(micros(s) >= int(self.moment.min()) for s in load_time_plan(self.tables).snapshots())

    @cached_property
    def new(self) -> Bool:
        """Which targets their user had never turned to before the point's snapshot."""
        point, row = past_rows(self.histories, self.user, self.moment)
        before = point * self.truth.size + self.histories.advertiser[row]
        return ~np.isin(self.truth.point * self.truth.size + self.truth.index, before)

    def take(self, points: Bool) -> CutOff:
        """The same with some points only."""
        return replace(self, user=self.user[points], moment=self.moment[points], truth=self.truth.take(points))


def window_snapshots(plan: TimePlan, options: ScoredOptions) -> list[datetime]:
    """Snapshots of the window from which a horizon ends within it.

    >>> from datetime import UTC
    >>> day = lambda n: datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=n)
    >>> plan = TimePlan(day(0), day(70), day(140), day(168), day(190))
    >>> [(s - day(0)).days for s in window_snapshots(plan, ScoredOptions())]
    [168, 175, 182]
    """
    low, high = (plan.valid_end, plan.end) if options.window == "test" else (plan.train_end, plan.valid_end)
    return [s for s in plan.snapshots() if low <= s and s + options.horizon <= high]


def nobody(tables: Path, options: ScoredOptions, actual: str) -> AdvpriorError:
    """The error of a window with nobody to measure anything on."""
    return AdvpriorError(
        "PRI041",
        "no user has a label to be measured on",
        where=f"{tables}, {options.window} window",
        actual=actual,
        expected="a scored snapshot with events after it",
        fix="a shorter --horizon, or another --window",
    )
