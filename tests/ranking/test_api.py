"""What `import ranking` offers: lazy, whole, and a frame, arms and results that nothing changes."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import ranking
from advprior.store.errors import AdvpriorError
from ranking.evidence.ablation import usable_arms
from tests.ranking.frames import features_of, synthetic_frame

FAST = {"max_rounds": 40, "patience": 10, "num_leaves": 15, "learning_rate": 0.15, "threads": 1}


@pytest.fixture(scope="module")
def frame():
    rows = synthetic_frame(users=80)
    return ranking.Frame(rows, tuple(features_of(rows)))


@pytest.fixture(scope="module")
def arms():
    return ranking.load_arms().only("neighbours", "llm").with_ranker(**FAST)


@pytest.fixture(scope="module")
def finished(frame, arms):
    return ranking.ablate(frame, arms, seeds=1, replicates=50)


def test_importing_costs_nothing_and_every_name_is_there():
    code = "import sys, ranking; assert not {'pandas', 'numpy', 'lightgbm', 'pydantic'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(getattr(ranking, name) is not None for name in ranking.__all__)
    assert set(ranking.__all__) <= set(dir(ranking))
    with pytest.raises(AttributeError):
        ranking.nothing  # noqa: B018


def test_a_frame_gains_features_and_the_old_one_stays(frame):
    columns, digest = list(frame.rows.columns), pd.util.hash_pandas_object(frame.rows).sum()
    more = frame.with_feature("mood", ["good", "bad"] * (len(frame) // 2)).with_prior("hour", np.arange(len(frame)))
    assert [(f.name, f.group, f.dtype) for f in more.features[-2:]] == [
        ("mood", "mood", "category"),
        ("prior_hour", "prior_hour", "float32"),
    ]
    assert list(frame.rows.columns) == columns
    assert pd.util.hash_pandas_object(frame.rows).sum() == digest
    assert len(repr(more).splitlines()) == 3
    with pytest.raises(AdvpriorError, match="CFG001"):
        frame.with_feature("label", np.zeros(len(frame)))
    with pytest.raises(AdvpriorError, match="CFG001"):
        frame.with_prior("hour", [1.0])


def test_a_frame_is_split_elsewhere(frame):
    cuts = frame.rows["timestamp"].quantile([0.5, 0.75])
    other = frame.with_split(*cuts)
    shares = other.rows["split"].value_counts(normalize=True)
    assert shares["train"] == pytest.approx(0.5, abs=0.01)
    assert not (other.rows["split"] == frame.rows["split"]).all()
    with pytest.raises(AdvpriorError, match="RNK027"):
        frame.with_split("2020-01-01", "2020-02-01")


def test_arms_are_declared_in_python(frame, arms):
    own = arms.with_arm("hour", ["prior_hour"], label="+ hour")
    assert [arm.name for arm in own.arms] == ["baseline", "neighbours", "llm", "hour"]
    assert [arm.name for arm in arms.arms] == ["baseline", "neighbours", "llm"]
    assert usable_arms(own, frame.features)[1] == {"hour": "prior_hour"}
    with pytest.raises(AdvpriorError, match="CFG001"):
        own.with_arm("hour", ["prior_hour"])
    with pytest.raises(AdvpriorError, match="CFG001"):
        own.with_ranker(leaves=3)
    with pytest.raises(AdvpriorError, match="RNK021"):
        arms.only("nobody")


def test_an_ablation_changes_nothing_and_fits_a_screen(frame, finished):
    assert len(frame.rows.columns) == len(synthetic_frame(users=5).columns)
    assert len(repr(finished)) < 3000
    assert len(repr(finished).splitlines()) < 40
    assert len(repr(finished.lifts).splitlines()) <= 21
    assert "With LLM priors" in repr(finished)


def test_any_two_arms_are_compared(finished):
    assert {lift.metric for lift in finished.compare("llm", "baseline")} == {finished.metric.name}
    assert len(finished.compare("llm", "baseline", None)) == 5 * len(finished.segments)
    back = finished.compare("baseline", "llm")  # was not measured that way round: resampled now
    there = finished.compare("llm", "baseline")
    assert [lift.segment for lift in back] == finished.segments
    assert back[0].difference == pytest.approx(-there[0].difference)
    assert back[0].low == pytest.approx(-there[0].high, abs=1e-3)
    with pytest.raises(AdvpriorError, match="RNK021"):
        finished.compare("llm", "nobody")


def test_a_result_is_saved_and_its_arms_reused(frame, arms, finished, tmp_path):
    finished.save(tmp_path / "a")
    loaded = ranking.AblationResult.load(tmp_path / "a")
    assert loaded.lifts == finished.lifts
    signal = frame.rows["prior_llm_log_prob"] + np.random.default_rng(0).normal(0, 0.1, len(frame))
    own = arms.with_arm("noisy", ["prior_noisy"], label="+ noisy copy")
    more = ranking.ablate(frame.with_prior("noisy", signal), own, seeds=1, replicates=50, reuse=loaded)
    assert more.about["per_arm"]["llm"] == loaded.about["per_arm"]["llm"]  # seconds too: it was not fitted again
    assert more.lifts.get("llm", "baseline", "auc").difference == pytest.approx(
        finished.lifts.get("llm", "baseline", "auc").difference, abs=1e-6
    )
    assert more.compare("noisy", "baseline")[0].low > 0
    other = ranking.ablate(frame, arms.with_ranker(num_leaves=7), seeds=1, replicates=20, reuse=loaded)
    assert other.about["per_arm"]["llm"] != loaded.about["per_arm"]["llm"]


def test_an_arm_is_reused_by_its_values_and_in_any_role(frame, arms, finished):
    """Another frame of the same rows may have been joined anew: what counts is what a ranker reads of it."""
    moved = replace(frame, manifest={**frame.manifest, "key": "another"})
    moved = moved.with_prior("more", np.arange(len(frame), dtype=float))
    control = arms.model_copy(
        update={
            "arms": tuple(arm.model_copy(update={"label": "other words"}) for arm in arms.arms if arm.name != "llm")
            + tuple(arm for arm in arms.arms if arm.name == "llm")
        }
    )
    whole = ranking.ablate(moved, control, seeds=1, replicates=50, reuse=finished)
    assert sorted(whole.about["reused"]) == sorted(arm.name for arm in arms.arms)
    rows = frame.rows.copy()
    rows.loc[rows.index[0], "prior_llm_log_prob"] -= 1e-3
    other = ranking.ablate(replace(frame, rows=rows), arms, seeds=1, replicates=50, reuse=finished)
    assert "llm" not in other.about["reused"]
    assert "baseline" in other.about["reused"]


@pytest.mark.parametrize("changed", ["label", "rows", "training"])
def test_arms_of_other_rows_are_not_reused(frame, arms, finished, changed):
    """RNK006 looks at the impressions and labels that scores belong to, and at what rankers were trained on."""
    rows = frame.rows.copy()
    test = np.flatnonzero(rows["split"] == "test")
    if changed == "label":
        rows.loc[rows.index[test[0]], "label"] = 1 - rows["label"].iloc[test[0]]
    elif changed == "rows":
        rows = rows.drop(index=rows.index[test[0]])
    else:
        rows = rows.drop(index=rows.index[np.flatnonzero(rows["split"] == "train")[0]])
    with pytest.raises(AdvpriorError, match="RNK006"):
        ranking.ablate(replace(frame, rows=rows), arms, seeds=1, replicates=20, reuse=finished)
