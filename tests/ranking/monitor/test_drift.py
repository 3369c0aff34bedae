"""Drift by hand arithmetic; a planted shift fires, and none stays silent."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from math import log
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from advprior.store.errors import AdvpriorError
from ranking.cli.monitor import drift as command
from ranking.monitor.drift import drift_of, measure, prior_drifts
from ranking.monitor.findings import DriftReport
from ranking.monitor.own_pace import Scale
from ranking.monitor.psi import Bins, noise, psi
from tests.ranking.frames import synthetic_frame, write_frame

SHIFTED = "activity_events"


def test_the_index_is_the_sum_by_hand() -> None:
    by_hand = (0.2 - 0.5) * log(0.2 / 0.5) + (0.3 - 0.3) * log(1) + (0.5 - 0.2) * log(0.5 / 0.2)
    assert psi([50, 30, 20], [20, 30, 50]) == pytest.approx(by_hand)
    assert psi([20, 30, 50], [50, 30, 20]) == pytest.approx(by_hand)
    assert psi([5, 5], [500, 500]) == 0.0
    # a bin that training lacked counts as half a row of it, one that both lack says nothing
    assert psi([10, 0, 0], [5, 0, 5]) == pytest.approx((0.5 - 1) * log(0.5) + (0.5 - 0.05) * log(0.5 / 0.05))


def test_bins_are_tenths_of_training_with_missing_apart() -> None:
    bins = Bins.of_numbers(np.arange(1.0, 101.0))
    assert bins.edges is not None
    assert bins.edges.tolist() == [10, 20, 30, 40, 50, 60, 70, 80, 90]
    assert bins.count([5.0, 10.0, 10.5, 1000.0, np.nan, np.nan]).tolist() == [2, 1, 0, 0, 0, 0, 0, 0, 0, 1, 2]
    constant = Bins.of_numbers(np.zeros(50))
    assert dict(zip(constant.labels(), constant.count([-1.0, 0.0, 0.0, 3.0, np.nan]), strict=True)) == {
        "< 0": 1,
        "0": 2,
        "> 0": 1,
        "missing": 1,
    }
    never = Bins.of_numbers(np.full(5, np.nan))
    assert never.count([np.nan, 1.0]).tolist() == [1, 1]
    text = Bins.of_text(["b", "a", "b", None])
    assert dict(zip(text.labels(), text.count(["a", "new", None, "b", "b"]), strict=True)) == {
        "b": 2,
        "a": 1,
        "others": 1,
        "missing": 1,
    }


def test_values_that_go_missing_are_drift() -> None:
    before = pd.Series(np.arange(100.0), name="x")
    after = before.where(before >= 50)
    found = drift_of("x", "feature", before, after, Scale((100, 100)))
    # five bins go from .1 to nothing (.005 stands for it), half of the rows from nothing to missing
    by_hand = 5 * (0.005 - 0.1) * log(0.005 / 0.1) + (0.5 - 0.005) * log(0.5 / 0.005)
    assert found.psi == pytest.approx(by_hand, abs=1e-6)
    assert found.severity == "major"
    assert found.current[-1] == 50


def test_chance_gives_what_the_formula_says() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(300):
        before, after = rng.normal(size=400), rng.normal(size=200)
        bins = Bins(edges=np.array([-1.0, -0.5, 0.0, 0.5, 1.0]))  # of the distribution, not of the sample
        found.append(psi(bins.count(before), bins.count(after)))
    assert np.mean(found) == pytest.approx(noise(6, 400, 200), rel=0.15)


def _run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(command, list(arguments))
    if isinstance(result.exception, AdvpriorError):
        raise result.exception
    return result.exit_code, result.output


def test_no_shift_stays_silent_and_a_planted_one_fires(tmp_path: Path) -> None:
    frame = synthetic_frame()
    assert measure(write_frame(tmp_path / "calm", frame)).worst() == "stable"

    # deviation 4.5: twelve events more put nearly everybody above the median of training
    later = (frame["split"] == "test").to_numpy()
    frame.loc[later, SHIFTED] += np.float32(12)
    moved = write_frame(tmp_path / "moved", frame)
    for reused in (False, True):  # the exit code is the same
        code, output = _run("--frame", str(moved), "--out", str(tmp_path / "moved_out"))
        assert code == 3
        assert "rank drift: major" in output
        assert output.startswith("rank drift: unchanged") == reused
    assert _run("--frame", str(moved), "--out", str(tmp_path / "moved_out"), "--fail-on", "never")[0] == 0
    about = json.loads((tmp_path / "moved_out" / "drift.json").read_text())
    assert [one["name"] for one in about["drifts"] if one["severity"] != "stable"] == [SHIFTED]
    assert about["about"]["current"]["rows"] == later.sum()
    page = (tmp_path / "moved_out" / "drift.html").read_text()
    assert SHIFTED in page
    assert "<script" not in page
    assert "http" not in page.replace("data:image/svg+xml", "")


def test_a_prior_that_moves_is_one_finding_with_all_its_columns() -> None:
    """Whatever else is stable or moves: each thing once, the severest first, and every column that moved is named."""
    rng = np.random.default_rng(0)
    users = [f"u{i}" for i in range(500)]
    shift = {"prior_a_entropy": 2.0, "prior_a_log_prob": 1.0, "prior_b_entropy": 0.0, "age": 3.0, "clicks": 0.0}
    drifts = []
    for name, by in shift.items():
        before, after = pd.Series(rng.normal(size=len(users))), pd.Series(rng.normal(by, size=len(users)))
        of = name.rpartition("_entropy")[0] or name.rpartition("_log_prob")[0] or name
        drifts.append(replace(drift_of(name, "feature", before, after, Scale((500, 500))), of=of))
    drifts.append(replace(drifts[0], kind="prior"))  # a prior's own entries stand beside the frame's
    report = DriftReport(drifts, {})
    assert [(one.name, one.severity) for one in report.findings()] == [("age", "major"), ("prior_a", "major")]
    assert report.findings()[1].columns == ["prior_a_entropy", "prior_a_log_prob"]
    assert report.findings()[1].psi == drifts[0].psi
    assert report.to_json()["findings"][0]["columns"] == ["age"]
    assert DriftReport(drifts[2:3], {}).findings() == []


def test_a_newer_frame_counts_from_the_end_of_training(tmp_path: Path) -> None:
    frame = synthetic_frame()
    old = write_frame(tmp_path / "old", frame)
    newer = frame.assign(timestamp=frame["timestamp"] + timedelta(weeks=2))
    last = newer["timestamp"].max()
    newer.loc[newer["timestamp"] > last - timedelta(days=7), SHIFTED] += np.float32(12)
    recent = write_frame(tmp_path / "recent", newer)
    whole = measure(old, recent=recent)
    until = frame.loc[frame["split"] == "train", "timestamp"].max()
    assert whole.about["current"]["rows"] == (newer["timestamp"] > until).sum()
    week = measure(old, recent=recent, days=7)
    of_whole, of_week = (next(d.psi for d in report.drifts if d.name == SHIFTED) for report in (whole, week))
    assert of_week > 3 * of_whole
    stale = write_frame(tmp_path / "stale", frame.assign(timestamp=frame["timestamp"] - timedelta(weeks=52)))
    with pytest.raises(AdvpriorError, match="RNK035"):
        measure(old, recent=stale)
    lacking = write_frame(tmp_path / "lacking", newer.drop(columns=[SHIFTED]))
    with pytest.raises(AdvpriorError, match="RNK023"):
        measure(old, recent=lacking)


def test_priors_are_compared_by_snapshot(tmp_path: Path) -> None:
    weeks = pd.to_datetime([f"2024-03-{day:02d}T00:00:00Z" for day in (4, 11, 18, 25)]).astype("datetime64[us, UTC]")
    rng = np.random.default_rng(3)
    table = pd.DataFrame(
        {
            "user_id": np.tile([f"u{i:03d}" for i in range(500)], 4),
            "snapshot": np.repeat(weeks, 500),
            "event_timestamp": np.repeat(weeks + timedelta(hours=1), 500),
            "entropy": rng.normal(2, 0.3, 2000),
            "top1_log_prob": rng.normal(-1, 0.3, 2000),
        }
    )
    calm, about = prior_drifts(table, "llm", weeks[2])
    assert {d.name: d.severity for d in calm} == {"prior_llm_entropy": "stable", "prior_llm_top1_log_prob": "stable"}
    assert about["reference_snapshots"] == 2  # the third became available an hour after the last training row
    assert sum(calm[0].reference) == 1000
    table.loc[1500:, "entropy"] -= 0.5  # the model grew surer of itself
    moved, _ = prior_drifts(table, "llm", weeks[2])
    assert {d.name: d.severity for d in moved} == {"prior_llm_entropy": "major", "prior_llm_top1_log_prob": "stable"}
    assert prior_drifts(table, "llm", weeks[0])[0] == []
