"""Rolling origin: plans by hand, tables under another plan, and pooled lifts that are those of their parts."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner

from advprior.store.contract import TABLES
from advprior.store.errors import AdvpriorError
from advprior.store.tables import load_tables, load_time_plan
from ranking.cli import rank
from ranking.evidence.metrics import Conversions
from ranking.evidence.result import AblationResult
from ranking.evidence.rolling import origins, pool
from ranking.models.arms import load_arms
from tests.ranking.frames import synthetic_frame, write_frame
from tests.tiny import PLAN, START, WEEK, write_tiny


def invoke(*arguments):
    done = CliRunner().invoke(rank, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_test_windows_divide_the_original_one():
    plans = origins(PLAN, 3)  # tests weeks 24 to 30
    weeks = [[(m - START) // WEEK for m in (p.finetune_end, p.train_end, p.valid_end, p.end)] for p in plans]
    assert weeks == [[10, 20, 24, 26], [12, 22, 26, 28], [14, 24, 28, 30]]
    assert all(p.start == PLAN.start for p in plans)
    uneven = origins(PLAN, 4)
    assert [(p.end - p.valid_end) // WEEK for p in uneven] == [1, 1, 1, 3]  # on the grid; the last takes the rest
    with pytest.raises(AdvpriorError, match="RNK034"):
        origins(PLAN, 7)


def test_an_origin_is_the_same_tables_under_another_plan(tmp_path):
    tables = write_tiny(tmp_path / "tables")
    said = invoke("origin", "--tables", tables, "--number", 2, "--of", 3, "--out", tmp_path / "origin")
    assert "origin 2 of 3" in said
    assert load_time_plan(tmp_path / "origin") == origins(PLAN, 3)[1]
    here, there = load_tables(tables), load_tables(tmp_path / "origin")
    for name in TABLES:
        pd.testing.assert_frame_equal(here[name], there[name])
    assert "reused" in invoke("origin", "--tables", tables, "--number", 2, "--of", 3, "--out", tmp_path / "origin")
    with pytest.raises(AdvpriorError, match="CFG002"):
        invoke("origin", "--tables", tables, "--number", 4, "--of", 3, "--out", tmp_path / "o")


@pytest.fixture(scope="module")
def ablations(tmp_path_factory):
    root = tmp_path_factory.mktemp("rolling")
    named = ("baseline", "popularity", "neighbours", "llm", "placebo")
    arms = {
        "arms": [a for a in load_arms().model_dump(mode="json")["arms"] if a["name"] in named],
        "ranker": {"max_rounds": 40, "num_leaves": 15, "threads": 1},
    }
    (root / "arms.yaml").write_text(yaml.safe_dump(arms))
    for i in range(3):
        write_frame(root / f"frame{i}", synthetic_frame(users=100, seed=i))
        invoke(
            "ablate",
            "--frame",
            root / f"frame{i}",
            "--arms",
            root / "arms.yaml",
            "--out",
            root / f"a{i}",
            "--replicates",
            100,
            "--seeds",
            2,
        )
    return root


def test_pooled_lifts_are_means_with_shorter_intervals(ablations, tmp_path):
    folders = [ablations / f"a{i}" for i in range(3)]
    said = invoke("pool", *folders, "--out", tmp_path / "pooled", "--replicates", 200)
    pooled, parts = AblationResult.load(tmp_path / "pooled"), [AblationResult.load(f) for f in folders]
    assert pooled.verdict.sentence in said.splitlines()
    assert "3 cut-offs x 2 seeds" in said
    assert pooled.metric == parts[0].metric == Conversions(pooled.slots)
    for metric in ("auc", "log_loss", pooled.metric.name):
        alone = [part.lifts.get("llm", "baseline", metric) for part in parts]
        lift = pooled.lifts.get("llm", "baseline", metric)
        assert lift.by_cutoff == pytest.approx([one.difference for one in alone], abs=1e-6)  # scores kept as float32
        assert lift.difference == pytest.approx(np.mean(lift.by_cutoff))
        assert lift.error < min(one.error for one in alone)
    assert pooled.verdict.kind == "win"
    assert pooled.about["segments"]["overall"]["rows"] == sum(p.about["segments"]["overall"]["rows"] for p in parts)
    assert pooled.about["segments"]["overall"]["users"] == 100
    own = pooled.measured[pooled.measured["arm"].isin([arm.name for arm in parts[0].arms.arms])]
    assert len(own) == sum(len(p.measured) for p in parts)
    assert "reused" in invoke("pool", *folders, "--out", tmp_path / "pooled", "--replicates", 200)
    invoke("report", tmp_path / "pooled", "--out", tmp_path / "report")
    html = (tmp_path / "report" / "report.html").read_text()
    assert "over 3 cut-offs with the predictor refitted at each" in html
    assert html.count("<td>2024-") >= 3  # one row per cut-off


def test_the_best_control_is_that_of_each_cut_off_on_its_own_validation(ablations, tmp_path):
    """One cut-off's validation prefers another control, and one lacks a segment: neither decides for the others."""
    for i in range(3):
        shutil.copytree(ablations / f"a{i}", tmp_path / f"a{i}")
    names = ["neighbours", "popularity", "neighbours"]
    for i, name in enumerate(names):
        path = tmp_path / f"a{i}" / "ablation.json"
        result = json.loads(path.read_text())
        for row in result["measured"]:
            if (row["arm"], row["split"], row["metric"]) == (name, "valid", result["settings"]["decide_on"]):
                row["value"] = 9.0
        if name == "popularity":
            absent = result["segment_order"].pop()
        path.write_text(json.dumps(result))
    parts = [AblationResult.load(tmp_path / f"a{i}") for i in range(3)]
    pooled = pool([part.folder for part in parts], replicates=50)
    assert pooled.about["best_control_by_cutoff"] == {"llm": names}
    assert pooled.best_control == pooled.best_controls["llm"] == "best_control"
    assert pooled.arms.find("best_control").role == "control"
    chosen = [part.lifts.get("llm", name, "auc") for part, name in zip(parts, names, strict=True)]
    lift = pooled.lifts.get("llm", "best_control", "auc")
    assert lift.by_cutoff == pytest.approx([one.difference for one in chosen], abs=1e-6)
    reached = [part.table()["auc"][name] for part, name in zip(parts, names, strict=True)]
    assert pooled.table()["auc"]["best_control"] == pytest.approx(np.mean(reached), abs=1e-6)
    assert "best_control" in pooled.value().index
    of_segment = pooled.lifts.get("llm", "baseline", "auc", absent)
    assert (of_segment.left_out, np.isnan(of_segment.by_cutoff).tolist()) == (1, [False, True, False])
    assert np.isfinite(of_segment.difference)
    invoke("pool", *(part.folder for part in parts), "--out", tmp_path / "pooled", "--replicates", 50)
    invoke("report", tmp_path / "pooled", "--out", tmp_path / "report")


def test_what_does_not_belong_together_is_not_pooled(ablations, tmp_path):
    invoke(
        "ablate",
        "--frame",
        ablations / "frame0",
        "--arms",
        ablations / "arms.yaml",
        "--arm",
        "llm",
        "--out",
        tmp_path / "other",
        "--replicates",
        20,
    )
    for folders in ([ablations / "a0"], [ablations / "a0", tmp_path / "other"]):
        with pytest.raises(AdvpriorError, match="RNK033"):
            invoke("pool", *folders, "--out", tmp_path / "p")
