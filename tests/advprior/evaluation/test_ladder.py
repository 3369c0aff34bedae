"""The whole ladder on tiny tables, with fitted and exported runs."""

from __future__ import annotations

import json
from datetime import UTC, timedelta
from pathlib import Path

import numpy as np
import pytest

from advprior.cli import main
from advprior.evaluation import controls
from advprior.evaluation.ladder import evaluate
from advprior.evaluation.protocol import METRICS, SEGMENTS, first_labels
from advprior.fitting import finetune
from advprior.predictors.base import predictor_class
from feature_repo.errors import AdvpriorError
from feature_repo.tables import load_tables
from tests.advprior.predictors.conftest import export
from tests.advprior.test_histories import histories_of
from tests.tiny import PLAN, write_tiny

WEEKS = timedelta(days=28)
CUTOFF = PLAN.finetune_end


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ladder")
    write_tiny(made / "tables")
    for kind in ("popularity", "neighbours"):
        finetune(made / "tables", made / kind, kind, predictor_class(kind).settings({}))
        export(made / kind)
    return made


@pytest.fixture(scope="module")
def result(folder: Path) -> dict:
    runs = [folder / "popularity", folder / "neighbours"]
    found, fresh = evaluate(runs, folder / "tables", CUTOFF, horizon=WEEKS, replicates=100, device="cpu")
    assert fresh
    return found


def test_every_arm_and_comparison_is_there(result: dict) -> None:
    names = [row["name"] for row in result["arms"]]
    plain = ["popularity", "recency", "neighbours", *(["als"] if controls.als_installed() else [])]
    runs = ["popularity (2)", "blend + popularity (2)", "neighbours (2)", "blend + neighbours (2)"]
    assert names == [*plain, "blend", *runs]
    for row in result["arms"]:
        assert set(row) == {"name", "uses_llm", "users", *METRICS}
        assert row["uses_llm"] is False
        assert 0 <= row["recall@1"] <= row["recall@5"] <= row["recall@20"] <= 1
        assert row["recall@1"] <= row["mrr"] <= 1
    for row in result["comparisons"]:
        assert set(row) == {"arm", "baseline", "metric", "segment", "difference", "relative", "low", "high"}
    kinds = {(row["metric"], row["segment"]) for row in result["comparisons"]}
    assert kinds == {(metric, segment) for metric in METRICS for segment in SEGMENTS}
    assert ("als" in result["about"]["left_out"]) != controls.als_installed()


def test_differences_are_those_of_the_arms(result: dict) -> None:
    arms = {row["name"]: row for row in result["arms"]}
    overall = [row for row in result["comparisons"] if row["segment"] == "overall"]
    for row in overall:
        base = arms[row["baseline"]][row["metric"]]
        assert row["difference"] == pytest.approx(arms[row["arm"]][row["metric"]] - base, abs=1e-12)
        assert row["low"] - 1e-9 <= row["difference"] <= row["high"] + 1e-9
        assert row["relative"] == pytest.approx(row["difference"] / base)
    assert any(row["low"] > 0 for row in overall if row["arm"] == "recency" and row["metric"] == "mrr")


def test_nothing_from_the_cutoff_on_is_fitted_on(folder: Path, result: dict, tmp_path: Path) -> None:
    """Other events after the first label change neither the settings, nor the weights, nor any arm."""
    write_tiny(tmp_path / "tables")
    events = load_tables(tmp_path / "tables", "events")["events"]
    later = events[events.timestamp >= CUTOFF].groupby("user_id").timestamp.transform("min")
    keep = (events.timestamp < CUTOFF) | (events.timestamp == later.reindex(events.index))
    assert 0 < keep.sum() < len(events)
    events[keep].to_parquet(tmp_path / "tables/events.parquet")
    runs = [folder / "popularity", folder / "neighbours"]
    cut, _ = evaluate(runs, tmp_path / "tables", CUTOFF, horizon=WEEKS, replicates=10, device="cpu")
    for part in ("controls", "blend_weights", "fitted_at", "fitted_users"):
        assert cut["about"][part] == result["about"][part]


def test_a_model_that_saw_later_labels_is_refused(folder: Path) -> None:
    for runs, earlier in (([folder / "popularity"], []), ([], [folder / "neighbours"])):
        with pytest.raises(AdvpriorError) as caught:
            evaluate(runs, folder / "tables", CUTOFF - timedelta(seconds=1), earlier=earlier)
        assert caught.value.code == "PRI040"


def test_an_earlier_run_weighs_the_blend(folder: Path, result: dict) -> None:
    """A run fitted up to the cut-off saw the labels that weigh it, which is said; one for each run is needed."""
    assert result["about"]["saw_the_blend_labels"] == ["popularity (2)", "neighbours (2)"]
    later = CUTOFF + 2 * WEEKS
    run = folder / "neighbours"
    found, _ = evaluate([run], folder / "tables", later, horizon=WEEKS, earlier=[run], replicates=10, device="cpu")
    assert found["about"]["saw_the_blend_labels"] == []
    with pytest.raises(AdvpriorError) as caught:
        evaluate([run, folder / "popularity"], folder / "tables", CUTOFF, earlier=[run])
    assert caught.value.code == "PRI042"


def test_another_catalog_is_refused(folder: Path, tmp_path: Path) -> None:
    write_tiny(tmp_path / "tables", advertisers=11)
    with pytest.raises(AdvpriorError) as caught:
        evaluate([folder / "popularity"], tmp_path / "tables", CUTOFF, horizon=WEEKS)
    assert caught.value.code == "PRI002"


def test_nobody_to_ask_about_is_said(folder: Path) -> None:
    for cutoff in (PLAN.start, PLAN.end + 10 * WEEKS):
        with pytest.raises(AdvpriorError) as caught:
            evaluate([], folder / "tables", cutoff)
        assert caught.value.code == "PRI041"


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "ladder.json"
    day = CUTOFF.astimezone(UTC).date().isoformat()
    line = ["evaluate", str(folder / "popularity"), "--tables", str(folder / "tables"), "--cutoff", day]
    line += ["--horizon", "4w", "--out", str(out), "--replicates", "20"]
    for expected in ("s -> ", "unchanged, reused"):
        with pytest.raises(SystemExit) as left:
            main(line)
        assert left.value.code == 0
        printed = capsys.readouterr()
        assert expected in printed.out
        assert "blend + popularity (2) - blend" in printed.out
        assert printed.err == ""  # no bar without a terminal
    written = json.loads(out.read_text())
    assert {"inputs", "versions", "seconds", "config", "key"} <= set(written["about"])
    assert [p.name for p in out.parent.iterdir()] == [out.name]


def test_a_file_of_others_is_kept(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(AdvpriorError) as caught:
        evaluate([], folder / "tables", CUTOFF, horizon=WEEKS, out=tmp_path / "mine.json")
    assert caught.value.code == "PRI043"
    assert (tmp_path / "mine.json").read_text() == "{}"


def test_wrong_options_exit_with_two(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, value in (("--cutoff", "yesterday"), ("--horizon", "0d"), ("--horizon", "1y")):
        good = ["evaluate", "--tables", str(folder / "tables"), "--cutoff", "2024-03-01"]
        with pytest.raises(SystemExit) as left:
            main([*good, option, value])
        assert left.value.code == 2
        assert value in capsys.readouterr().err


def test_als_finds_the_other_half_of_a_taste() -> None:
    """Two camps of advertisers: who bought one of a camp is given the others of it."""
    pytest.importorskip("implicit")
    rng = np.random.default_rng(0)
    rows = [[(t, int(3 * (u % 2) + a)) for t, a in enumerate(rng.choice(3, 2, replace=False))] for u in range(60)]
    term = controls.als_term(histories_of([*rows, [(0, 0)]]), np.asarray([60]), 6, 0)[0]
    assert term[1:3].min() > term[3:].max()


def test_a_blend_leans_on_the_arm_that_knows() -> None:
    rng = np.random.default_rng(0)
    histories = histories_of([[(0, 0), (5, int(rng.integers(4)))] for _ in range(200)])
    labels = first_labels(histories, 5, 5)
    good = np.log(0.1 + 0.6 * labels.truth(4)).astype(np.float32)
    noise = rng.permutation(good)
    weights = controls.fit_blend({"good": good, "noise": noise}, labels)
    assert weights["good"] > 5 * abs(weights["noise"])


def test_a_sample_of_users_is_the_same_for_every_arm(folder: Path, result: dict) -> None:
    runs = [folder / "popularity"]
    small, _ = evaluate(runs, folder / "tables", CUTOFF, horizon=WEEKS, replicates=20, users=7, device="cpu")
    assert {row["users"] for row in small["arms"]} == {7}
    assert small["about"]["config"]["asked"] == 7
    assert result["arms"][0]["users"] > 7
