"""A ranker takes the place of another by evidence alone, under traffic, and goes back by one command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from advprior.cli import cli
from advprior.store.contract import BASELINE_SERVICE, LABEL, prior_service
from advprior.store.errors import AdvpriorError
from advprior.store.runs import manifest_digest
from advprior.store.tables import write_parquet
from ranking.frame.read import FRAME_FILE
from ranking.models.ranker import Ranker
from ranking.monitor.placing import put_in_place
from ranking.monitor.promotion import Rule, decide
from ranking.service import loading
from ranking.service.loading import RankerFolder
from tests.service.live import engine_for
from tests.service.workspaces import Project, train

DAYS = ("--days", "40")


@pytest.fixture(scope="module")
def rankers(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A frame like the project's, and rankers with priors: one that knows, one that learnt from shuffled labels."""
    folder = tmp_path_factory.mktemp("promote")
    shutil.copytree(project.root / "frame", folder / "frame")
    bad = Project(folder / "shuffled")
    shutil.copytree(project.root / "frame", bad.root / "frame")
    frame = project.frame
    frame[LABEL] = np.random.default_rng(0).permutation(frame[LABEL].to_numpy())
    write_parquet(frame, bad.root / "frame" / FRAME_FILE)
    train(bad, folder / "bad", prior_service("llm"))
    train(project, folder / "good", prior_service("llm"), seed=1)
    train(project, folder / "plain", BASELINE_SERVICE, seed=1)
    return folder


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, ["rank", *[str(word) for word in words]])


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "promotions.jsonl").read_text().splitlines()]


def test_the_better_one_is_promoted_and_taken_back(project: Project, rankers: Path, tmp_path: Path) -> None:
    own = Project(tmp_path / "project")  # rankers of its own, on the project's store
    shutil.copytree(rankers / "bad", own.ranker)
    shutil.copytree(project.plain, own.plain)
    own.repo.symlink_to(project.repo)
    engine = engine_for(own)
    bad, good = manifest_digest(rankers / "bad"), manifest_digest(rankers / "good")
    result = run("promote", rankers / "good", "--to", own.ranker, "--frame", rankers / "frame", *DAYS)
    assert result.exit_code == 0, result.output
    assert "promoted: it gains: auc +" in result.output
    engine.resources.refresh_rankers()
    assert engine.resources.rankers.digests[0] == good
    assert engine.resources.reloads == {"done": 1, "refused": 0}
    assert run("rollback", "--ranker", own.ranker).exit_code == 0
    engine.resources.refresh_rankers()
    assert engine.resources.rankers.digests[0] == bad
    lines = log_of(own.root)
    assert [line["what"] for line in lines] == ["promoted", "rolled back"]
    assert (lines[0]["candidate"], lines[0]["current"], lines[1]["current"]) == (good, bad, bad)
    assert lines[0]["facts"]["lifts"]["auc"][1] > 0
    # a ranker that is trained into the place is the place again, and can be promoted over
    train(project, own.ranker, prior_service("llm"), seed=2)
    assert not own.ranker.is_symlink()
    assert Ranker.load(own.ranker).seed == 2
    assert sorted(path.name for path in own.root.glob(".ranker*")) == []


def test_a_ranker_that_is_promoted_while_another_is_read_does_not_mix_with_it(
    project: Project, rankers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, really = tmp_path / "ranker", loading.read_manifest
    place.symlink_to(rankers / "good")

    def promote_meanwhile(*args: Any, **named: Any) -> Any:
        manifest = really(*args, **named)
        put_in_place(rankers / "plain", place)
        return manifest

    monkeypatch.setattr(loading, "read_manifest", promote_meanwhile)
    read = RankerFolder.read(place)
    assert manifest_digest(place) == manifest_digest(rankers / "plain")
    good = Ranker.load(rankers / "good")
    assert read.digest == manifest_digest(read.folder) == manifest_digest(rankers / "good")
    assert (read.ranker.service, read.ranker.features) == (good.service, good.features)


def test_what_loses_or_cannot_be_told_is_refused_and_says_why(project: Project, rankers: Path, tmp_path: Path) -> None:
    shutil.copytree(project.ranker, tmp_path / "ranker")
    before = manifest_digest(tmp_path / "ranker")
    frame = ("--to", tmp_path / "ranker", "--frame", rankers / "frame", *DAYS)
    for candidate, why in (
        (rankers / "bad", "it loses: auc"),
        (rankers / "good", "it cannot be told from the one that serves: auc"),
        (rankers / "plain", "one reads priors and the other does not"),
        (tmp_path / "ranker", "it is the ranker that serves"),
    ):
        result = run("promote", candidate, *frame)
        assert result.exit_code == 3, result.output
        assert f"refused: {why}" in result.output
        assert manifest_digest(tmp_path / "ranker") == before
        assert log_of(tmp_path)[-1]["what"] == "refused"
        assert why in log_of(tmp_path)[-1]["reason"]
    assert run("promote", rankers / "bad", *frame, "--margin", "0.001").exit_code == 3
    done = run("promote", rankers / "good", *frame, "--margin", "0.05", "--dry-run")
    assert "would be promoted: it is no worse by more than 0.05" in done.output
    assert manifest_digest(tmp_path / "ranker") == before
    assert len(log_of(tmp_path)) == 5
    with pytest.raises(AdvpriorError, match="SRV007"):
        cli.main(["rank", "rollback", "--ranker", str(tmp_path / "ranker")], standalone_mode=False)


def test_rows_that_a_ranker_was_tuned_on_are_no_evidence(project: Project, rankers: Path, tmp_path: Path) -> None:
    """A candidate whose plan reaches to the end of the frame has seen all of it."""
    candidate = tmp_path / "candidate"
    shutil.copytree(rankers / "good", candidate)
    about = json.loads((candidate / "ranker.json").read_text())
    about["facts"]["time_plan"]["valid_end"] = about["facts"]["time_plan"]["end"]
    (candidate / "ranker.json").write_text(json.dumps(about))
    manifest = json.loads((candidate / "manifest.json").read_text())
    (candidate / "manifest.json").write_text(json.dumps(manifest | {"key": "another"}))
    with pytest.raises(AdvpriorError, match="RNK048"):
        decide(candidate, project.ranker, rankers / "frame", Rule())
