"""The two-by-two: cells by hand, and a planted prior that helps where it is used and nowhere else."""

import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from advprior.store.errors import AdvpriorError
from advprior.store.features import Feature
from advprior.store.runs import manifest_digest, new_run, run_key
from advprior.store.tables import write_parquet
from ranking.candidates.bothsteps import TwoByTwoOptions, _references, two_by_two
from ranking.candidates.cells import BOTH, CELLS, EFFECTS, NEITHER, RANKING, RETRIEVAL
from ranking.candidates.choose import choose
from ranking.candidates.endtoend import TwoByTwo
from ranking.candidates.retrieval import retrieval_scores
from ranking.candidates.section import steps_of
from ranking.candidates.training import TowerConfig, fit_towers
from ranking.cli import rank
from ranking.evidence.ablation import ablate
from ranking.evidence.deciding import slate_sizes
from ranking.evidence.metrics import Conversions, Rows
from ranking.evidence.ordering import Sorted
from ranking.evidence.result import AblationResult, load_validation
from ranking.evidence.steps import whole_verdict
from ranking.frame.table import Frame
from ranking.models.arms import load_arms
from tests.ranking.frames import write_frame
from tests.tiny import PLAN, tiny_tables, write_tiny


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Tiny tables as a frame whose prior knows the labels half the time, and an ablation whose arm does."""
    root = tmp_path_factory.mktemp("two")
    tables, loaded = write_tiny(root / "tables"), tiny_tables()
    rng = np.random.default_rng(0)
    frame = loaded["impressions"].sort_values(["timestamp", "slate_id"])
    frame = frame[frame["timestamp"] >= PLAN.finetune_end].reset_index(drop=True)
    frame["split"] = np.where(
        frame["timestamp"] < PLAN.train_end, "train", np.where(frame["timestamp"] < PLAN.valid_end, "valid", "test")
    )
    knows = (frame["label"] == 1) & (rng.random(len(frame)) < 0.7)
    frame["prior_llm_top20"] = np.where(knows | (rng.random(len(frame)) < 0.1), 1.0, 0.0).astype(np.float32)
    test = frame[frame["split"] == "test"].reset_index(drop=True)
    noise = rng.random((4, len(test)))
    by_seed = test[["impression_id"]].assign(
        **{
            "baseline.0": noise[0],
            "baseline.1": noise[1],
            "llm.0": noise[2] * 0.5 + 0.5 * test["label"],
            "llm.1": noise[3] * 0.5 + 0.5 * test["label"],
        }
    )
    with new_run(root / "frame", "rank frame", config={}, inputs={}, key=run_key("f", {}, {})) as run:
        write_parquet(frame, run.path / "frame.parquet")
    with new_run(root / "ablation", "rank ablate", config={}, inputs={}, key=run_key("a", {}, {})) as run:
        write_parquet(test[["impression_id", "user_id", "slate_id", "label"]], run.path / "predictions.parquet")
        write_parquet(by_seed, run.path / "seeds.parquet")
    towers = fit_towers(
        loaded["users"],
        loaded["ads"],
        loaded["events"],
        loaded["impressions"],
        PLAN,
        TowerConfig(size=4, hidden=8, epochs=1, threads=1),
    )
    with new_run(root / "towers", "rank towers", config={}, inputs={}, key=run_key("t", {}, {})) as run:
        towers.save(run.path)
    return root, tables, towers, test, by_seed


def measure(workspace, **options):
    root, tables, towers, _, _ = workspace
    chosen = TwoByTwoOptions(k=4, slots=2, replicates=300, **options)
    return two_by_two(tables, root / "frame", root / "ablation", towers, chosen)


def test_a_prior_helps_where_it_is_used(workspace):
    result = measure(workspace)
    assert [(lift.arm, lift.baseline) for lift in result.lifts if lift.metric == "ndcg_2"] == [e[:2] for e in EFFECTS]
    assert "in retrieval and in ranking" in result.sentences()[0]
    for arm in (RETRIEVAL, RANKING, BOTH):
        assert result.lifts.get(arm, NEITHER, "conversions_2").better, arm
    assert result.lifts.get(BOTH, RANKING, "conversions_2").better
    cells = result.table()
    joint = result.lifts.get(BOTH, NEITHER, "conversions_2").difference
    assert cells.iloc[1, 1] - cells.iloc[0, 0] == pytest.approx(joint)
    assert cells.iloc[0, 1] - cells.iloc[0, 0] == pytest.approx(
        result.lifts.get(RANKING, NEITHER, "conversions_2").difference
    )
    assert len(result.sentences()) == 5
    assert all("a gain; whether a control does as well was not measured" in text for text in result.sentences())
    found = result.about["among_candidates"]
    assert found["alone"] < found["augmented"] <= result.about["positives"]
    assert len(result.plot().axes) == 1


def test_a_cell_is_what_the_loop_counts(workspace):
    """Conversions of one cell, slate by slate."""
    _, _, _, test, by_seed = workspace
    result = measure(workspace)
    total = []
    (score,) = retrieval_scores(workspace[1], workspace[2], test)
    taken = choose(Sorted.of(test["slate_id"], score), test["prior_llm_top20"] == 1, 4, result.about["quota"])
    for seed in range(2):
        for rows in test.groupby("slate_id").groups.values():
            mine = [i for i in rows if taken[i]]
            shown = sorted(mine, key=lambda i: -by_seed[f"llm.{seed}"][i])[:2]
            total.append(test["label"][shown].sum())
    assert result.table().iloc[1, 1] == pytest.approx(np.mean(total))


def test_the_command_saves_what_it_says_and_refuses_other_rows(workspace, tmp_path):
    root, tables, _, _, _ = workspace
    command = [
        str(word)
        for word in (
            "two-by-two",
            "--tables",
            tables,
            "--frame",
            root / "frame",
            "--ablation",
            root / "ablation",
            "--towers",
            root / "towers",
            "--k",
            4,
            "--slots",
            2,
            "--replicates",
            50,
            "--out",
            tmp_path / "two",
        )
    ]
    said = CliRunner().invoke(rank, command, catch_exceptions=False)
    assert said.exit_code == 0, said.output
    loaded = TwoByTwo.load(tmp_path / "two")
    assert loaded.sentences()[0] in said.output
    assert "unchanged, reused" in CliRunner().invoke(rank, command, catch_exceptions=False).output
    assert manifest_digest(tmp_path / "two")
    with pytest.raises(AdvpriorError, match=r"RNK021(.|\n)*baseline, llm"):
        measure(workspace, arm="sasrec")
    fewer = tmp_path / "ablation"
    with new_run(fewer, "rank ablate", config={}, inputs={}, key="k") as run:
        for name in ("predictions.parquet", "seeds.parquet"):
            write_parquet(pd.read_parquet(root / "ablation" / name).iloc[1:], run.path / name)
    with pytest.raises(AdvpriorError, match="RNK006"):
        two_by_two(tables, root / "frame", fewer, workspace[2])
    (tmp_path / "two" / "two_by_two.json").write_text(json.dumps({"lifts": 3}))
    with pytest.raises(AdvpriorError, match="RNK032"):
        TwoByTwo.load(tmp_path / "two")


def test_a_control_is_not_held_against_itself(tmp_path):
    frame = Frame.load(write_frame(tmp_path / "frame", users=30, slates=5))
    arms = load_arms().only("neighbours").with_ranker(max_rounds=3, threads=1)
    folder = ablate(frame, arms, seeds=1, replicates=20).save(tmp_path / "ablation")
    result = AblationResult.load(folder)
    neighbours = result.arms.find("neighbours")
    assert set(map(str, _references(result, neighbours, ["neighbours"], {}).values())) == {"{}"}


def test_every_arm_runs_through_both_steps_and_is_held_against_its_own(workspace, tmp_path):
    """An ablation with controls: each cell has the control that is best there on validation, and differences to it."""
    (root, tables, towers, _, _), rng = workspace, np.random.default_rng(1)
    frame = pd.read_parquet(root / "frame" / "frame.parquet")
    priors = ("llm", "neighbours", "popularity", "text_twin_pair", "text_pair", "placebo")
    for name in priors:
        hint = {"neighbours": 0.5, "text_pair": 0.7, "text_twin_pair": 0.3}.get(name, 0.0) * frame["label"]
        frame[f"prior_{name}_log_prob"] = (hint + rng.normal(0, 0.3, len(frame))).astype(np.float32)
        if name != "llm":
            frame[f"prior_{name}_top20"] = (rng.random(len(frame)) < 0.1 + 0.5 * hint).astype(np.float32)
    features = [
        Feature(f"prior_{name}_{quantity}", f"prior_{name}", f"prior_{name}", "float32")
        for name in priors
        for quantity in ("log_prob", "top20")
    ]
    for name, group in (("ad_rate", "ad"), ("history_cluster_all", "cluster")):  # say nothing of who is likely
        frame[name] = rng.random(len(frame)).astype(np.float32)
        features.append(Feature(name, group, "user_history", "float32"))
    arms = load_arms().only(*priors, "cluster").with_ranker(max_rounds=5, threads=1, min_data_in_leaf=5)
    with new_run(tmp_path / "frame", "rank frame", config={}, inputs={}, key="f") as run:
        write_parquet(frame, run.path / "frame.parquet")
    folder = ablate(Frame(frame, tuple(features)), arms, seeds=2, replicates=20).save(tmp_path / "ablation")
    options = TwoByTwoOptions(replicates=40)
    result = two_by_two(tables, tmp_path / "frame", folder, towers, options)
    ablation = AblationResult.load(folder)
    ads = frame[frame["split"] == "test"].groupby("slate_id").size().mean()
    assert (result.about["k"], result.about["slots"]) == slate_sizes(ads) == (5, ablation.slots)
    assert sorted(result.arms) == sorted(priors)
    assert result.treatments == ["llm", "text_pair"]
    assert result.references("llm")["placebo"] == "placebo"
    assert result.references("text_pair")["random_weights"] == "text_twin_pair"
    validation = load_validation(folder)
    rows = frame[frame["split"] == "valid"]
    for name in CELLS:
        best = result.references("llm", name)["control"]
        assert best in ("neighbours", "popularity", "text_twin_pair")
        if name == RANKING:  # by hand: no prior in retrieval, so all arms have the same candidates
            (score,) = retrieval_scores(tables, towers, rows.reset_index(drop=True))
            taken = choose(Sorted.of(rows["slate_id"], score), np.zeros(len(rows), bool), result.about["k"], 0.0)
            shown = Conversions(result.about["slots"])
            reached = {
                arm: np.mean(
                    [shown(Rows.of(rows["label"], np.where(taken, s, -1), slate=rows["slate_id"])) for s in of]
                )
                for arm, of in validation.scores.items()
                if arm in ("neighbours", "popularity", "text_twin_pair")
            }
            assert reached[best] == pytest.approx(max(reached.values()), abs=1e-9)
    # what one step adds to the other is compared with what the placebo's adds
    ours, placebo = (
        result.effect(BOTH, RETRIEVAL, arm=arm).difference for arm in ("llm", result.references("llm")["placebo"])
    )
    assert result.over(BOTH, RETRIEVAL, "placebo").difference == pytest.approx(ours - placebo)
    assert not any("not compared" in text for text in [*result.sentences(), *result.others()])
    steps = steps_of(result)
    assert list(steps.others) == ["text_pair"]
    verdict = whole_verdict(ablation, steps)
    assert verdict.sentence == result.sentences()[0]
    assert verdict.sentences[1:4] == [*result.sentences()[1:3], *result.others()]
    assert "All ads of a slate ranked" in verdict.steps[-1]
    assert "With counts by semantic cluster" in verdict.sentences[-1]
