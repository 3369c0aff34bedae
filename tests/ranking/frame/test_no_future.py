"""Drop all rows after a snapshot, and no feature at or before it changes: on every kind of log, for every feature."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from advprior.data import click_model as model
from advprior.data import clicks, synthetic
from advprior.data.drawn import Size
from advprior.store.tables import load_time_plan
from advprior.store.times import DAY_US, micros
from ranking.frame import popularity, publish, stream_counts
from ranking.frame.counts import CountsBefore
from ranking.frame.numbering import HistoryIds
from ranking.frame.snapshots import snapshots_to_keep
from tests.ranking.frame.no_future import changed, comparable, cut, published

#: Of a seed in which users visit an advertiser's category before its ad exists.
LOG = Size(users=50, advertisers=8, weeks=12, seed=2)


def clicks_as_read(out: Path) -> None:
    """The click log of somebody who knows of no optional column but the clicks."""
    clicks.build(out, LOG)
    for name, columns in (("users", ["known_from"]), ("ads", ["known_from"]), ("events", ["arrived", "kind"])):
        path = out / f"{name}.parquet"
        pd.read_parquet(path).drop(columns=columns).to_parquet(path, index=False)


WORLDS: dict[str, Callable[[Path], Any]] = {
    "clicks": lambda out: clicks.build(out, LOG, effects=model.Effects(late_share=0.3, late_days=5.0)),
    "clicks without optional columns": clicks_as_read,
    "synthetic": lambda out: synthetic.build(out, Size(users=25, advertisers=8, weeks=9)),
}


class World:
    """Tables, and three of their snapshots: the first, one in the middle, and the last but one."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.tables = folder, folder / "tables"
        WORLDS[name](self.tables)
        self.plan = load_time_plan(self.tables)
        every = snapshots_to_keep(self.plan)
        self.snapshots = [every[0], every[len(every) // 2], every[-2]]

    def changed_at(self, *snapshots: datetime) -> list[str]:
        """Features that know what came after one of the snapshots, by what the code computes now."""
        whole = comparable(published(self.tables, self.folder / "whole"))
        names: list[str] = []
        for snapshot in snapshots:
            past = self.folder / f"{snapshot:%m%d}"
            if not past.exists():
                cut(self.tables, snapshot, past)
            then = comparable(published(past, self.folder / f"{snapshot:%m%d} features"))
            names += changed(whole, then, snapshot + self.plan.lag)
        return names


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    return {name: World(tmp_path_factory.mktemp("world"), name) for name in WORLDS}


@pytest.mark.parametrize("name", WORLDS)
def test_no_feature_knows_what_comes_after_its_snapshot(worlds: dict[str, World], name: str) -> None:
    assert worlds[name].changed_at(*worlds[name].snapshots) == []


# -- the test is one that can fail ---------------------------------------------------------------------------------


def a_day_ahead(patch: pytest.MonkeyPatch) -> None:
    honest = CountsBefore.before
    patch.setattr(CountsBefore, "before", lambda self, moment: honest(self, moment + DAY_US))


def labels_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(publish, "load_label_delay", lambda tables: timedelta(0))


def events_before_they_arrive(patch: pytest.MonkeyPatch) -> None:
    for module in (stream_counts, popularity):
        patch.setattr(module, "counting_times", lambda events: micros(events["timestamp"]))


def users_from_the_start(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(publish, "users_exist_from", lambda users, *others: np.zeros(len(users), np.int64))


def categories_from_the_start(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(publish, "HistoryIds", lambda advertisers, ads, ads_from: HistoryIds(advertisers, ads))


@pytest.mark.parametrize(
    ("plant", "caught"),
    [
        (a_day_ahead, ["ad_stats.ad_impressions_4w", "user_history.history_advertiser values"]),
        (labels_at_once, ["ad_stats.ad_rate_all", "user_history.activity_rate_12w"]),
        (events_before_they_arrive, ["user_history.activity_occasions_all", "ad_stats.ad_advertiser_events_all"]),
        (users_from_the_start, ["user_profile", "user_history"]),
        (categories_from_the_start, ["user_history.history_ad_ids", "user_history.activity_distinct_ads_all"]),
    ],
)
def test_a_feature_that_reads_ahead_is_caught(
    worlds: dict[str, World], monkeypatch: pytest.MonkeyPatch, plant: Any, caught: list[str]
) -> None:
    world = worlds["clicks"]
    plant(monkeypatch)
    names = world.changed_at(*world.snapshots[:1] if plant is categories_from_the_start else world.snapshots[1:2])
    assert set(caught) <= set(names)
