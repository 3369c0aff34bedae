"""Users without a history: the position that answers for them is trained, and validation says whether it is heard."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from advprior.history.counts import DAY
from advprior.history.histories import Histories
from advprior.predictors.llm.predictor import LLMPredictor
from advprior.predictors.llm.prompts import PromptEncoder, PromptStyle
from advprior.predictors.llm.saved_prompt import NETWORK, OFFSET_ALONE, PROMPT_FILE
from advprior.predictors.llm.tuning.points import training_points
from advprior.predictors.logit import log_softmax
from advprior.predictors.offset import Offset
from tests.advprior.predictors.llm.tuning.cycles import NAMES, SIZE, cycle_data, cycle_settings
from tests.parity import assert_other_log_probs, assert_same_log_probs
from tests.tiny_llm import write_tiny_llm

WEEK, WEEKS = 7 * DAY, 16


def newcomers(users: int, *, profile_tells: bool):
    """Users who come at any week, first to the advertiser that their profile names (or to any), then go round."""
    rng = np.random.default_rng(1)
    first = rng.integers(0, 4 if profile_tells else SIZE, users)
    starts = rng.integers(0, WEEKS, users)
    starts[: users // 4] = 0
    lengths = WEEKS - starts
    histories = Histories(
        tuple(f"u{i:02d}" for i in range(users)),
        tuple(f"Likes: {'abcd'[a if profile_tells else i % 4] * 3}" for i, a in enumerate(first)),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate([np.arange(s, WEEKS) for s in starts]).astype(np.int64) * WEEK + DAY,
        np.concatenate([(a + np.arange(n)) % SIZE for a, n in zip(first, lengths, strict=True)]).astype(np.int64),
    )
    return replace(cycle_data(), histories=histories)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_tiny_llm(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("drift", [{}, {"around_days": 10.0}])
def test_each_user_has_one_point_before_the_first_event(drift: dict) -> None:
    data, settings = newcomers(40, profile_tells=True), cycle_settings("x", drift=drift)
    encoder = PromptEncoder(PromptStyle(context=128), lambda text: [1] * len(text), 300, list(NAMES))
    border = data.cutoff - 21 * DAY
    points = training_points(data, encoder, settings)
    first = data.histories.time[data.histories.offsets[:-1]]
    fitted, validated = np.zeros(40, int), np.zeros(40, int)
    for p in points:
        before = p.moments <= first[p.user]
        assert (p.positions[before] == len(encoder.prompt(data.histories, p.user).head) - 1).all()
        assert (p.positions[~before] > p.positions[before].max(initial=0)).all()
        assert (p.moments[before] > first[p.user] - WEEK).all()
        assert not (p.no_history & ~before).any()
        assert not (p.valid & before).any()
        assert not (p.no_history & (p.train | p.again)).any()
        fitted[p.user] += (p.train & before).sum()
        validated[p.user] += p.no_history.sum()
    assert (fitted <= 1).all()
    assert (validated <= 1).all()
    assert (fitted[first + WEEK <= border] == 1).all()
    # the last weekly snapshot whose week of labels is whole
    assert np.flatnonzero(validated).tolist() == np.flatnonzero(first > border).tolist()


@pytest.mark.parametrize(("tells", "drift"), [(True, {}), (False, {"around_days": 10.0})])
def test_a_profile_that_tells_is_heard_and_noise_is_not(base, tmp_path, tells: bool, drift: dict) -> None:
    """Through the scorer: what it gives a new user is the network's answer, or the offset to the letter."""
    data = newcomers(80, profile_tells=tells)
    settings = cycle_settings(base, drift=drift, training={"epochs": 6 if tells else 1})
    facts = LLMPredictor.fit(data, settings, tmp_path)["no_history"]
    assert facts["points"] >= 10
    assert facts["given"] == (NETWORK if tells else OFFSET_ALONE)
    assert (facts[NETWORK] < facts[OFFSET_ALONE] - 0.3) == tells
    assert json.loads((tmp_path / PROMPT_FILE).read_text())["no_history"] == facts["given"]
    predictor = LLMPredictor(tmp_path)
    predictor.export(tmp_path / "onnx")
    scorer = predictor.scorer(tmp_path / "onnx", "cpu", 1)
    new = replace(data.histories, offsets=np.minimum(data.histories.offsets, data.histories.offsets[4]))
    users, moments = np.arange(2, 8), np.asarray([WEEK * 12])  # 0 to 3 have a history
    priors = scorer.score(new, users, moments)[:, 0]
    start = Offset.from_json(json.loads((tmp_path / "habit.json").read_text()))
    alone = log_softmax(start.logits(new, users, np.repeat(moments, 6), SIZE))
    assert_other_log_probs(priors[:2], alone[:2])
    if tells:
        assert priors[2:].argmax(1).tolist() == ["abcd".index(new.profiles[u][-1]) for u in users[2:]]
    else:
        assert_same_log_probs(priors[2:], alone[2:])


def test_without_newcomers_to_validate_on_the_offset_is_given(base, tmp_path) -> None:
    facts = LLMPredictor.fit(cycle_data(), cycle_settings(base, training={"epochs": 1}), tmp_path)
    assert facts["no_history"] == {"points": 0, NETWORK: None, OFFSET_ALONE: None, "given": OFFSET_ALONE}
