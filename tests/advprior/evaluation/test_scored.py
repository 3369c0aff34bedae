"""Scored priors against what users turned to, by another way of counting: pandas, a user and a snapshot at a time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from advprior.cli import main
from advprior.evaluation.points import ScoredOptions
from advprior.evaluation.scored import START, measure_scored
from advprior.frames.priors import load_priors
from advprior.history.read import load_histories
from advprior.predictors.offset import Offset
from advprior.store.errors import AdvpriorError
from advprior.store.tables import load_tables, load_time_plan
from tests.advprior.conftest import Fitted
from tests.advprior.scoring import score
from tests.tiny import PLAN, WEEK, write_tiny

LATER = replace(PLAN, valid_end=PLAN.valid_end + 3 * WEEK)
EARLIER = replace(PLAN, end=PLAN.valid_end + 3 * WEEK)
OPTIONS = ScoredOptions(replicates=50)


@pytest.fixture(scope="module")
def folder(fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cut-offs, whose test windows lie one after another, and two arms at each."""
    made = tmp_path_factory.mktemp("scored")
    for name, plan, told in (("first", EARLIER, {}), ("second", LATER, {"weeks": 30})):  # the same, under another key
        write_tiny(made / name / "tables", plan, **told)
        for kind in ("popularity", "neighbours"):
            score(fitted.model(kind), made / name / "tables", made / name / kind, last=4)
    return made


def measured(folder: Path, options: ScoredOptions = OPTIONS, kinds=("popularity", "neighbours")) -> dict:
    names = ("first", "second")
    priors = [folder / name / kind for kind in kinds for name in names]
    return measure_scored(priors, [folder / name / "tables" for name in names], options)


def by_hand(tables: Path, priors: Path, k: int) -> dict[str, list[float]]:
    """Every target's nats and every point's recall, of all targets and of new ones."""
    events = load_tables(tables, "events")["events"].dropna(subset=["advertiser_id"])
    scored, plan = load_priors(priors), load_time_plan(tables)
    ids = scored.advertisers.advertiser_id.tolist()
    rows = dict(zip(zip(scored.rows.user_id, scored.rows.snapshot, strict=True), scored.array(), strict=True))
    out: dict[str, list[float]] = {"nll": [], "recall": [], "new nll": [], "new recall": []}
    for (user, snapshot), log_probs in rows.items():
        if snapshot < plan.valid_end or snapshot + WEEK > plan.end:
            continue
        own = events[events.user_id == user]
        past = set(own.advertiser_id[own.timestamp < snapshot])
        target = set(own.advertiser_id[(own.timestamp >= snapshot) & (own.timestamp < snapshot + WEEK)])
        best = {ids[i] for i in np.argsort(-log_probs, kind="stable")[:k]}
        for prefix, some in (("", target), ("new ", target - past)):
            out[prefix + "nll"] += [-float(log_probs[ids.index(a)]) for a in some]
            if some:
                out[prefix + "recall"].append(len(some & best) / min(len(some), k))
    return out


def test_figures_are_those_of_counting_one_by_one(folder: Path) -> None:
    result = measured(folder)
    rows = {(r["arm"], r["segment"], r["cutoff"]): r for r in result["arms"]}
    cutoffs = [EARLIER.valid_end.isoformat(), LATER.valid_end.isoformat()]
    assert result["about"]["cutoffs"] == cutoffs
    for kind in ("popularity", "neighbours"):
        each = [by_hand(folder / name / "tables", folder / name / kind, 5) for name in ("first", "second")]
        pooled = {what: each[0][what] + each[1][what] for what in each[0]}
        assert pooled["new nll"], "no target is new: the test says nothing of them"
        for hand, cutoff in zip((pooled, *each), (None, *cutoffs), strict=True):
            for prefix, segment in (("", "all"), ("new ", "new to the user")):
                row, nats = rows[kind, segment, cutoff], hand[prefix + "nll"]
                assert (row["targets"], row["points"]) == (len(nats), len(hand[prefix + "recall"]))
                if nats:
                    assert row["nll"] == pytest.approx(np.mean(nats), rel=1e-5)
                    assert row["recall@5"] == pytest.approx(np.mean(hand[prefix + "recall"]), rel=1e-9)


def test_differences_are_those_of_the_arms_and_pooled_intervals_draw_a_user_once(folder: Path) -> None:
    result = measured(folder)
    rows = {(r["arm"], r["segment"], r["cutoff"]): r for r in result["arms"]}
    for row in result["comparisons"]:
        arm, base = (rows[row[who], row["segment"], row["cutoff"]][row["metric"]] for who in ("arm", "baseline"))
        if arm is not None:
            assert row["difference"] == pytest.approx(arm - base, abs=1e-12)
            assert row["low"] <= row["difference"] <= row["high"]
    # the same cut-off twice holds no more users: its interval is as wide as once
    twice = [r for r in _of_one_window(folder) if (r["segment"], r["metric"]) == ("all", "nll")]
    pooled, once = (next(r for r in twice if (r["cutoff"] is None) == is_pooled) for is_pooled in (True, False))
    assert pooled["high"] - pooled["low"] == pytest.approx(once["high"] - once["low"], rel=1e-9)


def _of_one_window(folder: Path) -> list[dict]:
    """Comparisons of one window, pooled with itself as another cut-off."""
    from advprior.evaluation.points import CutOff
    from advprior.evaluation.scored import _Arm, _compare, _rows, _sums, _weights

    cutoff = CutOff.of(folder / "first" / "tables", OPTIONS)
    users = sorted({cutoff.histories.users[u] for u in cutoff.user.tolist()})
    sums = {}
    for kind in ("popularity", "neighbours"):
        place = folder / "first" / kind
        one = _sums(_Arm(kind, {0: place}), 0, cutoff, users, {(kind, 0): _rows(place, cutoff)})
        sums[kind] = np.stack([one, one])
    weights = _weights(cutoff, users)
    return _compare(sums, np.stack([weights, weights]), ["first", "again"], OPTIONS)[1]


def test_habit_and_drift_are_what_the_network_is_added_to(fitted: Fitted, folder: Path) -> None:
    tables, run = fitted.tables, fitted.model("llm")
    prior = folder / "own" / "neighbours"
    score(fitted.model("neighbours"), tables, prior, last=6)
    result = measure_scored([prior], [tables], replace(OPTIONS, starts=(run,)))
    (row,) = (r for r in result["arms"] if (r["arm"], r["segment"], r["cutoff"]) == (START, "all", None))
    histories, catalog = load_histories(tables)
    offset = Offset.from_json(json.loads((run / "habit.json").read_text()))
    nats = []
    for week in range(6):
        snapshot = PLAN.valid_end + week * WEEK
        at = np.asarray([int(snapshot.timestamp() * 1e6)])
        for user in range(len(histories)):
            logits = offset.logits(histories, np.asarray([user]), at, len(catalog))[0].astype(np.float64)
            own = slice(*histories.offsets[user : user + 2])
            inside = (histories.time[own] >= at) & (histories.time[own] < at + int(WEEK.total_seconds() * 1e6))
            target = np.unique(histories.advertiser[own][inside])
            nats += (np.log(np.exp(logits).sum()) - logits[target]).tolist()
    assert row["targets"] == len(nats)
    assert row["nll"] == pytest.approx(np.mean(nats), rel=1e-5)


def test_the_command_prints_and_writes_what_it_measured(folder: Path, capsys, tmp_path: Path) -> None:
    names = ("first", "second")
    words = ["compare", *(str(folder / name / kind) for kind in ("popularity", "neighbours") for name in names)]
    words += [word for name in names for word in ("--tables", str(folder / name / "tables"))]
    with pytest.raises(SystemExit) as left:
        main([*words, "--replicates", "50", "--out", str(tmp_path / "out.json")])
    assert left.value.code == 0
    result, printed = json.loads((tmp_path / "out.json").read_text()), capsys.readouterr().out
    assert result == json.loads(json.dumps(measured(folder)))
    assert f"{result['about']['points']:,} points of {result['about']['users']} users at 2 cut-offs" in printed
    pooled = next(r for r in result["comparisons"] if (r["metric"], r["segment"]) == ("recall@20", "new to the user"))
    assert f"popularity - neighbours: {pooled['difference']:+.4f} [{pooled['low']:+.4f}, " in printed


@pytest.mark.parametrize("case", ["no arm at a cut-off", "twice", "other tables", "few snapshots", "few advertisers"])
def test_priors_that_do_not_match_the_tables_are_refused(case: str, fitted: Fitted, folder: Path) -> None:
    tables = [folder / name / "tables" for name in ("first", "second")]
    first, second = (folder / name / "popularity" for name in ("first", "second"))
    priors = {"no arm at a cut-off": [first], "twice": [first, second, second], "other tables": [first, second]}
    if case == "other tables":
        tables = tables[:1]
    if case.startswith("few"):
        options = {"few snapshots": {"last": 2}, "few advertisers": {"last": 4, "top_k": 5}}[case]
        few = folder / case / "popularity"
        score(fitted.model("popularity"), tables[1], few, **options)
        priors[case] = [first, few]
    with pytest.raises(AdvpriorError) as caught:
        measure_scored(priors[case], tables, OPTIONS)
    assert caught.value.code == "PRI044"
    assert case != "few snapshots" or "--last 3 " in caught.value.fix


def test_a_model_that_saw_the_window_is_refused_and_a_window_without_labels_too(fitted: Fitted, tmp_path: Path) -> None:
    early = replace(PLAN, finetune_end=PLAN.start + 4 * WEEK, train_end=PLAN.start + 6 * WEEK)
    early = replace(early, valid_end=PLAN.start + 8 * WEEK, end=PLAN.start + 9 * WEEK)
    tables, out = write_tiny(tmp_path / "tables", early), tmp_path / "popularity"
    score(fitted.model("popularity"), tables, out)
    for options, code in ((OPTIONS, "PRI040"), (replace(OPTIONS, horizon=2 * WEEK), "PRI041")):
        with pytest.raises(AdvpriorError) as caught:
            measure_scored([out], [tables], options)
        assert caught.value.code == code


def test_times_are_microseconds_whatever_the_file_keeps(folder: Path) -> None:
    from advprior.evaluation.scored import _micros

    stamps = pd.Series(pd.to_datetime(["2024-02-05T00:00:01.5Z"]))
    assert _micros(stamps).tolist() == _micros(stamps.astype("datetime64[ms, UTC]")).tolist() == [1707091201500000]
