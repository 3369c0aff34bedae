"""The ranker's learning curve: rows by share of the users and by age of the advertiser, on a planted signal."""

import numpy as np

from ranking.evidence.ablation import AblationOptions
from ranking.evidence.segments import EVENTS
from ranking.evidence.user_shares import _some_users, by_age, user_shares
from ranking.frame.table import Frame
from ranking.models.arms import Arms, load_arms
from ranking.models.config import RankerConfig
from tests.ranking.frames import features_of, synthetic_frame

FAST = RankerConfig(max_rounds=40, patience=10, num_leaves=15, learning_rate=0.15, threads=1)
ARMS = Arms(arms=tuple(a for a in load_arms().arms if a.name in ("baseline", "neighbours", "llm")), ranker=FAST)


def test_what_a_prior_adds_by_share_of_users_and_by_age() -> None:
    rows = synthetic_frame(users=120)
    rows[EVENTS] = np.where(rows["advertiser_id"].astype(str).str[-1].isin(list("02468")), 5.0, 500.0)
    frame = Frame(rows, tuple(features_of(rows)), {"coverage": {"llm": 1.0}})
    curve = user_shares(frame, ARMS, [1.0, 0.3], AblationOptions(seeds=2, replicates=50))
    assert [row.share for row in curve] == sorted(row.share for row in curve)
    assert {row.lift.segment for row in curve} == {"overall", "advertiser 1-10", "advertiser over 100"}
    of_all = next(row for row in curve if row.share == 1 and row.lift.arm == "llm" and not row.control)
    assert of_all.lift.difference > 0.02
    controls = [row for row in curve if row.control]
    assert {row.control for row in controls} == {"neighbours"}
    assert {row.to_json()["baseline"] for row in controls} == {"best control"}
    few, everyone = (np.mean([row.users for row in curve if row.share == share]) for share in (0.3, 1.0))
    assert 0.2 < few / everyone < 0.4


def test_a_share_keeps_every_test_row_and_lies_inside_a_larger_one() -> None:
    rows = synthetic_frame(users=40)
    tested = {share: _some_users(rows, share, 0) for share in (0.2, 0.5, 1.0)}
    assert {int((some["split"] == "test").sum()) for some in tested.values()} == {int((rows["split"] == "test").sum())}
    learned = {share: set(some.loc[some["split"] != "test", "user_id"]) for share, some in tested.items()}
    assert learned[0.2] < learned[0.5] < learned[1.0]


def test_a_frame_without_the_feature_has_no_ages() -> None:
    assert by_age(synthetic_frame(users=5)) == {}
