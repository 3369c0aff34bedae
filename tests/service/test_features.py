"""What the service reads of the store, on both stores; that it is what the frame has, test_click_log.py holds."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from ranking.service.slate import Query
from tests.service.live import engine_at
from tests.service.workspaces import SNAPSHOT, Project
from tests.tiny import PLAN


def test_a_row_past_its_ttl_is_no_row(served: Project) -> None:
    """As in the join: two weeks after it became available, history and prior are gone; the profile stays."""
    edge = SNAPSHOT + PLAN.lag + timedelta(days=14)
    engine = engine_at(served, edge)
    # two newer snapshots are published by then, so that this one's mean was not worked out ahead: said, then mended
    assert engine.prepare(Query("u001", candidates=["a00/Tea"])).degraded == ["prior_catalog_unknown"]
    engine.resources.catalogs.refresh(engine.clock.now_us())
    assert engine.prepare(Query("u001", candidates=["a00/Tea"])).degraded == []
    after = engine_at(served, edge + timedelta(seconds=1)).prepare(Query("u001", candidates=["a00/Tea"]))
    assert after.degraded == ["prior_stale", "history_stale"]
    named = dict(zip(after.ranker.plan.features, after.matrix[0], strict=True))
    assert np.isnan([named["history_advertiser_all"], named["activity_occasions_4w"], named["ad_rate_4w"]]).all()
    assert not np.isnan(named["profile_age"])


def test_candidates_without_a_position_stand_at_the_first(served: Project) -> None:
    """A candidate's own goes over the request's, and that over the reference."""
    engine, ads = engine_at(served), ["a00/Tea", "a03/Soap"]

    def positions(**given: Any) -> list[float]:
        ready = engine.prepare(Query("u003", candidates=ads, **given))
        return ready.matrix[:, ready.ranker.plan.features.index("context_position")].tolist()

    assert positions() == [1.0, 1.0]
    assert positions(context={"context_position": 3}) == [3.0, 3.0]
    assert positions(contexts=[{"context_position": 2}, None]) == [2.0, 1.0]
    assert positions(context={"context_position": 3}, contexts=[{"context_position": 2}, {}]) == [2.0, 3.0]


def test_unknown_user_and_unknown_ad(served: Project) -> None:
    slate = engine_at(served).rank(Query("nobody", 3, ["a00/Tea", "no/such", "a01/Coffee"]))
    assert not slate.user_known
    assert slate.degraded == ["prior_missing"]
    assert slate.unknown_ads == ["no/such"]
    assert slate.ads[-1] == ("no/such", None)
    assert {ad for ad, _ in slate.ads} == {"a00/Tea", "no/such", "a01/Coffee"}
    assert slate.ranker.service == "ranker_baseline_v1"


def test_one_round_trip_equals_feasts_own_reads(redis_project: Project) -> None:
    engine = engine_at(redis_project)
    reader = engine.resources.reader
    fast = reader.read_user("u003")
    direct, reader._redis = reader._redis, None
    try:
        slow = reader.read_user("u003")
    finally:
        reader._redis = direct
    assert fast == slow
    assert set(fast) == {"user_profile", "user_history", "prior_llm"}


def test_explanations_add_up(project: Project) -> None:
    engine = engine_at(project)
    slate = engine.rank(Query("u002", 4, explain=True))
    assert slate.contributions is not None
    ready = engine.prepare(Query("u002", candidates=[ad for ad, _ in slate.ads]))
    raw = ready.ranker.plan.ranker.raw(ready.matrix)
    for found, expected in zip(slate.contributions, raw, strict=True):
        assert found["base"] + sum(found["features"].values()) == pytest.approx(expected, abs=1e-9)
        assert 0 <= found["prior_share"] <= 1
        of_prior = sum(v for k, v in found["features"].items() if k.startswith("prior_"))
        assert found["prior"] == pytest.approx(of_prior)
