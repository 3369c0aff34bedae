"""The whole ladder on tiny tables, with fitted and exported runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, timedelta
from pathlib import Path

import numpy as np
import pytest

from advprior.cli import main
from advprior.evaluation import controls
from advprior.evaluation.als import AlsSettings, als_factors, als_installed, fit_als
from advprior.evaluation.ladder import evaluate
from advprior.evaluation.options import Options
from advprior.evaluation.population import ALL
from advprior.evaluation.protocol import METRICS, PROFILE_ONLY, SEGMENTS, first_labels
from advprior.evaluation.runs import TAKEN
from advprior.evaluation.seeds import group_runs
from advprior.evaluation.show import frame, markdown, notes
from advprior.evaluation.terms import ALS, ARMS, Terms
from advprior.pipeline.fit import finetune
from advprior.predictors.registry import predictor_class
from advprior.store.errors import AdvpriorError
from advprior.store.runs import read_manifest
from advprior.store.tables import load_tables
from tests.advprior.conftest import export, llm_settings
from tests.advprior.history.test_histories import histories_of
from tests.tiny import PLAN, tiny_tables, write_tiny
from tests.tiny_llm import write_tiny_llm

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
    found, fresh = evaluate(runs, folder / "tables", CUTOFF, Options(horizon=WEEKS, replicates=100, device="cpu"))
    assert fresh
    return found


def test_every_arm_and_comparison_is_there(result: dict) -> None:
    names = [row["name"] for row in result["arms"]]
    plain = ["popularity", "drift", "recency", "neighbours", *(["als"] if als_installed() else []), "ease", "logit"]
    runs = ["popularity (2)", "neighbours (2)"]
    assert names == [*plain, *runs, "blend"]
    (weights,) = result["about"]["blend_weights"]["blend"]
    assert list(weights) == [*plain, *runs]  # whoever has no LLM is in the blend of all controls
    for row in result["arms"]:
        assert set(row) == {"name", "uses_llm", "users", "seeds", *METRICS}
        assert row["uses_llm"] is False
        assert 0 <= row["recall@1"] <= row["recall@5"] <= row["recall@20"] <= 1
        assert row["recall@1"] <= row["mrr"] <= 1
    for row in result["comparisons"]:
        assert set(row) == {"arm", "baseline", "metric", "segment", "difference", "relative", "low", "high"}
    kinds = {(row["metric"], row["segment"]) for row in result["comparisons"]}
    assert kinds == {(metric, segment) for metric in METRICS for segment in SEGMENTS}
    assert ("als" in result["about"]["left_out"]) != als_installed()


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
    cut, _ = evaluate(runs, tmp_path / "tables", CUTOFF, Options(horizon=WEEKS, replicates=10, device="cpu"))
    for part in ("controls", "blend_weights", "fitted_at", "fitted_users"):
        assert cut["about"][part] == result["about"][part]


def test_a_model_that_saw_later_labels_is_refused(folder: Path) -> None:
    for runs, earlier in (([folder / "popularity"], []), ([], [folder / "neighbours"])):
        with pytest.raises(AdvpriorError) as caught:
            evaluate(runs, folder / "tables", CUTOFF - timedelta(seconds=1), Options(earlier=tuple(earlier)))
        assert caught.value.code == "PRI040"


def test_an_earlier_run_weighs_the_blend(folder: Path, result: dict) -> None:
    """A run fitted up to the cut-off saw the labels that weigh it, which is said; one for each run is needed."""
    assert result["about"]["saw_the_blend_labels"] == ["popularity (2)", "neighbours (2)"]
    later = CUTOFF + 2 * WEEKS
    run = folder / "neighbours"
    found, _ = evaluate(
        [run], folder / "tables", later, Options(horizon=WEEKS, earlier=(run,), replicates=10, device="cpu")
    )
    assert found["about"]["saw_the_blend_labels"] == []
    with pytest.raises(AdvpriorError) as caught:
        evaluate([run, folder / "popularity"], folder / "tables", CUTOFF, Options(earlier=(run,)))
    assert caught.value.code == "PRI042"


def test_another_catalog_is_refused(folder: Path, tmp_path: Path) -> None:
    write_tiny(tmp_path / "tables", advertisers=11)
    with pytest.raises(AdvpriorError) as caught:
        evaluate([folder / "popularity"], tmp_path / "tables", CUTOFF, Options(horizon=WEEKS))
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
        assert "popularity (2) - blend" in printed.out
        assert printed.err == ""  # no bar without a terminal
    written = json.loads(out.read_text())
    assert {"inputs", "versions", "seconds", "config", "key"} <= set(written["about"])
    assert [p.name for p in out.parent.iterdir()] == [out.name]


def test_a_file_of_others_is_kept(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(AdvpriorError) as caught:
        evaluate([], folder / "tables", CUTOFF, Options(horizon=WEEKS), out=tmp_path / "mine.json")
    assert caught.value.code == "PRI043"
    assert (tmp_path / "mine.json").read_text() == "{}"


def test_wrong_options_exit_with_two(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, value in (("--cutoff", "yesterday"), ("--horizon", "0d"), ("--horizon", "1y")):
        good = ["evaluate", "--tables", str(folder / "tables"), "--cutoff", "2024-03-01"]
        with pytest.raises(SystemExit) as left:
            main([*good, option, value])
        assert left.value.code == 2
        assert value in capsys.readouterr().err


def test_no_run_can_take_the_name_of_a_control() -> None:
    assert set(TAKEN) == {"popularity", *ARMS, controls.BLEND, controls.BEST, ALL}


def test_als_finds_the_other_half_of_a_taste() -> None:
    """Two camps of advertisers: who bought one of a camp is given the others of it."""
    pytest.importorskip("implicit")
    rng = np.random.default_rng(0)
    rows = [[(t, int(3 * (u % 2) + a)) for t, a in enumerate(rng.choice(3, 2, replace=False))] for u in range(60)]
    histories = histories_of([*rows, [(0, 0)], []])
    model = fit_als(histories, 6, 0, AlsSettings())
    scores = als_factors(model, histories, 6, counted=True) @ model.item_factors.T
    assert scores[60, 1:3].min() > scores[60, 3:].max()
    assert (scores[61] == 0).all()
    folded_in = als_factors(model, histories, 6, counted=False) @ model.item_factors.T
    assert (folded_in[:60].argmax(1) // 3 == scores[:60].argmax(1) // 3).all()
    assert (folded_in[61] == 0).all()


def test_terms_of_other_users_count_nobody_but_the_past() -> None:
    """Asked of themselves they are the same terms; events of those asked change no aggregate."""
    rng = np.random.default_rng(0)
    rows = [[(int(t), int(rng.integers(4))) for t in range(1, 6)] for _ in range(40)]
    counted, asked = histories_of([*rows[:30], *[[]] * 10]), histories_of(rows)
    terms, users = Terms(counted, 9, 4, 0), np.arange(40)
    own, of_all = terms(users[:30]), terms.of(asked)(users)
    for name in own.keys() - {ALS}:  # whose factors are folded in, by another solver
        np.testing.assert_array_equal(of_all[name][:30], own[name], err_msg=name)
    assert (of_all["ever"][30:].sum(1) > 0).all()


def test_a_blend_leans_on_the_arm_that_knows() -> None:
    rng = np.random.default_rng(0)
    histories = histories_of([[(0, 0), (5, int(rng.integers(4)))] for _ in range(200)])
    labels = first_labels(histories, 5, 5)
    good = np.log(0.1 + 0.6 * labels.truth(4)).astype(np.float32)
    noise = rng.permutation(good)
    weights = controls.fit_blend({"good": good, "noise": noise}, labels)
    assert weights["good"] > 5 * abs(weights["noise"])


@pytest.fixture(scope="module")
def llms(folder: Path) -> list[Path]:
    """The same tiny LLM fitted with two seeds."""
    base = write_tiny_llm(folder / "base")
    runs = []
    for seed in (0, 1):
        runs.append(folder / f"llm-seed{seed}")
        settings = llm_settings(base, epochs=1, seed=seed)
        finetune(folder / "tables", runs[-1], "llm", predictor_class("llm").settings(settings))
        export(runs[-1])
    return runs


@pytest.fixture(scope="module")
def seeded(folder: Path, llms: list[Path]) -> dict:
    runs = [llms[0], folder / "neighbours", llms[1]]
    return evaluate(runs, folder / "tables", CUTOFF, Options(horizon=WEEKS, replicates=100, device="cpu"))[0]


def test_runs_that_differ_in_their_seed_are_one_arm(folder: Path, llms: list[Path], seeded: dict) -> None:
    arms = {row["name"]: row for row in seeded["arms"]}
    assert arms["llm"]["seeds"] == arms["blend + llm"]["seeds"] == 2
    assert [run["run"] for run in seeded["about"]["runs"]["llm"]] == ["llm-seed0", "llm-seed1"]
    apart, _ = evaluate(
        llms, folder / "tables", CUTOFF, Options(horizon=WEEKS, replicates=10, device="cpu", seeds="apart")
    )
    alone = {row["name"]: row for row in apart["arms"]}
    for metric in METRICS:
        values = arms["llm"]["by_seed"][metric]
        assert values == pytest.approx([alone["llm-seed0"][metric], alone["llm-seed1"][metric]])
        assert arms["llm"][metric] == pytest.approx(np.mean(values))
    assert arms["llm"]["by_seed"]["nll"][0] != arms["llm"]["by_seed"]["nll"][1]
    assert any("seeds" in line for line in markdown(seeded))


def test_seeds_that_answer_as_one_are_better_than_one_of_them(folder: Path, llms: list[Path], seeded: dict) -> None:
    """The mean of probabilities: its likelihood is at least the mean of theirs (Jensen), user by user."""
    options = {"horizon": WEEKS, "replicates": 10, "device": "cpu"}
    found, _ = evaluate(llms, folder / "tables", CUTOFF, Options(seeds="averaged", **options))
    arms = {row["name"]: row for row in found["arms"]}
    apart = {row["name"]: row for row in seeded["arms"]}["llm"]["by_seed"]["nll"]
    assert "llm" not in arms
    assert arms["llm averaged"]["uses_llm"]
    assert arms["blend + llm averaged"]["seeds"] == arms["llm averaged"]["seeds"] == 1
    assert 0.999 * min(apart) <= arms["llm averaged"]["nll"] < np.mean(apart)


def test_a_setting_of_later_versions_does_not_part_seeds(llms: list[Path], tmp_path: Path) -> None:
    """A run of before ``drift`` existed, and one that keeps more beside it: the same fit but for the seed."""
    for run in llms:
        shutil.copytree(run, tmp_path / run.name, ignore=shutil.ignore_patterns("onnx"))
    runs = [tmp_path / run.name for run in llms]

    def changed(run: Path, change: Callable[[dict], None]) -> None:
        manifest = json.loads((run / "manifest.json").read_text())
        change(manifest["config"]["settings"])
        (run / "manifest.json").write_text(json.dumps(manifest))

    changed(runs[0], lambda settings: settings.pop("drift"))
    changed(runs[1], lambda settings: settings["drift"].update(keep_before=True))
    assert [group.members for group in group_runs(runs, [])] == [(0, 1)]
    changed(runs[1], lambda settings: settings["drift"].update(around_days=10.0))
    assert [group.members for group in group_runs(runs, [])] == [(0,), (1,)]


def test_each_seed_is_weighed_by_its_own_earlier_run(folder: Path, llms: list[Path], seeded: dict) -> None:
    """Asked about later labels, the same runs are early enough; the order of the seeds is that of the runs."""
    assert seeded["about"]["saw_the_blend_labels"] == ["llm", "neighbours (2)"]
    later = CUTOFF + 2 * WEEKS
    options = {"horizon": WEEKS, "replicates": 10, "device": "cpu"}
    found, _ = evaluate(llms, folder / "tables", later, Options(earlier=tuple(llms), **options))
    assert found["about"]["saw_the_blend_labels"] == []
    mine = found["about"]["blend_weights"]["blend + llm"]
    swapped, _ = evaluate(llms[::-1], folder / "tables", later, Options(earlier=tuple(llms[::-1]), **options))
    assert swapped["about"]["blend_weights"]["blend + llm"] == mine[::-1]
    crossed, _ = evaluate(llms, folder / "tables", later, Options(earlier=tuple(llms[::-1]), **options))
    assert crossed["about"]["blend_weights"]["blend + llm"] == mine[::-1]
    assert mine[0] != mine[1]


def test_a_fit_that_keeps_what_it_was_is_its_own_earlier_run(folder: Path, llms: list[Path]) -> None:
    """One fit gives the run, and one that has not been fitted on the last labels to weigh it by."""
    settings = llm_settings(folder / "base", epochs=1, valid_days=WEEKS / timedelta(days=1))
    settings |= {"target": "first", "drift": {"around_days": 10.0, "keep_before": True}}
    run = folder / "llm-kept"
    finetune(folder / "tables", run, "llm", predictor_class("llm").settings(settings))
    for each in (run, run / "before"):
        export(each)
    options = {"horizon": WEEKS, "replicates": 10, "device": "cpu"}
    found, _ = evaluate([run], folder / "tables", CUTOFF, Options(earlier=(run / "before",), **options))
    # no label of the blend's trained it, but they chose its epoch and strength: it says so, and its cut-off is theirs
    assert found["about"]["saw_the_blend_labels"] == ["llm-kept"]
    assert found["about"]["trained_on_the_blend_labels"] == []
    assert any("chosen on them" in note for note in notes(found))
    alone, _ = evaluate([run], folder / "tables", CUTOFF, Options(**options))
    assert alone["about"]["saw_the_blend_labels"] == ["llm-kept"]
    facts = read_manifest(run / "before", step="finetune")["facts"]
    assert facts["trained_until"] == (CUTOFF - WEEKS).isoformat()
    assert facts["model_cutoff"] == facts["chosen_until"] == CUTOFF.isoformat()


def test_an_llm_is_held_against_the_best_control_and_added_to_all_of_them(seeded: dict) -> None:
    arms = {row["name"]: row for row in seeded["arms"]}
    assert {name for name, row in arms.items() if row["uses_llm"]} == {"llm", "blend + llm"}
    for weights in seeded["about"]["blend_weights"]["blend + llm"]:
        assert {"logit", "neighbours (2)", "llm"} <= set(weights)
    (weights,) = seeded["about"]["blend_weights"]["blend"]
    assert "llm" not in weights
    best = seeded["about"]["best_control"]
    judged = best["recall@5 on the earlier labels"]
    assert judged[best["name"]] == max(judged.values())
    assert "neighbours (2)" not in judged  # it saw those labels
    rows = {
        (c["arm"], c["baseline"]): c
        for c in seeded["comparisons"]
        if (c["metric"], c["segment"]) == ("recall@5", "overall")
    }
    for arm in ("llm", "blend + llm"):
        row = rows[arm, "best control"]
        assert row["difference"] == pytest.approx(arms[arm]["recall@5"] - arms[best["name"]]["recall@5"])
    assert ("blend + llm", "blend") in rows


def write_newcomers(folder: Path) -> Path:
    """The tiny tables with ten users who come before the cut-off only and ten who come after it only."""
    write_tiny(folder)
    events = tiny_tables()["events"]
    users = events.user_id.str[1:].astype(int)
    late = (users < 10) & (events.timestamp < CUTOFF)
    later = (users >= 10) & (users < 20) & (events.timestamp < CUTOFF - WEEKS)
    events[~late & ~later].to_parquet(folder / "events.parquet")
    return folder


def test_users_known_by_their_profile_alone_are_a_row_apart(folder: Path, llms: list[Path], tmp_path: Path) -> None:
    tables = write_newcomers(tmp_path / "tables")
    options = {"horizon": WEEKS, "replicates": 20, "device": "cpu"}
    found, _ = evaluate(llms[:1], tables, CUTOFF, Options(**options))
    alone = [row for row in found["segments"] if row["segment"] == PROFILE_ONLY]
    assert [row["arm"] for row in alone] == [row["name"] for row in found["arms"]]
    assert {row["users"] for row in alone} == {10}
    assert found["about"][PROFILE_ONLY]["fitted_users"] == 10
    pairs = {(c["arm"], c["baseline"]) for c in found["comparisons"] if c["segment"] == PROFILE_ONLY}
    assert {("llm-seed0", "best control"), ("blend + llm-seed0", "blend")} <= pairs
    assert any(PROFILE_ONLY in line for line in markdown(found))
    main, _ = evaluate(llms[:1], tables, CUTOFF, Options(**options, profile_only=0))
    assert main["arms"] == found["arms"]
    assert main["comparisons"] == [c for c in found["comparisons"] if c["segment"] != PROFILE_ONLY]
    some, _ = evaluate(llms[:1], tables, CUTOFF, Options(**options, profile_only=4))
    assert {row["users"] for row in some["segments"] if row["segment"] == PROFILE_ONLY} == {4}


def test_a_result_reads_as_markdown_and_as_frames(result: dict) -> None:
    text = markdown(result)
    arms = [row["name"] for row in result["arms"]]
    assert [line.split(" | ")[0] for line in text if line.startswith("| ")][1 : len(arms) + 1] == [
        f"| {a}" for a in arms
    ]
    for line in text:
        if line.startswith("|"):
            assert line.endswith("|")
    assert frame(result)["name"].tolist() == arms
    assert len(frame(result, "comparisons")) == len(result["comparisons"])


def test_a_sample_of_users_is_the_same_for_every_arm(folder: Path, result: dict) -> None:
    runs = [folder / "popularity"]
    small, _ = evaluate(runs, folder / "tables", CUTOFF, Options(horizon=WEEKS, replicates=20, users=7, device="cpu"))
    assert {row["users"] for row in small["arms"]} == {7}
    assert small["about"]["config"]["asked"] == 7
    assert result["arms"][0]["users"] > 7


def test_several_llm_arms_are_blended_together_too(folder: Path, llms: list[Path], result: dict) -> None:
    options = {"horizon": WEEKS, "replicates": 20, "device": "cpu", "profile_only": 0}
    both, _ = evaluate(llms[:2], folder / "tables", CUTOFF, Options(**options, seeds="apart"))
    arms = {row["name"]: row for row in both["arms"]}
    assert arms["blend + all LLMs"]["uses_llm"]
    (weights,) = both["about"]["blend_weights"]["blend + all LLMs"]
    assert {"llm-seed0", "llm-seed1"} < set(weights)
    pairs = {(c["arm"], c["baseline"]) for c in both["comparisons"]}
    assert {("blend + all LLMs", "blend"), ("blend + all LLMs", "best control")} <= pairs
    assert not any("all LLMs" in row["name"] for row in result["arms"])  # nothing to add where there is one
