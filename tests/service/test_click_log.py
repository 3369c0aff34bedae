"""Offline and online are equal on a click log: late events, clicks, positions, users and ads that appear and vanish."""

from __future__ import annotations

from pathlib import Path

import pytest

from advprior.data import clicks
from advprior.data.drawn import Size
from advprior.store.tables import load_tables, write_parquet
from tests.service.parity import equal_to_the_frame, rows_in_reach
from tests.service.workspaces import SNAPSHOT, Project, Redis, copy_project, on_redis, on_tables
from tests.tiny import PLAN


@pytest.fixture(scope="module")
def click_log(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("clicks"))
    clicks.build(project.tables, Size(users=100, advertisers=8, weeks=30))
    begin_after_the_snapshot(project.tables)
    ads = load_tables(project.tables, "ads")["ads"]
    ads["department"] = ads.category.rank(method="dense").mod(3).map({0.0: None, 1.0: "Food", 2.0: "Drugs"})
    ads["cluster"] = [None if i % 7 == 6 else str(i % 4) for i in range(len(ads))]
    write_parquet(ads, project.tables / "ads.parquet")
    return on_tables(project, ("prior_llm", "cluster"))


def begin_after_the_snapshot(tables: Path) -> None:
    """Let a user and an ad that are seen after `SNAPSHOT` come into being there."""
    loaded = load_tables(tables, "users", "ads", "events", "impressions")
    shown = loaded["impressions"]
    after = shown[shown.timestamp >= SNAPSHOT + PLAN.lag].iloc[0]
    for name, key in (("users", "user_id"), ("ads", "ad_id")):
        new = loaded[name][key] == after[key]
        write_parquet(loaded[name].assign(known_from=loaded[name].known_from.mask(new)), tables / f"{name}.parquet")
    for name in ("events", "impressions"):
        table = loaded[name]
        old = table.user_id == after.user_id
        if name == "impressions":
            old |= table.ad_id == after.ad_id
        write_parquet(table[~old | (table.timestamp >= SNAPSHOT)], tables / f"{name}.parquet")


def test_every_feature_is_equal_on_sqlite(click_log: Project) -> None:
    names = equal_to_the_frame(click_log)
    streams = ("history_ad_12w", "exposures_ad_unanswered", "exposures_advertiser_4w", "clicks_ad_all", "ad_clicks_all")
    assert set(streams) <= set(names)
    departments = {"history_department_4w", "exposures_department_unanswered", "activity_distinct_departments_all"}
    assert departments <= set(names)
    assert {"history_cluster_4w", "history_cluster_recency_days", "exposures_cluster_unanswered"} <= set(names)
    assert {"context_position", "context_placement", "prior_llm_log_prob"} <= set(names)
    rows = rows_in_reach(click_log)
    # who does not exist yet at the snapshot has no row, offline as online
    assert rows.history_advertiser_all.isna().any()
    assert rows.activity_occasions_all.isna().any()
    assert rows.ad_rate_4w.isna().any()


def test_every_feature_is_equal_on_redis(click_log: Project, redis: Redis, tmp_path: Path) -> None:
    copied = copy_project(click_log, tmp_path / "redis")
    on_redis(copied, redis.port)
    assert equal_to_the_frame(copied)
