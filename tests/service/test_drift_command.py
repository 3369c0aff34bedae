"""`advprior rank drift` with a ranker and a repository: its features alone, their gain, and priors by snapshot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
from click.testing import CliRunner, Result

from feature_repo.contract import LLM, SNAPSHOT, TABLE_FILE, prior_view
from feature_repo.runs import write_json
from ranking.monitor.commands import DRIFT_FILE, PAGE_FILE
from ranking.monitor.commands import drift as command
from ranking.ranker import Ranker
from tests.ranking.stores import publish
from tests.service.workspaces import Project, copy_project, knowing_priors


def run(project: Project, ranker: Path, out: Path, *more: str) -> Result:
    options = ["--frame", str(project.root / "frame"), "--ranker", str(ranker), "--repo", str(project.repo)]
    return CliRunner().invoke(command, [*options, "--out", str(out), *more])


def of(out: Path) -> dict[str, Any]:
    return json.loads((out / DRIFT_FILE).read_text())


def test_a_ranker_and_a_repository_choose_what_is_measured(project: Project, tmp_path: Path) -> None:
    for ranker, features in ((project.ranker, True), (project.plain, False)):
        out = tmp_path / ranker.name
        result = run(project, ranker, out, "--fail-on", "never")
        assert result.exit_code == 0, result.output
        found = of(out)
        measured = [one["name"] for one in found["drifts"] if one["kind"] == "feature"]
        loaded = Ranker.load(ranker)
        assert sorted(measured) == sorted(loaded.features)
        assert any(name.startswith("prior_llm_") for name in measured) == features
        gains = {one["name"]: one["gain"] for one in found["drifts"] if one["kind"] == "feature"}
        assert {name: gain for name, gain in gains.items() if gain} == {
            name: gain for name, gain in loaded.importance().items() if gain
        }
        # what is published is measured whoever ranks
        assert {"prior_llm_entropy", "prior_llm_top1_log_prob"} == {
            one["name"] for one in found["drifts"] if one["kind"] == "prior"
        }
        assert found["about"]["priors"]["llm"]["reference_snapshots"] > 1
        assert (out / PAGE_FILE).stat().st_size > 1000
        assert f"of {len(found['drifts'])}, " in result.output
    assert "unchanged, reused" in run(project, project.plain, out, "--fail-on", "never").output


def test_a_prior_that_moved_fires_and_its_publication_is_noticed(project: Project, tmp_path: Path) -> None:
    own, out = copy_project(project, tmp_path / "copied"), tmp_path / "drift"
    run(own, own.ranker, out, "--fail-on", "never")
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
    assert run(own, own.ranker, out).exit_code == 3  # reused, and as severe as before


def test_a_ranker_of_another_frame_is_refused(project: Project, tmp_path: Path) -> None:
    own = copy_project(project, tmp_path / "copied")
    manifest = own.root / "frame" / "manifest.json"
    write_json(manifest, json.loads(manifest.read_text()) | {"key": "another"})
    shutil.rmtree(tmp_path / "drift", ignore_errors=True)
    result = run(own, own.ranker, tmp_path / "drift")
    assert result.exit_code != 0
    assert "RNK036" in repr(result.exception) + result.output
    assert not (tmp_path / "drift" / DRIFT_FILE).exists()
