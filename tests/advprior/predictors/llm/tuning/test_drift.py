"""Fitting around the drift of each label: what scoring starts from is weighed once, and the last labels count too."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import advprior.predictors.llm.tuning.loop as loop
from advprior.history.counts import DAY
from advprior.history.histories import Histories
from advprior.history.targets import Targets, quality
from advprior.predictors.llm.predictor import LLMPredictor
from advprior.predictors.llm.prompts import PromptEncoder, PromptStyle
from advprior.predictors.llm.tuning.batches import TrainingBatches
from advprior.predictors.llm.tuning.drift import Drift
from advprior.predictors.llm.tuning.heads import NameHead
from advprior.predictors.llm.tuning.model import from_base
from advprior.predictors.llm.tuning.points import training_points
from advprior.predictors.tuning.base import load_base
from advprior.store.errors import AdvpriorError
from tests.advprior.predictors.llm.tuning.cycles import NAMES, SIZE, cycle_data, cycle_settings
from tests.tiny_llm import write_tiny_llm

WEEK = 7 * DAY


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_tiny_llm(tmp_path_factory.mktemp("base"))


def settings_of(base, **changes):
    raw = {"target": "first", "habit": {"half_lives_days": [14.0]}, **changes}
    return cycle_settings(base, drift={"around_days": 10.0, **raw.pop("drift", {})}, **raw)


def points_of(data, settings):
    encoder = PromptEncoder(PromptStyle(context=128, gaps=False), lambda text: [1], 50, list(NAMES))
    return training_points(data, encoder, settings)


def test_each_wait_is_one_point_and_none_reaches_past_the_border() -> None:
    data, settings = cycle_data(users=6), settings_of("x")
    border = data.cutoff - 21 * DAY
    points = points_of(data, settings)
    for p in points:
        events = data.histories.time[data.histories.offsets[p.user] : data.histories.offsets[p.user + 1]]
        fitted = p.again
        assert not (p.train & p.valid).any()
        assert (p.ends[p.train] < border).all()
        assert (p.moments[fitted] <= p.ends[fitted]).all()
        # one point for each event, in the week before it
        assert p.ends[fitted].tolist() == events.tolist()
        assert (p.moments[fitted][1:] > events[:-1]).all()
        assert (p.moments[p.valid] >= border).all()
        assert p.weight[fitted][1:] == pytest.approx(np.ones(fitted.sum() - 1))  # a week of a horizon of a week
    assert sum(p.again.sum() for p in points) > sum(p.train.sum() for p in points)


def test_a_shorter_wait_counts_for_less() -> None:
    data, settings = cycle_data(users=6), settings_of("x", horizon_days=28.0)
    for p in points_of(data, settings):
        assert p.weight[p.again][1:] == pytest.approx(np.full(p.again.sum() - 1, 0.5))  # (1/4) ** .5
        assert p.weight[p.valid] == pytest.approx(np.ones(p.valid.sum()))


def test_offsets_know_the_fashion_of_the_label_and_not_of_the_validation_labels(base) -> None:
    """Everybody turns to advertiser 5 in the last three weeks: the first pass must not know, the second must."""
    data = cycle_data(users=30)
    late = data.histories.time >= data.cutoff - 21 * DAY
    histories = dataclasses.replace(data.histories, advertiser=np.where(late, 5, data.histories.advertiser))
    data = dataclasses.replace(data, histories=histories)
    settings = settings_of(base)
    points = points_of(data, settings)
    whole = load_base(str(base)).model
    model = from_base(
        whole, catalog_size=SIZE, text_vocab_size=300, frozen_layers=0, advertiser_embeddings=torch.zeros(SIZE, 32)
    )
    batches = TrainingBatches(model, NameHead(torch.randn(SIZE, 4), 32, 2), None, points, 512)
    drift = Drift(data, points, batches, settings)

    def starts(which):
        user = np.concatenate([np.full(len(p.moments), p.user)[which(p)] for p in points])
        moment, end = (np.concatenate([getattr(p, of)[which(p)] for p in points]) for of in ("moments", "ends"))
        return batches.starts["train"](user, moment, end)

    before = starts(lambda p: p.train).mean(0)
    assert before[5] == pytest.approx(np.delete(before, 5).mean(), abs=0.5)
    assert not any(logits.any() for logits in batches.valid_start())
    assert drift.up_to_cutoff() == sum(p.again.sum() for p in points)
    new = starts(lambda p: p.train & (p.ends >= data.cutoff - 21 * DAY)).mean(0)
    assert new.argmax() == 5
    assert new[5] - np.delete(new, 5).max() > 1


def test_what_is_scored_is_what_validation_measured(base, tmp_path) -> None:
    """Without a second pass, the exported scorer's priors earn the curve's figures."""
    data = cycle_data()
    settings = settings_of(base, drift={"refit": False})
    facts = LLMPredictor.fit(data, settings, tmp_path)
    best = facts["curve"][facts["best_epoch"] - 1]
    assert best["strength"] == pytest.approx(facts["strength"])
    assert best["valid_nll"] < 0.5 * facts["valid"]["start"]["nll"]  # it reads
    predictor = LLMPredictor(tmp_path)
    predictor.export(tmp_path / "onnx")  # refused unless it says the same
    scorer = predictor.scorer(tmp_path / "onnx", "cpu", 1)
    points = [p for p in points_of(data, settings) if p.valid.any()]
    priors, truth = [], []
    for p in points:
        scores = scorer.score(data.histories, np.asarray([p.user]), p.moments[p.valid])[0]
        priors.append(scores)
        truth.append(p.truth.take(p.valid))
    found = quality(np.concatenate(priors), Targets.joined(truth))
    assert found["nll"] == pytest.approx(best["valid_nll"], abs=2e-3)
    assert found["recall@5"] == pytest.approx(best["valid_recall@5"])


def test_the_second_pass_starts_anew_and_resumes(base, tmp_path, monkeypatch) -> None:
    data, settings = cycle_data(), settings_of(base, training={"epochs": 2})
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    facts = LLMPredictor.fit(data, settings, whole)
    again = facts["refit"]
    assert again["points"] > facts["points"]["train"]
    assert len(again["curve"]) == facts["best_epoch"]
    assert again["curve"][0]["train_nll"] > facts["curve"][-1]["train_nll"]

    save, written = loop.save_checkpoint, []

    def save_and_stop(path, content):
        save(path, content)
        written.append(path.name)
        if path.name == "checkpoint-again.pt":
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_checkpoint", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        LLMPredictor.fit(data, settings, killed)
    monkeypatch.setattr(loop, "save_checkpoint", save)
    LLMPredictor.fit(data, settings, killed)
    assert not list(killed.glob("checkpoint*"))
    first, second = ((folder / "model" / "model.safetensors").read_bytes() for folder in (whole, killed))
    assert first == second


def test_before_the_second_pass_is_kept_where_asked(base, tmp_path) -> None:
    """It is the run of one pass, weights and all: what weighs a predictor on labels that it was not fitted on."""
    data = cycle_data()
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, drift in ((one, {"refit": False}), (two, {"keep_before": True})):
        folder.mkdir()
        LLMPredictor.fit(data, settings_of(base, drift=drift, training={"epochs": 2}), folder)
    for file in ("model/model.safetensors", "habit.json", "prompt.json", "catalog.json"):
        assert (one / file).read_bytes() == (two / "before" / file).read_bytes(), file
    assert (two / "model/model.safetensors").read_bytes() != (one / "model/model.safetensors").read_bytes()
    LLMPredictor(two / "before").export(two / "before" / "onnx")  # refused unless it says the same


def test_a_ranking_stage_has_the_weighed_validation_points(base, tmp_path) -> None:
    data, settings = cycle_data(), settings_of(base, training={"epochs": 2}, ranking={"epochs": 1, "group": 4})
    facts = LLMPredictor.fit(data, settings, tmp_path)
    best = facts["curve"][facts["best_epoch"] - 1]
    assert facts["ranking"]["before"]["valid_nll"] == pytest.approx(best["valid_nll"], abs=2e-3)
    assert ("refit" in facts) == (not facts["ranking"]["kept"])


def test_nothing_to_fit_around_is_said(base, tmp_path) -> None:
    data = cycle_data(users=4)
    one = Histories(tuple("abcd"), ("",) * 4, np.arange(5), np.full(4, 3 * WEEK), np.arange(4) % SIZE)
    with pytest.raises(AdvpriorError, match="PRI006"):
        LLMPredictor.fit(dataclasses.replace(data, histories=one), settings_of(base), tmp_path)
