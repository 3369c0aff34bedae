"""The ablation end to end on a synthetic frame: a planted signal is found, none is not, and what is saved is whole."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from advprior.store.errors import AdvpriorError
from advprior.store.runs import new_run
from ranking.evidence.ablation import AblationOptions, ablate, run_ablation, usable_arms
from ranking.evidence.lift import Lifts
from ranking.evidence.metrics import Auc, Rows
from ranking.evidence.report import write_report
from ranking.evidence.result import AblationResult, load_seeds
from ranking.evidence.summary import Evidence, opening_lines
from ranking.frame.checks import check_same_test_rows, enforce
from ranking.frame.read import load_frame
from ranking.frame.table import Frame
from ranking.models.arms import Arms, load_arms
from ranking.models.config import RankerConfig
from tests.ranking.frames import features_of, synthetic_frame, write_frame

FAST = RankerConfig(max_rounds=60, patience=10, num_leaves=15, learning_rate=0.15, threads=1)
FIVE = ("baseline", "popularity", "neighbours", "llm", "placebo")
ARMS = Arms(arms=tuple(arm for arm in load_arms().arms if arm.name in FIVE), ranker=FAST)


def framed(rows):
    return Frame(rows, tuple(features_of(rows)), {"coverage": {"llm": 1.0}})


def ablated(**options):
    return ablate(framed(synthetic_frame(users=150, **options)), ARMS, seeds=2, replicates=200)


@pytest.fixture(scope="module")
def planted():
    return ablated()


def test_a_planted_signal_is_found_and_its_placebo_is_null(planted):
    result = planted
    assert result.verdict.kind == "win", result.verdict.sentence
    assert result.best_control == "neighbours"
    lift = result.lifts.get("llm", "baseline", "auc")
    assert lift.better
    assert lift.difference > 0.03
    assert result.lifts.get("llm", "neighbours", "auc").better
    placebo = result.lifts.get("placebo", "baseline", "auc")
    assert placebo.low <= 0 <= placebo.high
    assert result.lifts.get("llm", "baseline", "log_loss").better  # lower


def test_slates_numbered_anew_for_each_user_are_refused_in_a_frame_of_ones_own():
    """A frame made in Python passed no check of tables; its slates would be ranked over users."""
    rows = synthetic_frame(users=20)
    rows["slate_id"] = rows.groupby("user_id")["slate_id"].rank(method="dense").astype(int)
    with pytest.raises(AdvpriorError, match="DAT016") as refused:
        ablate(framed(rows), ARMS, seeds=1, replicates=20)
    assert "text of user and slate" in str(refused.value)


def test_without_a_signal_no_gain_is_claimed():
    result = ablated(signal=0.0, seed=5)
    assert result.verdict.kind not in ("win", "win_not_over_control"), result.verdict.sentence


def test_every_arm_metric_seed_and_segment_is_there(planted):
    result, predictions = planted, planted.predictions()
    test = result.measured[result.measured["split"] == "test"]
    assert len(test) == 5 * 2 * 3 * 8  # arms, seeds, segments, metrics
    assert test["value"].notna().all()
    assert result.segments == ["overall", "never_advertiser", "never_ad"]
    assert len(result.lifts) == 3 * 5 * (4 + 3)  # segments, metrics, arms over baseline + llm over controls and placebo
    assert list(predictions.columns[:6]) == [
        "impression_id",
        "user_id",
        "slate_id",
        "label",
        "segment_never_advertiser",
        "segment_never_ad",
    ]
    assert list(predictions.columns[6:]) == ["baseline", "popularity", "neighbours", "llm", "placebo"]
    assert len(predictions) == result.about["segments"]["overall"]["rows"] == result.about["splits"]["test"]["rows"]
    # averaged scores are not what the metric averages, but they are near
    assert Auc()(Rows.of(predictions["label"], predictions["llm"])) == pytest.approx(
        result.table()["auc"]["llm"], abs=0.02
    )
    groups = dict(result.about["per_arm"]["llm"]["importance_by_group"])
    assert sum(groups.values()) == pytest.approx(1)
    assert "prior_neighbours" not in groups


def test_the_lift_is_the_difference_of_the_arms_means(planted):
    result = planted
    table = result.table()
    for metric in ("auc", "pr_auc", "log_loss", "ndcg_10"):
        lift = result.lifts.get("llm", "baseline", metric)
        assert lift.difference == pytest.approx(table[metric]["llm"] - table[metric]["baseline"], abs=1e-12)


def test_result_is_shown_and_survives_saving(planted, tmp_path):
    result = planted
    frame = result.frame()
    assert isinstance(frame, pd.DataFrame)
    assert "With LLM priors" in result._repr_html_()
    assert len(result.plot().axes) == 3
    folder = write_frame(tmp_path / "any")  # a folder with a manifest, whose step is then the ablation's
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "step": "rank ablate"}))
    result.write(folder)
    loaded = AblationResult.load(folder)
    assert loaded.lifts == result.lifts
    assert loaded.verdict == result.verdict
    assert loaded.arms == result.arms
    pd.testing.assert_frame_equal(loaded.measured, result.measured)
    (folder / "ablation.json").write_text("{}")
    with pytest.raises(AdvpriorError, match="RNK026"):
        AblationResult.load(folder)


def test_the_same_run_twice_gives_the_same_numbers(planted):
    again = ablated()
    assert again.lifts == planted.lifts
    pd.testing.assert_frame_equal(again.predictions(), planted.predictions())


def test_a_lift_without_positives_is_null_in_json_not_nan(tmp_path):
    frame = synthetic_frame(users=60)
    frame["segment_never_ad"] = False
    arms = Arms(arms=(ARMS.baseline, ARMS.find("llm")), ranker=FAST)
    folder = write_frame(tmp_path / "f", frame)
    result, _ = run_ablation(folder, tmp_path, arms, AblationOptions(1, 20))
    text = (tmp_path / "ablation.json").read_text()
    assert "NaN" not in text
    assert np.isnan(result.lifts.get("llm", "baseline", "auc", "never_ad").difference)
    assert result.lifts[0].seed_sd is None
    predictions = pd.read_parquet(tmp_path / "predictions.parquet")
    with new_run(tmp_path / "done", "rank ablate", config={}, inputs={}, key="k") as run:
        for name in ("predictions.parquet", "seeds.parquet"):
            (run.path / name).write_bytes((tmp_path / name).read_bytes())
    rows, scores = load_seeds(tmp_path / "done")
    assert list(rows["impression_id"]) == list(predictions["impression_id"])
    assert scores.keys() == {"baseline", "llm"}
    assert scores["llm"][0] == pytest.approx(predictions["llm"], abs=1e-6)
    predictions.iloc[1:].to_parquet(tmp_path / "done" / "predictions.parquet")
    with pytest.raises(AdvpriorError, match="RNK006"):
        load_seeds(tmp_path / "done")


def test_arms_without_their_priors_are_left_out_unless_asked_for():
    features = [f for f in features_of(synthetic_frame(users=5)) if f.group != "prior_neighbours"]
    kept, left_out = usable_arms(ARMS, features)
    assert [arm.name for arm in kept.arms] == ["baseline", "popularity", "llm", "placebo"]
    assert left_out == {"neighbours": "prior_neighbours"}
    with pytest.raises(AdvpriorError, match=r"RNK022(.|\n)*neighbours"):
        usable_arms(ARMS, features, ["llm", "neighbours"])
    controls, left_out = usable_arms(ARMS, [f for f in features if f.group != "prior_llm"])
    assert [arm.name for arm in controls.on_trial] == ["popularity"]
    assert "llm" in left_out
    with pytest.raises(AdvpriorError, match=r"RNK028(.|\n)*llm adds prior_llm"):
        usable_arms(ARMS, [f for f in features if f.predictor is None])


def test_a_run_with_controls_only_says_what_they_give(tmp_path):
    frame, arms = framed(synthetic_frame(users=60)), ARMS.only("popularity", "neighbours")
    result = ablate(frame, arms, seeds=2, replicates=50)
    assert (result.verdict.kind, len(result.verdict.others)) == ("controls", 1)
    assert "No treatment is among the arms, so this is what controls give" in result.verdict.sentence
    assert result.best_control in ("popularity", "neighbours")
    assert result.facts()["worth"] is False
    assert "Put a prior on trial" in dict(opening_lines(Evidence(result)))["What to do"]
    write_report(result.save(tmp_path / "ablation"), tmp_path / "report.html")
    assert "No treatment: what controls give" in (tmp_path / "report.html").read_text()


def test_too_few_priors_refuse_an_arms_verdict(planted):
    """What the frame's manifest says of its coverage decides; cause and cure are those that the frame found."""
    gap = {"share": 0.4, "cause": "a refresh replaced the full priors", "fix": "publish them again"}
    frame = framed(synthetic_frame(users=150))
    short = Frame(frame.rows, frame.features, {"coverage": {"llm": 0.4, "neighbours": 1.0}, "gaps": {"llm": gap}})
    result = ablate(short, ARMS, seeds=2, replicates=200, reuse=planted)
    assert result.verdict.kind == "undefined"
    assert "only 40 % of the impressions have this prior: a refresh replaced the full priors" in result.verdict.sentence
    assert dict(opening_lines(Evidence(result)))["What to do"].startswith("Close the gap first: publish them again")


def test_a_result_prints_on_one_screen(planted):
    arms = [ARMS.find("llm").model_copy(update={"name": f"llm_{i}", "label": "+ " + 9 * "long "}) for i in range(40)]
    lifts = Lifts(replace(one, arm=arm.name) for arm in arms for one in planted.lifts if one.arm == "llm")
    measured = [planted.measured.query("arm == 'llm'").assign(arm=arm.name) for arm in arms]
    many = replace(
        planted,
        arms=Arms(arms=(*ARMS.arms, *arms), ranker=FAST),
        lifts=Lifts([*planted.lifts, *lifts]),
        measured=pd.concat([planted.measured, *measured]),
    )
    assert len(repr(many)) <= 2500
    assert "33 more arms: .frame()" in repr(many)


def test_arms_on_other_rows_are_refused():
    with pytest.raises(AdvpriorError, match="RNK006"):
        enforce([check_same_test_rows({"baseline": "a", "llm": "b"})])


def test_a_frame_with_an_empty_split_is_refused(tmp_path):
    frame = synthetic_frame(users=10)
    with pytest.raises(AdvpriorError, match=r"RNK027(.|\n)*valid"):
        load_frame(write_frame(tmp_path / "f", frame[frame["split"] != "valid"]))
