"""The ranker's learning curve: rows by share of the users and by age of the advertiser, on a planted signal."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ranking.evidence.ablation import AblationOptions, ablate
from ranking.evidence.bootstrap import Outcomes, Resampling, paired_bootstrap
from ranking.evidence.metrics import Auc
from ranking.evidence.pooled_shares import pool_user_shares
from ranking.evidence.segments import EVENTS
from ranking.evidence.user_shares import (
    NEVER,
    USER_SHARES_FILE,
    ShareScores,
    UserShares,
    _some_users,
    by_age,
    user_shares,
)
from ranking.frame.row_blocks import InMemory
from ranking.frame.table import Frame
from ranking.models.arms import Arms, load_arms
from ranking.models.config import RankerConfig
from tests.ranking.frames import features_of, synthetic_frame

FAST = RankerConfig(max_rounds=40, patience=10, num_leaves=15, learning_rate=0.15, threads=1)
NAMES = ("baseline", "neighbours", "llm")
ARMS = Arms(arms=tuple(a for a in load_arms().arms if a.name in NAMES), ranker=FAST)


def test_what_a_prior_adds_by_share_of_users_and_by_age() -> None:
    rows = synthetic_frame(users=120)
    rows[EVENTS] = np.where(rows["advertiser_id"].astype(str).str[-1].isin(list("02468")), 5.0, 500.0)
    rows[f"segment_{NEVER}"] = rows["advertiser_id"].astype(str).str[-1] == "3"
    features = tuple(features_of(rows))
    whole = ablate(Frame(rows, features, {"coverage": {"llm": 1.0}}), ARMS, seeds=2, replicates=50)
    options = AblationOptions(seeds=2, replicates=50, reuse=whole)
    result = user_shares(InMemory(rows), features, ARMS, [1.0, 0.3], options)
    curve = result.curve
    assert [row.share for row in curve] == sorted(row.share for row in curve)
    assert {row.lift.segment for row in curve} == {"overall", NEVER, "advertiser 1-10", "advertiser over 100"}
    of_all = next(row for row in curve if row.share == 1 and row.lift.arm == "llm" and not row.control)
    assert of_all.lift == whole.lifts.get("llm", "baseline", of_all.lift.metric)  # the same rankers, not fitted again
    assert all(a is b for a, b in zip(result.by_share[1].scores["llm"], whole.scores["llm"], strict=True))
    assert of_all.lift.difference > 0.02
    controls = [row for row in curve if row.control]
    assert {row.control for row in controls} == {"neighbours"}
    assert {row.to_json()["baseline"] for row in controls} == {"best control"}
    few, everyone = (np.mean([row.users for row in curve if row.share == share]) for share in (0.3, 1.0))
    assert 0.2 < few / everyone < 0.4


def test_a_share_keeps_every_test_row_and_lies_inside_a_larger_one() -> None:
    rows = synthetic_frame(users=40)
    tested = {share: rows[_some_users(rows, share, 0)] for share in (0.2, 0.5, 1.0)}
    assert {int((some["split"] == "test").sum()) for some in tested.values()} == {int((rows["split"] == "test").sum())}
    learned = {share: set(some.loc[some["split"] != "test", "user_id"]) for share, some in tested.items()}
    assert learned[0.2] < learned[0.5] < learned[1.0]


def test_a_frame_without_the_feature_has_no_ages() -> None:
    assert by_age(synthetic_frame(users=5)) == {}


@pytest.fixture
def cutoffs(tmp_path: Path) -> tuple[Arms, list[UserShares], Path]:
    """Curves of two cut-offs with scores drawn at random: other users and controls at each, one share in common."""
    arms = Arms(arms=tuple(a for a in load_arms().arms if a.name in (*NAMES, "popularity")), ranker=FAST)
    made = []
    for place, shares in enumerate([(0.1, 1.0), (0.3, 1.0)]):
        rng, n = np.random.default_rng(place), 400 + 40 * place
        user = rng.integers(0, 50, n) + 20 * place
        label = rng.integers(0, 2, n)
        rows = pd.DataFrame({"impression_id": np.arange(n), "user_id": [f"u{u}" for u in user], "slate_id": user})
        rows = rows.assign(label=label, **({f"segment_{NEVER}": rng.random(n) < 0.3} if place else {}))
        by_share = [
            ShareScores(
                share,
                20 + place,
                {arm.name: [0.2 * label + rng.random(n) for _ in range(2)] for arm in arms.arms},
                {"baseline": 0.5, "popularity": 0.7, "neighbours": 0.6 + 0.2 * place},  # at each another one is best
            )
            for share in shares
        ]
        made.append(UserShares([], rows, by_share))
        (tmp_path / str(place)).mkdir()
        made[-1].write(tmp_path / str(place))
    return arms, made, tmp_path


def test_curves_of_cut_offs_are_pooled_as_the_bootstrap_over_all_rows_does(
    cutoffs: tuple[Arms, list[UserShares], Path],
) -> None:
    arms, (first, second), folder = cutoffs
    folders = [folder / "0", folder / "1"]
    lines = pool_user_shares(folders, folder, arms, slots=5, replicates=80)
    assert any("overall: llm − best control, popularity, neighbours, auc" in line for line in lines)
    curve = json.loads((folder / USER_SHARES_FILE).read_text())["curve"]
    assert {row["share"] for row in curve} == {1.0}  # the only one that both have
    rows = pd.concat([first.rows, second.rows])
    cutoff = np.repeat([0, 1], [len(first.rows), len(second.rows)])
    outcomes = Outcomes.of(rows["label"], rows["user_id"], slate=rows["slate_id"], cutoff=cutoff)
    both = {"llm": ("llm", "llm"), "baseline": ("baseline", "baseline"), "best": ("popularity", "neighbours")}
    at = [one.by_share[1].scores for one in (first, second)]
    scores = {
        name: [np.concatenate([at[0][early][seed], at[1][late][seed]]) for seed in range(2)]
        for name, (early, late) in both.items()
    }
    pairs = [("llm", "baseline"), ("llm", "best")]
    by_hand = paired_bootstrap(scores, outcomes, pairs, Resampling((Auc(),), replicates=80))
    for lift, baseline in zip(by_hand, ("baseline", "best control"), strict=True):
        row = next(row for row in curve if _named(row) == ("llm", baseline, "auc", "overall"))
        assert [row[key] for key in ("difference", "low", "high")] == pytest.approx(
            [lift.difference, lift.low, lift.high], abs=1e-6
        )
        assert row["by_cutoff"] == pytest.approx(lift.by_cutoff, abs=1e-6)
    never = next(row for row in curve if _named(row) == ("llm", "baseline", "auc", NEVER))
    assert never["by_cutoff"][0] is None
    assert never["difference"] == pytest.approx(never["by_cutoff"][1])


def _named(row: dict[str, object]) -> tuple[object, ...]:
    return tuple(row[key] for key in ("arm", "baseline", "metric", "segment"))


def test_ablations_without_a_curve_are_named_and_none_is_no_news(cutoffs: tuple[Arms, list[UserShares], Path]) -> None:
    arms, _, folder = cutoffs
    (folder / "none").mkdir()
    said = pool_user_shares([folder / "0", folder / "none"], folder, arms, slots=5, replicates=20)
    assert len(said) == 1
    assert str(folder / "none") in said[0]
    assert not (folder / USER_SHARES_FILE).exists()
    assert pool_user_shares([folder / "none"], folder, arms, slots=5, replicates=20) == []
