"""From a user's own `definitions.py` to the served score: views, context and priors of names that we did not choose."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from advprior.store.contract import BASELINE_SERVICE, prior_service, prior_view
from advprior.store.features import REQUEST_SOURCE
from advprior.store.tables import load_tables, write_parquet
from ranking.experiment.client import Service
from ranking.experiment.replay import ReplayOptions, replay
from ranking.frame.publish import publish_features
from ranking.service.app import create_app, make_engine
from ranking.service.rows import Broken
from ranking.service.slate import Query, UserRows
from tests.ranking.stores import apply, copy_repo, publish
from tests.service.live import TestClient, engine_at, live, settings_of
from tests.service.parity import equal_to_the_frame
from tests.service.workspaces import (
    NOW,
    SNAPSHOT,
    FixedClock,
    Project,
    copy_project,
    knowing_priors,
    materialize,
    train,
    with_top_k_and_interests,
    write_frame,
)
from tests.tiny import PLAN, START, write_tiny

PREDICTOR = "text_pair"
SERVICE = prior_service(PREDICTOR)
OWN = """
_OWN = {"timestamp_field": "event_timestamp", "created_timestamp_column": "created_timestamp"}
ad_quality = FeatureView(
    name="ad_quality",
    entities=[ad],
    ttl=timedelta(0),
    schema=[Field(name="score", dtype=Float64), Field(name="format", dtype=String)],
    source=FileSource(name="ad_quality_table", path=str(DATA.parent / "quality.parquet"), **_OWN),
)
loyalty = FeatureView(
    name="loyalty",
    entities=[user],
    ttl=timedelta(days=400),
    schema=[
        Field(name="tier", dtype=String),
        Field(name="member", dtype=Bool),
        Field(name="since", dtype=UnixTimestamp),
        Field(name="number", dtype=Int64),
        Field(name="wealth", dtype=Float64),
    ],
    source=FileSource(name="loyalty_table", path=str(DATA.parent / "loyalty.parquet"), **_OWN),
)
_BASELINE = [user_profile, user_history, ad_stats, ad_quality, loyalty]
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose definitions have two views more, one of ads and one of users, and whose requests have an hour."""
    project = Project(tmp_path_factory.mktemp("own") / "project")
    write_tiny(project.tables, users=25)
    shown = load_tables(project.tables, "impressions")["impressions"]
    hours = (shown.timestamp.dt.hour + 9.5) % 24  # local time, which no clock of ours knows
    write_parquet(shown.assign(context_hour=hours), project.tables / "impressions.parquet")
    copy_repo(project.repo)
    definitions = project.repo / "definitions.py"
    standard = "_BASELINE = [user_profile, user_history, ad_stats]\n"
    assert standard in definitions.read_text()
    definitions.write_text(definitions.read_text().replace(standard, OWN))
    write_own_tables(project, shown)
    publish_features(project.tables, project.repo)
    publish(project.repo, prior_view(PREDICTOR), with_top_k_and_interests(knowing_priors(project.tables)))
    apply(project.repo)
    write_frame(project, PREDICTOR)
    train(project, project.ranker, SERVICE, adds=(prior_view(PREDICTOR),))
    train(project, project.plain, BASELINE_SERVICE)
    materialize(project.repo, SNAPSHOT + PLAN.lag)
    return project


def write_own_tables(project: Project, shown: pd.DataFrame) -> None:
    """How often an ad is bought, as nobody could know beforehand: a signal that a ranker cannot overlook."""
    rng = np.random.default_rng(0)
    times = {name: pd.Timestamp(START) for name in ("event_timestamp", "created_timestamp")}
    rate = shown.groupby("ad_id").label.mean()
    quality = {"ad_id": rate.index, "score": rate.to_numpy(), "format": rng.choice(["video", "still"], len(rate))}
    users = sorted(shown.user_id.unique())
    since = pd.Timestamp(START) - pd.to_timedelta(rng.integers(0, 10**7, len(users)), unit="s")
    loyalty = {
        "user_id": users,
        "tier": rng.choice(["gold", "basic"], len(users)),
        "member": rng.random(len(users)) < 0.5,
        # beyond what float32 holds exactly, or at all
        "number": 2**40 + rng.integers(0, 9, len(users)),
        "wealth": rng.choice([1.5, 1e300, -np.inf], len(users)),
    }
    pd.DataFrame(quality | times).to_parquet(project.repo / "quality.parquet")
    pd.DataFrame(loyalty | {"since": since} | times).to_parquet(project.repo / "loyalty.parquet")


def test_own_views_top_k_priors_and_context_are_those_of_the_frame(own: Project) -> None:
    features = equal_to_the_frame(own, least=50)
    assert {"ad_quality__score", "ad_quality__format"} <= set(features)
    assert {f"loyalty__{name}" for name in ("tier", "member", "since", "number", "wealth")} <= set(features)
    assert {"context_hour", "clock_hour", "context_placement"} <= set(features)
    assert {f"prior_text_pair_{name}" for name in ("log_prob", "rank", "interest_log_prob", "tail_log_mass")} <= set(
        features
    )


def test_they_reach_the_served_score(own: Project) -> None:
    settings = settings_of(own)
    with TestClient(create_app(settings, make_engine(settings, FixedClock(NOW)))) as client:
        context = {"context_placement": "front", "context_hour": 3.0}
        response = client.post("/rank?explain=true", json={"user_id": "u004", "slots": 24, "context": context})
        assert response.status_code == 200, response.text
        answer = response.json()
        assert answer["degraded"] == []
        assert answer["prior"]["predictor"] == PREDICTOR
        assert set(answer["as_of"]) == {
            "user_profile",
            "user_history",
            "ad_stats",
            "ad_quality",
            "loyalty",
            "prior_text_pair",
        }
        contributions = answer["slots"][0]["contributions"]["features"]
        assert abs(contributions["ad_quality__score"]) > 0
        schemas = client.get("/openapi.json").json()["components"]["schemas"]
        assert set(schemas["Context"]["properties"]) == {"context_hour", "context_placement", "context_position"}


def test_the_hour_of_a_request_is_its_own(own: Project) -> None:
    engine = engine_at(own)
    plan = engine.resources.rankers.priors.plan
    assert {f.source for f in plan.ranker.features if f.name == "context_hour"} == {REQUEST_SOURCE}
    at = {name: plan.features.index(name) for name in ("context_hour", "clock_hour")}
    given = engine.prepare(Query("u004", candidates=["a00/Tea"], context={"context_hour": 3.25})).matrix[0]
    absent = engine.prepare(Query("u004", candidates=["a00/Tea"])).matrix[0]
    assert given[at["context_hour"]] == 3.25
    assert np.isnan(absent[at["context_hour"]])
    assert given[at["clock_hour"]] == absent[at["clock_hour"]] == NOW.hour


def test_a_changed_row_changes_the_score(own: Project, tmp_path: Path) -> None:
    """What is materialized later is what is ranked by."""
    copied = copy_project(own, tmp_path / "copied")
    table = pd.read_parquet(copied.repo / "quality.parquet")
    worst, best = table.ad_id[table.score.argmin()], table.ad_id[table.score.argmax()]
    score = table.set_index("ad_id").score
    table["score"] = table.ad_id.map(score.rename({worst: best, best: worst}))
    table.to_parquet(copied.repo / "quality.parquet")
    apply(copied.repo)
    materialize(copied.repo, SNAPSHOT + PLAN.lag)

    def scores(project: Project) -> dict[str, float]:
        slate = engine_at(project).rank(Query("u004", slots=2, candidates=[worst, best]))
        return {ad: s for (ad, _), s in zip(slate.ads, slate.scores, strict=True)}

    before, after = scores(own), scores(copied)
    assert after[worst] > before[worst]
    assert after[best] < before[best]


def test_a_variant_is_served_with_its_own_list(own: Project, tmp_path: Path) -> None:
    """One feature of the prior, of all that its service offers."""
    train(own, tmp_path / "variant", SERVICE, adds=("prior_text_pair_rank",))
    engine = engine_at(own)
    variant = make_engine(settings_of(own, ranker=tmp_path / "variant"), FixedClock(NOW))
    plan = variant.resources.rankers.priors.plan
    assert [name for name in plan.features if name.startswith("prior_")] == ["prior_text_pair_rank"]
    variant.resources.refresh_ads()
    query = Query("u004", candidates=["a00/Tea", "a03/Soap"])
    both = [one.prepare(query) for one in (engine, variant)]
    assert both[1].degraded == []
    columns = [ready.matrix[:, ready.ranker.plan.features.index("prior_text_pair_rank")] for ready in both]
    np.testing.assert_array_equal(*columns)


def test_a_view_past_its_own_ttl_is_missing(own: Project) -> None:
    late = engine_at(own, START + timedelta(days=401)).prepare(Query("u004", candidates=["a00/Tea"]))
    names = dict(zip(late.ranker.plan.features, late.matrix[0], strict=True))
    assert np.isnan(names["loyalty__since"])
    assert not np.isnan(names["ad_quality__score"])


def test_a_replayed_week_has_the_offline_scores(own: Project) -> None:
    """Over HTTP, as of each slate's time, with the rows of the user's own views."""
    low = SNAPSHOT + PLAN.lag
    options = ReplayOptions(
        start=low, end=low + timedelta(days=7), limit=12, frame=own.root / "frame", rankers=[own.ranker, own.plain]
    )
    with live(own, clock_source="request") as service:
        replayed = replay(own.tables, Service(f"http://127.0.0.1:{service.port}"), options)
    assert replayed.about["errors"] == {}
    assert replayed.about["parity"]["compared"] == replayed.about["parity"]["in_frame"] > 50
    assert replayed.about["parity"]["max_difference"] < 1e-9


def test_a_row_of_an_own_view_that_cannot_be_read_is_said(own: Project) -> None:
    engine = engine_at(own)
    stored = engine.look_up("u004")
    broken = UserRows({**stored.rows, "loyalty": Broken("garbage")}, [])
    slate = engine.rank(Query("u004", slots=3, user_rows=broken))
    assert slate.degraded == ["loyalty_corrupt"]
    assert slate.ranker.service == SERVICE
