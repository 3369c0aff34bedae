"""What a ranker read online equals the frame that is built later, column by column; a planted skew is named, alone."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from advprior.store.contract import AD_STATS_VIEW, LLM, PROFILE_PREFIX, TABLE_FILE, USER_PROFILE_VIEW, prior_view
from advprior.store.errors import AdvpriorError
from advprior.store.features import CLOCK_SOURCE
from advprior.store.tables import write_parquet
from ranking.cli.monitor import audit as command
from ranking.experiment.shown import AS_OF, FEATURES
from ranking.experiment.shown_rows import Window
from ranking.monitor.audit import VALUES, Audit, audit, audits
from ranking.service.app import create_app, make_engine
from tests.ranking.stores import apply
from tests.service.live import TestClient, settings_of
from tests.service.workspaces import NOW, FixedClock, Project, copy_project


@pytest.fixture(scope="module")
def exposures(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with features: half of the users by the ranker with priors, at one moment, and a later one."""
    folder = tmp_path_factory.mktemp("audit") / "exposures"
    experiment = folder.parent / "experiment.yaml"
    experiment.write_text(
        "name: halves\nsalt: s\narms: [{name: a, priors: true, share: 0.5}, {name: b, priors: false, share: 0.5}]\n"
    )
    clock = FixedClock(NOW)
    own = settings_of(project, exposures=folder, log_features=1.0, experiment=experiment)
    with TestClient(create_app(own, make_engine(own, clock))) as client:
        for i in range(80):
            clock.moment = NOW + timedelta(hours=i // 2)
            body = {"user_id": f"u{i:03d}", "slots": 6, "context": {"context_placement": "front" if i % 2 else "back"}}
            assert client.post("/rank", json=body).status_code == 200
    return folder


def of(project: Project, exposures: Path, ranker: Path | None = None) -> Audit:
    return audit(project.tables, project.repo, exposures, ranker or project.ranker)


def test_every_cell_is_equal(project: Project, exposures: Path, tmp_path: Path) -> None:
    for done in audits(project.tables, project.repo, exposures, [project.ranker, project.plain]):
        assert done.exposures > 20
        assert done.cells == 6 * done.exposures * len(done.columns)
        assert done.unequal == 0, done.text()
    options = [
        "--tables",
        project.tables,
        "--repo",
        project.repo,
        "--exposures",
        exposures,
        "--out",
        tmp_path / "audit",
    ]
    rankers = ["--ranker", project.ranker, "--ranker", project.plain, "--frame", project.root / "frame"]
    rankers += ["--from", NOW.isoformat(), "--to", (NOW + timedelta(days=9)).isoformat()]
    result = CliRunner().invoke(command, [str(word) for word in (*options, *rankers)])
    assert result.exit_code == 0, result.output
    assert result.output.count("100.0000%") == 2
    assert [one["unequal"] for one in json.loads((tmp_path / "audit/audit.json").read_text())] == [0, 0]


def test_a_planted_skew_is_named_and_nothing_else(
    project: Project, exposures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody changed one published column of ads, and the entropy of the priors, behind the online store's back."""
    own = copy_project(project, tmp_path / "copied")
    for view, column in ((AD_STATS_VIEW, "ad_impressions_4w"), (prior_view(LLM), "entropy")):
        path = (own.repo / "data" / view).resolve() / TABLE_FILE
        table = pd.read_parquet(path)
        column = column if column in table else next(c for c in table if c.startswith("ad_") and c != "ad_id")
        table[column] = table[column] + np.float32(0.5)
        write_parquet(table, path)
    apply(own.repo)
    done = of(own, exposures)
    skewed = {one.name: one for one in done.columns if one.unequal}
    assert len(skewed) == 2
    assert "prior_llm_entropy" in skewed
    assert all(set(one.causes) == {VALUES} for one in skewed.values())
    assert {one.name for one in done.unexplained} == set(skewed)
    monkeypatch.setattr("ranking.monitor.audit.PART", 100)
    assert of(own, exposures) == done  # rows that come in parts
    options = ["--tables", own.tables, "--repo", own.repo, "--exposures", exposures, "--ranker", own.ranker]
    result = CliRunner().invoke(command, [str(word) for word in (*options, "--out", tmp_path / "audit")])
    assert result.exit_code == 3
    assert "prior_llm_entropy" in result.output


def test_a_row_of_another_time_is_told_from_a_skew(project: Project, exposures: Path, tmp_path: Path) -> None:
    """The refresh was late: the frame joins a snapshot that was not online yet."""
    log = tmp_path / "log"
    log.mkdir()
    for path in exposures.glob("*.jsonl"):
        lines = []
        for line in path.read_text().splitlines():
            record = json.loads(line)
            record["time"] = (pd.Timestamp(record["time"]) + pd.Timedelta(days=7)).isoformat()
            lines.append(json.dumps(record))
        (log / path.name).write_text("\n".join(lines) + "\n")
    done = of(project, log)
    causes = {cause for one in done.columns if one.source != CLOCK_SOURCE for cause in one.causes}
    assert causes == {f"an older row of {view} online" for view in ("user_history", "ad_stats", "prior_llm")}


def test_a_user_who_asked_before_the_first_refresh_is_told_from_a_skew(
    project: Project, exposures: Path, tmp_path: Path
) -> None:
    """The frame knows the profile from the snapshot on; online it came some minutes later."""
    log = tmp_path / "log"
    log.mkdir()
    profile = f"no row of {USER_PROFILE_VIEW} online"
    for path in exposures.glob("*.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for record in records[::7]:
            record[AS_OF][USER_PROFILE_VIEW] = []
            record[FEATURES] |= {name: None for name in record[FEATURES] if name.startswith(PROFILE_PREFIX)}
        (log / path.name).write_text("\n".join(map(json.dumps, records)) + "\n")
    done = of(project, log, project.plain)
    assert {cause for one in done.columns for cause in one.causes} == {profile}
    assert {one.source for one in done.columns if one.unequal} == {USER_PROFILE_VIEW}


def test_only_the_exposures_of_a_window_are_audited(project: Project, exposures: Path) -> None:
    """What was audited yesterday need not be joined again; an empty window is said, not passed."""
    middle = NOW + timedelta(hours=20)
    of_window = [
        audit(project.tables, project.repo, exposures, project.ranker, window=window).exposures
        for window in (Window(end=middle), Window(start=middle), Window(start=middle, limit=2))
    ]
    assert of_window[0] + of_window[1] == of(project, exposures).exposures
    assert min(of_window) == of_window[2] == 2
    with pytest.raises(AdvpriorError, match="SRV021"):
        audit(project.tables, project.repo, exposures, project.ranker, window=Window(start=NOW + timedelta(days=9)))
