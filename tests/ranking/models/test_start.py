"""A ranker that starts from a prior: what is served, explained and saved starts where what was measured did."""

from __future__ import annotations

import json

import numpy as np
import pytest

from advprior.store.errors import AdvpriorError
from ranking.models.arms import Arm, load_arms
from ranking.models.binning import Examples
from ranking.models.config import RankerConfig
from ranking.models.ranker import Ranker
from ranking.models.start import Start
from ranking.service.predictor import Predictor
from tests.ranking.frames import features_of, synthetic_frame

PRIOR = "prior_llm_log_prob"
CONFIG = RankerConfig(max_rounds=30, patience=10, num_leaves=7, learning_rate=0.1, threads=1, start_from=PRIOR)


@pytest.fixture(scope="module")
def parts():
    frame = synthetic_frame()
    return features_of(frame), [frame[frame["split"] == name] for name in ("train", "valid", "test")]


def fitted(parts, **changes) -> Ranker:
    features = [one for one in parts[0] if one.predictor is None or one.name == PRIOR]
    config = CONFIG.model_copy(update=changes)
    return Ranker("ranker_with_priors_v1", features, config, seed=3).fit(*parts[1][:2])


@pytest.mark.parametrize("objective", ["binary", "lambdarank"])
def test_what_is_served_and_explained_is_what_was_measured(parts, tmp_path, objective: str) -> None:
    ranker = fitted(parts, objective=objective)
    ranker.save(tmp_path)
    loaded = Ranker.load(tmp_path)
    test = parts[1][2].copy()
    test.loc[test.index[:50], PRIOR] = np.nan
    matrix = loaded.encoder.encode(test)
    measured = ranker.predict(test)
    served = Predictor(loaded, tmp_path)
    np.testing.assert_allclose(served.scores(matrix), measured, rtol=1e-9)
    np.testing.assert_allclose(served.contributions(matrix).sum(1), ranker.raw(matrix), atol=1e-6)
    # the prior speaks through the start alone, and it does speak
    assert ranker.importance()[PRIOR] == 0.0
    own = served.contributions(matrix)[:, ranker.names.index(PRIOR)]
    np.testing.assert_allclose(own, ranker.start.log_odds(matrix) - ranker.start.missing, atol=1e-6)
    assert (own[:50] == 0).all()
    assert np.abs(own[50:]).max() > 0.1
    # who knows no start must not read it as if there were none
    assert json.loads((tmp_path / "ranker.json").read_text())["format"] == 3


def test_the_start_is_the_likeliest_line_of_the_training_rows() -> None:
    """Of two kinds of rows with 1 in 4 and 3 in 4 positives, and a third that has no value."""
    value = np.asarray([[0.0]] * 400 + [[2.0]] * 400 + [[np.nan]] * 100, np.float32)
    label = np.asarray([1] * 100 + [0] * 300 + [1] * 300 + [0] * 100 + [1] * 10 + [0] * 90, np.int8)
    start = Start.fit("x", ["x"], Examples(value, label))
    expected = [-np.log(3), np.log(3), np.log(10.5 / 90.5)]
    np.testing.assert_allclose(start.log_odds(np.asarray([[0.0], [2.0], [np.nan]], np.float32)), expected, rtol=1e-3)


def test_a_feature_that_is_not_read_is_no_start(parts) -> None:
    with pytest.raises(AdvpriorError, match="RNK049"):
        fitted(parts, start_from="prior_llm_rank")


def test_an_arm_says_where_it_starts() -> None:
    arms = load_arms()
    arm = arms.find("text_pair_start")
    assert arms.config_of(arm).start_from == "prior_text_pair_log_prob"
    assert arms.config_of(arms.baseline).start_from is None
    # held against the same controls as if it were a column
    assert arms.method_of(arm) == arms.method_of(arms.baseline)
    with pytest.raises(ValueError, match="start_from"):
        Arm(name="x", label="x", ranker="sklearn.linear_model:LogisticRegression", start_from="prior_x")
