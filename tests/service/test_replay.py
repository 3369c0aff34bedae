"""A past day through the real service over HTTP: scores are the offline ones, and what cannot be compared is said."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from advprior.store.errors import AdvpriorError
from advprior.store.runs import read_manifest
from advprior.store.tables import load_tables
from ranking.cli import rank
from ranking.evidence.metrics import Auc, Rows
from ranking.experiment.client import Service
from ranking.experiment.past_requests import Limits, Pace, requests_of, window_of
from ranking.experiment.replay import ReplayOptions, replay
from ranking.models.ranker import Ranker
from ranking.service.settings import KEY_VARIABLE
from tests.ports import free_port
from tests.service.live import Live, live
from tests.service.workspaces import SNAPSHOT, Project
from tests.tiny import PLAN

LOW = SNAPSHOT + PLAN.lag
HIGH = LOW + timedelta(days=7)


def address(running: Live) -> str:
    return f"http://127.0.0.1:{running.port}"


@pytest.fixture(scope="module")
def running(project: Project):
    with live(project, clock_source="request") as found:
        yield found


def test_a_replayed_week_has_the_offline_scores(running: Live, project: Project, tmp_path: Path) -> None:
    out = tmp_path / "replay"
    done = CliRunner().invoke(
        rank,
        [
            "replay",
            "--tables",
            str(project.tables),
            "--url",
            address(running),
            "--from",
            LOW.isoformat(),
            "--to",
            HIGH.isoformat(),
            "--frame",
            str(project.root / "frame"),
            "--ranker",
            str(project.ranker),
            "--ranker",
            str(project.plain),
            "--out",
            str(out),
        ],
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.output
    about, scores = json.loads((out / "replay.json").read_text()), pd.read_parquet(out / "scores.parquet")
    frame = project.frame
    mine = frame[(frame.timestamp >= LOW) & (frame.timestamp < HIGH)]
    assert about["requests"] == mine.slate_id.nunique() > 50
    assert len(scores) == len(mine)
    assert (about["errors"], about["degraded"], about["not_returned"], about["notes"]) == ({}, {}, 0, [])
    assert about["clock"] == "request"
    assert about["splits"] == {"test": len(mine)}
    # every score, against the ranker on the frame's own rows
    assert about["parity"]["compared"] == about["parity"]["in_frame"] == len(mine)
    assert about["parity"]["max_difference"] < 1e-9
    expected = Ranker.load(project.ranker).predict(mine)
    served = scores.set_index("impression_id").loc[mine.impression_id]
    np.testing.assert_allclose(served.score, expected, atol=1e-9)
    by_hand = Auc()(Rows.of(mine.label, expected))
    assert about["quality"]["all"]["auc"] == pytest.approx(by_hand) == about["parity"]["offline"]["auc"]
    assert about["latency_ms"]["p50"] <= about["latency_ms"]["p99"]
    assert read_manifest(out)["step"] == "rank replay"
    assert f"{len(mine):,} of {len(mine):,} scores are of features of the same time" in done.output


def test_days_that_the_store_is_too_new_for_are_said(running: Live, project: Project) -> None:
    """The store's rows are of the snapshot after the replayed week: not used, and nothing can be compared."""
    found = replay(
        project.tables,
        Service(address(running)),
        ReplayOptions(
            start=LOW - timedelta(days=7),
            end=LOW,
            limit=15,
            frame=project.root / "frame",
            rankers=[project.ranker, project.plain],
        ),
    )
    assert found.about["requests"] == 15
    assert set(found.about["degraded"]) == {"prior_early", "history_early"}
    assert set(found.about["quality"]) == {"all"}
    assert found.about["parity"]["compared"] == 0
    assert found.about["parity"]["in_frame"] > 0
    assert any("after the replayed time" in note for note in found.about["notes"])
    assert not found.scores["compared"].any()


def test_a_service_on_its_own_clock_compares_nothing(project: Project) -> None:
    with live(project) as own:
        found = replay(
            project.tables,
            Service(address(own)),
            ReplayOptions(
                start=LOW,
                end=HIGH,
                limit=10,
                frame=project.root / "frame",
                rankers=[project.ranker],
            ),
        )
    assert found.about["parity"]["compared"] == 0
    assert "quality means nothing" in found.about["notes"][0]
    assert found.about["errors"] == {}


def test_requests_are_paced_in_order_and_bounded(running: Live, project: Project) -> None:
    service, shown = Service(address(running)), load_tables(project.tables, "impressions")["impressions"]
    limits = Limits.of(service)
    assert (limits.candidates, limits.slots) == (1000, 100)
    assert limits.contexts == {"context_placement": True, "context_position": False}
    week = shown[(shown.timestamp >= LOW) & (shown.timestamp < HIGH)].reset_index(drop=True)
    slates = requests_of(week, limits, Pace(speed=3600), 20, timed=True)
    assert (np.diff(slates.times) >= 0).all()
    assert slates.asks[-1].due_s == pytest.approx((slates.times[-1] - slates.times[0]) / 1e6 / 3600)
    body = json.loads(slates.asks[0].body)
    first = week.iloc[slates.rows[0]]
    assert [c["ad_id"] for c in body["candidates"]] == first.ad_id.tolist()
    assert [c["context"]["context_placement"] for c in body["candidates"]] == first.context_placement.tolist()
    assert requests_of(week, Limits(7, 5, {}), Pace(), 20, timed=False).too_large == week.slate_id.nunique()

    found = replay(
        project.tables, service, ReplayOptions(start=LOW, end=HIGH, limit=21, pace=Pace(rate=40, connections=2))
    )
    assert found.about["seconds"] >= 20 / 40
    cut = replay(
        project.tables, service, ReplayOptions(start=LOW, end=HIGH, limit=60, pace=Pace(rate=20, minutes=0.5 / 60))
    )
    assert 9 <= cut.about["requests"] <= 11
    assert cut.about["requests"] + cut.about["not_sent"] == 60
    assert any("not sent" in note for note in cut.about["notes"])


def test_what_cannot_be_replayed_is_refused(running: Live, project: Project, tmp_path: Path) -> None:
    service, shown = Service(address(running)), load_tables(project.tables, "impressions")["impressions"]
    day = shown.timestamp.max().to_pydatetime()
    start, end = window_of(shown, None, None, None)
    assert (start.date(), end - start) == (day.date(), timedelta(days=1))
    with pytest.raises(AdvpriorError, match="RNK041"):
        replay(project.tables, service, ReplayOptions(day=day + timedelta(days=9)))
    with pytest.raises(AdvpriorError, match="RNK042"):
        replay(project.tables, Service(f"http://127.0.0.1:{free_port()}"))
    with pytest.raises(AdvpriorError, match="CFG001"):
        Service("ftp://example.org")
    with pytest.raises(AdvpriorError, match="CFG001") as caught:
        Service("http://me:secret@example.org")
    assert "secret" not in str(caught.value)
    with pytest.raises(AdvpriorError, match="RNK044"):
        replay(project.tables, service, ReplayOptions(frame=project.root / "frame", rankers=[project.root / "frame"]))
    with live(project, exposures=tmp_path / "exposures") as logged:
        with pytest.raises(AdvpriorError, match="RNK043"):
            replay(project.tables, Service(address(logged)), ReplayOptions(limit=1))
        assert not list((tmp_path / "exposures").glob("*.jsonl"))
        found = replay(project.tables, Service(address(logged)), ReplayOptions(limit=3, log_exposures=True))
    assert found.about["requests"] == 3
    assert sum(len(file.read_text().splitlines()) for file in (tmp_path / "exposures").glob("*.jsonl")) == 3


def test_refused_requests_are_errors_and_no_scores(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "s3cret")
    with live(project, clock_source="request", api_key=True) as guarded:
        found = replay(project.tables, Service(address(guarded)), ReplayOptions(start=LOW, end=HIGH, limit=5))
        assert found.about["errors"] == {"401 SRV401": 5}
        assert found.scores["score"].isna().all()
        assert found.about["quality"] == {}
        keyed = replay(project.tables, Service(address(guarded), "s3cret"), ReplayOptions(start=LOW, end=HIGH, limit=5))
        assert keyed.about["errors"] == {}
    assert "5 errors (401 SRV401 5)" in found.text()
