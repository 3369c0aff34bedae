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
from advprior.store.contract import MATRIX_FILE, POPULARITY, PRIOR_ROW, TABLE_FILE, prior_view
from advprior.store.existence import load_users_exist_from
from advprior.store.tables import load_tables, load_time_plan
from advprior.store.times import DAY_US, micros
from ranking.frame import ad_popularity, baseline, log_rows, stream_counts
from ranking.frame import publish as publishing
from ranking.frame.ad_popularity import AdCounts
from ranking.frame.build import build_frame
from ranking.frame.counts import CountsBefore
from ranking.frame.moment_counts import RowsBetween
from ranking.frame.numbering import HistoryIds
from ranking.frame.publish import publish_features
from ranking.frame.snapshots import snapshots_to_keep
from ranking.frame.stream_counts import LevelCounts
from tests.ranking.frame.no_future import changed, comparable, cut, published
from tests.ranking.stores import apply, copy_repo, publish, random_priors

# ibis 12 calls a method that duckdb 2 renamed
pytestmark = pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning")

#: Of a seed in which users visit an advertiser's category before its ad exists.
LOG = Size(users=50, advertisers=8, weeks=12, seed=2)
GROUPS = {"department": 3, "cluster": 5}


def clicks_as_read(out: Path) -> None:
    """The click log of somebody who knows of no optional column but the clicks."""
    clicks.build(out, LOG)
    for name, columns in (("users", ["known_from"]), ("ads", ["known_from"]), ("events", ["arrived", "kind"])):
        path = out / f"{name}.parquet"
        pd.read_parquet(path).drop(columns=columns).to_parquet(path, index=False)


def clicks_with_departments(out: Path) -> None:
    """Ads of one category in several departments and clusters, of which an ad that comes later brings another.

    An advertiser comes in the last week, without an ad.
    """
    clicks.build(out, LOG)
    events, advertisers = (pd.read_parquet(out / f"{name}.parquet") for name in ("events", "advertisers"))
    last = events.nlargest(1, "timestamp").assign(advertiser_id="newcomer")
    pd.concat([events, last], ignore_index=True).to_parquet(out / "events.parquet", index=False)
    newcomer = advertisers.tail(1).assign(advertiser_id="newcomer")
    pd.concat([advertisers, newcomer], ignore_index=True).to_parquet(out / "advertisers.parquet", index=False)
    path = out / "ads.parquet"
    ads = pd.read_parquet(path)
    groups = {f"{name}": [f"{name} {i % size}" for i in range(len(ads))] for name, size in GROUPS.items()}
    ads.assign(**groups).to_parquet(path, index=False)


WORLDS: dict[str, Callable[[Path], Any]] = {
    "clicks": lambda out: clicks.build(out, LOG, effects=model.Effects(late_share=0.3, late_days=5.0)),
    "clicks without optional columns": clicks_as_read,
    "clicks with departments and clusters": clicks_with_departments,
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


def test_no_column_of_a_frame_knows_what_comes_after_its_impression(worlds: dict[str, World], tmp_path: Path) -> None:
    """Joined through the store, gathered by pointers, with priors beside: of every impression up to a snapshot."""
    world, frames = worlds["clicks"], []
    snapshot = world.snapshots[1]
    for name, tables in (("whole", world.tables), ("past", cut(world.tables, snapshot, tmp_path / "tables"))):
        repo = copy_repo(tmp_path / name)
        publish_features(tables, repo)
        publish(repo, prior_view(POPULARITY), priors_of(world.tables, tables))
        apply(repo)
        result = build_frame(tables, repo, [POPULARITY])
        rows = result.frame[result.frame.timestamp < pd.Timestamp(snapshot)].set_index("impression_id")
        frames.append(rows[[feature["name"] for feature in result.facts["features"]]])
    whole, past = frames
    assert len(whole) > 100
    assert {"exposures_ad_1w", "ad_click_rate_4w", "prior_popularity_log_ratio"} < set(whole)
    pd.testing.assert_frame_equal(past, whole, check_exact=True, check_categorical=False)


def priors_of(whole: Path, tables: Path) -> dict[str, Any]:
    """Random priors that depend on user and snapshot alone, from when each user exists."""
    plan, loaded = load_time_plan(whole), load_tables(whole, "users", "advertisers")
    ids = loaded["users"]["user_id"].tolist()
    advertisers = loaded["advertisers"]["advertiser_id"].tolist()
    files = random_priors(ids, advertisers, plan.snapshots(), plan.lag, plan.finetune_end, 0)
    exist_from = dict(zip(ids, load_users_exist_from(tables, ids), strict=True))
    table = files[TABLE_FILE].sort_values(PRIOR_ROW)
    exists = (table["user_id"].map(exist_from) <= micros(table["snapshot"])).to_numpy()
    table = table[exists].assign(**{PRIOR_ROW: np.arange(int(exists.sum()))})
    return files | {TABLE_FILE: table, MATRIX_FILE: files[MATRIX_FILE][exists]}


# -- the test is one that can fail ---------------------------------------------------------------------------------


def a_day_ahead(patch: pytest.MonkeyPatch) -> None:
    before, count, at = CountsBefore.before, RowsBetween.count, LevelCounts.at
    patch.setattr(CountsBefore, "before", lambda self, moment: before(self, moment + DAY_US))
    patch.setattr(RowsBetween, "count", lambda groups, times, moments: count(groups, times - DAY_US, moments))
    patch.setattr(LevelCounts, "at", lambda self, moment: at(self, moment + DAY_US))


def labels_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(publishing, "load_label_delay", lambda tables: timedelta(0))


def events_before_they_arrive(patch: pytest.MonkeyPatch) -> None:
    for module in (stream_counts, ad_popularity):
        patch.setattr(module, "counting_times", lambda events: micros(events["timestamp"]))


def users_from_the_start(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(log_rows, "users_exist_from", lambda users, *others: np.zeros(len(users), np.int64))


def categories_from_the_start(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(baseline, "HistoryIds", lambda advertisers, ads, ads_from: HistoryIds(advertisers, ads))


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


def test_an_advertiser_that_comes_later_is_in_no_earlier_share(
    worlds: dict[str, World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log-share is one of all advertisers of its time; with all that are listed today the property fails."""
    world = worlds["clicks with departments and clusters"]
    assert world.changed_at(world.snapshots[1]) == []
    monkeypatch.setattr(
        AdCounts, "exists", lambda self, level, moment: np.ones(len(self.events[level].before(moment)), np.bool_)
    )
    assert "ad_stats.ad_advertiser_log_share_all" in world.changed_at(world.snapshots[1])
