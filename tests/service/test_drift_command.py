"""`advprior rank drift` with a ranker and a repository: its features alone, their gain, and priors by snapshot."""

from __future__ import annotations

import json
import re
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from advprior.store.contract import LLM, SNAPSHOT, TABLE_FILE, prior_view
from advprior.store.errors import AdvpriorError
from advprior.store.runs import manifest_digest, write_json
from ranking.cli.monitor import DRIFT_FILE, PAGE_FILE
from ranking.cli.monitor import drift as command
from ranking.experiment.exposures import read_exposures
from ranking.experiment.shown import FEATURES, to_frame
from ranking.models.ranker import Ranker
from ranking.monitor.drift import measure
from ranking.service.app import create_app, make_engine
from ranking.service.slate import Query
from tests.ranking.stores import publish
from tests.service.live import TestClient, settings_of
from tests.service.workspaces import NOW, FixedClock, Project, copy_project, knowing_priors


def run(project: Project, ranker: Path, out: Path, *more: str) -> Result:
    options = ["--frame", str(project.root / "frame"), "--ranker", str(ranker), "--repo", str(project.repo)]
    return CliRunner().invoke(command, [*options, "--out", str(out), *more])


def of(out: Path) -> dict[str, Any]:
    return json.loads((out / DRIFT_FILE).read_text())


def test_a_ranker_and_a_repository_choose_what_is_measured(project: Project) -> None:
    frame = project.root / "frame"
    for ranker, with_priors in ((project.ranker, True), (project.plain, False)):
        report = measure(frame, ranker=ranker, repo=project.repo)
        gains = {one.name: one.gain for one in report.drifts if one.kind == "feature"}
        loaded = Ranker.load(ranker)
        assert sorted(gains) == sorted(loaded.names)
        assert any(name.startswith("prior_llm_") for name in gains) == with_priors
        assert gains == pytest.approx(loaded.importance())
        # what is published is measured whoever ranks
        priors = {one.name for one in report.drifts if one.kind == "prior"}
        assert priors == {"prior_llm_entropy", "prior_llm_top1_log_prob"}
        assert report.about["priors"]["llm"]["reference_snapshots"] > 1


def test_a_prior_that_moved_fires_and_its_publication_is_noticed(project: Project, tmp_path: Path) -> None:
    own, out = copy_project(project, tmp_path / "copied"), tmp_path / "drift"
    result = run(own, own.ranker, out, "--fail-on", "never")
    assert result.exit_code == 0, result.output
    assert (out / PAGE_FILE).stat().st_size > 1000
    assert f"{len(of(out)['drifts'])} columns measured" in result.output
    assert re.search(r"train rows of .* against test rows of", result.output)
    assert re.search(r"prior llm: \d\d snapshots of the time of training against", result.output)
    assert "unchanged, reused" in run(own, own.ranker, out, "--fail-on", "never").output
    before = {one["name"]: one["severity"] for one in of(out)["drifts"] if one["kind"] == "prior"}
    assert before["prior_llm_entropy"] != "major"
    files = knowing_priors(own.tables)
    table: pd.DataFrame = files[TABLE_FILE]
    table.loc[(table[SNAPSHOT] == table[SNAPSHOT].max()).to_numpy(), "entropy"] /= 2  # surer of itself, all at once
    publish(own.repo, prior_view(LLM), files)
    result = run(own, own.ranker, out)
    assert result.exit_code == 3, result.output
    assert "reused" not in result.output
    after = {one["name"]: one["severity"] for one in of(out)["drifts"] if one["kind"] == "prior"}
    assert after["prior_llm_entropy"] == "major"
    moved = {one["name"]: one["columns"] for one in of(out)["findings"] if one["severity"] == "major"}
    assert "prior_llm_entropy" in moved.pop("prior_llm")
    assert not moved
    assert re.search(r"^major .* prior_llm \(prior_llm_entropy", result.output, re.MULTILINE)
    assert run(own, own.ranker, out).exit_code == 3  # reused, and as severe as before


def test_a_publication_of_the_newest_snapshot_alone_is_no_reference(project: Project, tmp_path: Path) -> None:
    """What a refresh used to publish: nothing was compared, and the answer was "stable"."""
    own = copy_project(project, tmp_path / "copied")
    files = knowing_priors(own.tables)
    table = files[TABLE_FILE]
    newest = table[(table[SNAPSHOT] == table[SNAPSHOT].max()).to_numpy()]
    publish(own.repo, prior_view(LLM), files | {TABLE_FILE: newest})
    result = run(own, own.ranker, tmp_path / "drift")
    assert result.exit_code != 0
    assert "RNK047" in repr(result.exception) + result.output
    assert not (tmp_path / "drift").exists()


def test_a_ranker_of_another_frame_is_refused(project: Project, tmp_path: Path) -> None:
    own = copy_project(project, tmp_path / "copied")
    manifest = own.root / "frame" / "manifest.json"
    write_json(manifest, json.loads(manifest.read_text()) | {"key": "another"})
    shutil.rmtree(tmp_path / "drift", ignore_errors=True)
    result = run(own, own.ranker, tmp_path / "drift")
    assert result.exit_code != 0
    assert "RNK036" in repr(result.exception) + result.output
    assert not (tmp_path / "drift" / DRIFT_FILE).exists()


# -- from what was shown -------------------------------------------------------------------------------------------


def serve_some(project: Project, exposures: Path, share: float, clock: FixedClock) -> list[dict[str, Any]]:
    """Answers of a service that logs features, a few a user."""
    own = settings_of(project, exposures=exposures, log_features=share)
    with TestClient(create_app(own, make_engine(own, clock))) as client:
        answers = []
        for i in range(120):
            body = {"user_id": f"u{i:03d}", "slots": 4, "context": {"context_placement": "front" if i % 2 else "back"}}
            answers.append(client.post("/rank", json=body).json())
    return answers


def test_what_was_read_online_is_what_is_measured(project: Project, tmp_path: Path) -> None:
    exposures, now = tmp_path / "exposures", FixedClock(NOW)
    answers = serve_some(project, exposures, 1.0, now)
    ranker = manifest_digest(project.ranker)
    frame = to_frame(read_exposures(exposures), ranker)
    assert len(frame) == sum(len(a["slots"]) for a in answers if a["ranker"] == ranker)
    engine = make_engine(settings_of(project), now)
    engine.resources.refresh()
    for answer in answers[:5]:
        ready = engine.prepare(
            Query(
                answer["user_id"],
                candidates=[s["ad_id"] for s in answer["slots"]],
                context={"context_placement": "front" if int(answer["user_id"][1:]) % 2 else "back"},
            )
        )
        mine = frame[(frame.user_id == answer["user_id"]).to_numpy()]
        encoded = ready.ranker.plan.ranker.encoder.encode(mine)
        np.testing.assert_allclose(encoded, ready.matrix, rtol=1e-6)  # as the ranker read it, through the log and back
    report = measure(project.root / "frame", exposures=exposures, ranker=project.ranker)
    assert report.about["current"]["what"] == "shown ads"
    assert report.about["current"]["rows"] == len(frame)
    placements = next(one for one in report.drifts if one.name == "context_placement")
    shown = {label: n for label, n in zip(placements.labels, placements.current, strict=True) if n}
    assert shown == {"back": len(frame) / 2, "front": len(frame) / 2}
    later = tmp_path / "later"
    serve_some(project, later, 1.0, FixedClock(NOW + timedelta(days=9)))
    moved = measure(project.root / "frame", exposures=later, ranker=project.ranker)
    age = [next(one for one in r.drifts if one.name == "prior_llm_age_days") for r in (report, moved)]
    assert age[1].severity == "major"
    assert age[1].psi > age[0].psi


def test_features_are_logged_as_often_as_asked(project: Project, tmp_path: Path) -> None:
    serve_some(project, tmp_path / "some", 0.3, FixedClock(NOW))
    with_features = [FEATURES in record for record in read_exposures(tmp_path / "some")]
    assert len(with_features) == 120
    assert 12 < sum(with_features) < 65  # 36 expected, five standard errors either way
    serve_some(project, tmp_path / "none", 0.0, FixedClock(NOW))
    assert not any(FEATURES in record for record in read_exposures(tmp_path / "none"))
    result = run(project, project.ranker, tmp_path / "drift", "--exposures", str(tmp_path / "none"))
    assert "SRV021" in repr(result.exception) + result.output
    with pytest.raises(AdvpriorError, match="SRV020"):
        create_app(settings_of(project, log_features=0.1))
    for more in (["--recent", str(project.root / "frame")], []):
        options = ["--frame", str(project.root / "frame"), "--exposures", str(tmp_path), "--out", str(tmp_path / "no")]
        assert CliRunner().invoke(command, [*options, *more]).exit_code == 2
