"""Learning curves: differences by hand arithmetic, where a line crosses nothing, cells that are measured once."""

from __future__ import annotations

import json
from datetime import timedelta

import numpy as np
import pytest

from advprior.cli import main
from advprior.evaluation.learning_curve.arms import ALONE, without_names
from advprior.evaluation.learning_curve.cells import METRICS, SEGMENTS, CellResult
from advprior.evaluation.learning_curve.pool import Point, crossing, difference
from advprior.evaluation.learning_curve.result import (
    BEST_RANDOM,
    BEST_WITH,
    BEST_WITHOUT,
    NAMES_BEYOND_RANDOM,
    NAMES_BEYOND_WORDS,
    NO_NAMES,
)
from advprior.predictors.text.similar import lift_term, smoothed_lift, text_kernel, text_terms
from tests.planted import write_planted
from tests.tiny import PLAN
from tests.tiny_llm import write_tiny_llm


def cell(good: list[float], bad: list[float]) -> CellResult:
    """Recall@5 of two arms by user, one label each."""
    sums = np.zeros((2, len(METRICS), len(SEGMENTS), len(good)), np.float32)
    sums[0, 0, 0], sums[1, 0, 0] = good, bad
    weights = np.zeros((len(SEGMENTS), len(good)), np.float32)
    weights[0] = 1.0
    return CellResult(("good", "bad"), {}, sums, weights, np.zeros(2), 10, 10, 0)


GAIN = ((1, "good"), (-1, "bad"))


def test_a_difference_and_both_parts_of_its_variance_by_hand() -> None:
    """Draws of gains (1, 0, 1, 0) and (1, 1, 1, 1) of four users: means .5 and 1."""
    draws = [[cell([1, 0, 1, 0], [0, 0, 0, 0]), cell([1, 1, 1, 1], [0, 0, 0, 0])]]
    point = difference(draws, [np.arange(4)], 9, [[GAIN] * 2], "recall@5")
    assert point is not None
    assert point.mean == 0.75
    np.testing.assert_allclose(point.by_user[:4], [0.0625, -0.0625, 0.0625, -0.0625])
    of_users = 4 * 0.0625**2 * 4 / 3
    of_draws = np.var([0.5, 1.0], ddof=1) / 2
    assert point.variance()[0] == pytest.approx(of_users + of_draws)
    assert difference(draws, [np.arange(4)], 9, [[GAIN] * 2], "recall@5", "history 1") is None
    twice = difference(draws, [np.arange(4)], 9, [[(*GAIN, (-1, "bad"), (1, "good"))] * 2], "recall@5")
    assert twice is not None
    assert twice.mean == 1.5


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Gain .1 of 60 users at two cut-offs, and of three draws that are off by ±.05 each."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        by_user = rng.normal(0.1, 0.3, 60)
        cells = []
        for _cutoff in range(2):
            lucks = rng.normal(0.0, 0.05, 3)
            cells.append([cell(list(by_user + luck + rng.normal(0, 0.1, 60)), [0.0] * 60) for luck in lucks])
        point = difference(cells, [np.arange(60)] * 2, 60, [[GAIN] * 3] * 2, "recall@5")
        assert point is not None
        low, high = point.interval()
        held += low <= 0.1 <= high
    assert 0.92 <= held / 200 <= 0.98


def line(gains: list[float], error: float) -> dict[float, Point]:
    """Points at 100, 1,000, … users."""
    rng = np.random.default_rng(1)
    points = {}
    for i, gain in enumerate(gains):
        noise = rng.normal(size=50)
        by_user = error * (noise - noise.mean()) / np.linalg.norm(noise - noise.mean())
        points[10.0 ** (2 + i)] = Point(gain, by_user, np.asarray([[gain]]), 50.0)
    return points


def test_a_gain_that_fades_crosses_where_the_line_does() -> None:
    fading = crossing(line([0.3, 0.2, 0.1], 0.01), higher_is_better=True)
    assert fading["users"] == pytest.approx(1e5, rel=1e-6)
    assert fading["low"] < 1e5 < fading["high"]
    assert crossing(line([-0.3, -0.2, -0.1], 0.01), higher_is_better=False)["users"] == pytest.approx(1e5, rel=1e-6)
    assert crossing(line([0.1, 0.2, 0.3], 0.01), higher_is_better=True)["users"] is None
    vague = crossing(line([0.3, 0.2, 0.1], 0.5), higher_is_better=True)
    assert vague["high"] is None


def test_text_terms_by_hand() -> None:
    cosine = np.asarray([[1.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 1.0]], np.float32)
    own = np.asarray([[np.e - 1, 0.0, np.e - 1], [0.0, 0.0, 0.0]], np.float32)
    terms = text_terms(cosine, own, own > 0, {"year": np.asarray([2.0, 0.0, 0.0], np.float32)})
    np.testing.assert_allclose(terms["mean"][0], [0.5, 0.35, 0.5], rtol=1e-5)
    np.testing.assert_allclose(terms["largest"][0], [1.0, 0.5, 1.0])
    np.testing.assert_allclose(terms["top 3"][0], [0.5, 0.35, 0.5], rtol=1e-5)
    assert not terms["mean"][1].any()
    smoothed = terms["popular year 0.2"][0]
    assert smoothed[0] > smoothed[1] > smoothed[2]  # alike the only popular one


def test_a_lift_reaches_pairs_that_nobody_has_had_yet() -> None:
    """Users of 0 turn to 1; 2 reads like 1, 3 like nothing: to a user of 0 it speaks for 1 most, then for 2."""
    both = np.asarray([[6.0, 4, 0, 0], [4, 6, 0, 0], [0, 0, 3, 0], [0, 0, 0, 3]])
    cosine = np.eye(4, dtype=np.float32)
    cosine[1, 2] = cosine[2, 1] = 0.9
    lift = smoothed_lift(text_kernel(cosine), both)
    term = lift_term(np.asarray([[2.0, 0, 0, 0], [0, 0, 0, 0]], np.float32), lift)
    assert term[0, 1] > term[0, 2] > term[0, 3]
    assert not term[1].any()
    np.testing.assert_allclose(lift, lift.T, rtol=1e-4, atol=1e-5 * np.abs(lift).max())


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curve")
    write_planted(folder / "tables", users=90)
    write_tiny_llm(folder / "base")
    return folder


def evaluate(folder, *options) -> int:
    arguments = ["evaluate", "--tables", f"{folder}/tables", "--learning-curve", "20,all", "--draws", "2"]
    with pytest.raises(SystemExit) as leave:
        main([*arguments, "--horizon", "28d", "--layers", "2", "--encoder", f"{folder}/base", *map(str, options)])
    return int(leave.value.code or 0)


def test_the_curve_of_planted_kinds(workspace, capsys) -> None:
    """Names tell the kind that a user keeps to: words pay at 20 users, and only by names; measured cells are kept."""
    later = PLAN.finetune_end + timedelta(days=28)
    cutoffs = ("--cutoffs", f"{PLAN.finetune_end.isoformat()},{later.isoformat()}", "--out", workspace / "curve.json")
    cutoffs = (*cutoffs, "--mask-names")
    assert evaluate(workspace, *cutoffs) == 0
    captured = capsys.readouterr()
    printed = captured.out
    result = json.loads((workspace / "curve.json").read_text())
    assert result["verdict"]["sentence"] in printed
    assert "texts are as of" in printed  # the first cut-off's labels to fit on are older
    assert "CPU time in all" in captured.err
    assert (workspace / "curve.svg").read_text().startswith("<?xml")
    keys = {"cutoff", "users", "draw", "segment", "arm", "baseline", "metric", "difference", "low", "high"}
    assert all(keys <= set(row) for row in result["curve"])
    assert {(row["cutoff"] is None, row["draw"]) for row in result["curve"]} == {
        (True, None),
        (False, None),
        (False, 0),
        (False, 1),
    }
    assert {"arm", "baseline", "metric", "users", "low", "high"} <= set(result["crossing"][0])
    nats = {
        (row["arm"], row["baseline"]): row["difference"]
        for row in result["curve"]
        if (row["cutoff"], row["users"], row["segment"], row["metric"]) == (None, 20, "overall", "nll")
    }
    assert nats["lexical", "logit"] < 0
    assert nats["lexical", NO_NAMES] < 0
    few, masked = nats["base", NO_NAMES], nats["base", BEST_RANDOM] - nats[without_names("base"), BEST_RANDOM]
    np.testing.assert_allclose(nats["base", NAMES_BEYOND_RANDOM], masked, rtol=1e-6)
    np.testing.assert_allclose(few - nats["base", NAMES_BEYOND_WORDS], nats["lexical, few terms", NO_NAMES], rtol=1e-6)
    assert f"{BEST_WITH} - {NO_NAMES}" in printed
    assert not any("masked" in row[arm] for row in result["chosen"] for arm in (BEST_WITH, BEST_WITHOUT))
    assert any((row["arm"], row["baseline"]) == (BEST_WITH, BEST_WITHOUT) for row in result["curve"])
    cells = sorted((workspace / "curve.cells").glob("2*.npz"))
    assert len(cells) == 2 * (2 + 1)
    times = [path.stat().st_mtime_ns for path in cells]
    cells[0].unlink()
    assert evaluate(workspace, *cutoffs) == 0
    again = json.loads((workspace / "curve.json").read_text())
    assert [path.stat().st_mtime_ns for path in cells[1:]] == times[1:]
    before, after = (np.asarray([row["difference"] for row in of["curve"]]) for of in (result, again))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5 * np.abs(before).max())
    with_llm = {row["arm"] for row in result["curve"] if row["baseline"] == BEST_WITHOUT}
    mixed = "lexical and base, averaged"
    shapes = {f"{mixed}, {shape}" for shape in ("few terms", "with lift", ALONE)}
    assert with_llm == {BEST_WITH, "base", "lexical + base", mixed, *shapes}


def test_a_cut_off_before_the_texts_were_written_is_refused(workspace, capsys) -> None:
    early = PLAN.finetune_end - timedelta(days=28)
    assert evaluate(workspace, "--cutoffs", early.isoformat(), "--out", workspace / "early.json") == 2
    assert "error PRI082: " in capsys.readouterr().err
    assert not (workspace / "early.json").exists()


def test_what_a_learning_curve_does_not_take(workspace, capsys) -> None:
    assert evaluate(workspace, "--out", workspace / "none.json") == 2
    assert "--cutoffs" in capsys.readouterr().err
