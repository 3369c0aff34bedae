"""``max_minutes`` bounds all of a fit: what can stop early does, what cannot is refused, and what stopped is named."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from advprior.predictors import deadline as module
from advprior.predictors.deadline import Deadline
from advprior.predictors.llm.predictor import LLMPredictor
from advprior.predictors.quality import quality_lines
from advprior.predictors.registry import predictor_class
from advprior.predictors.tuning.encode import mean_states
from advprior.store.errors import AdvpriorError
from advprior.store.progress import Progress
from tests.advprior.predictors.llm.tuning.cycles import cycle_data, cycle_settings
from tests.advprior.predictors.sequence.test_predictor import SMALL, couples
from tests.tiny_llm import write_tiny_llm

SHORT = 1e-3  # minutes


def test_a_loop_that_will_not_end_in_time_is_refused_and_one_that_will_is_not(monkeypatch) -> None:
    monkeypatch.setattr(module, "MEASURED", 0.01)
    end = Deadline(SHORT)
    with Progress(1000, "encode", "text") as progress:
        time.sleep(0.02)
        progress.update()  # 20 s in all, of 60 ms
        with pytest.raises(AdvpriorError, match="PRI019"):
            end.require(progress, "encoding")
    for patient in (Deadline(), Deadline(60)):
        with Progress(2, "encode", "text") as progress:
            progress.update()
            patient.require(progress, "encoding")


def test_texts_that_take_longer_than_the_time_are_refused() -> None:
    class Slow(torch.nn.Module):
        config = type("Config", (), {"hidden_size": 2})

        def forward(self, input_ids, **_):
            time.sleep(0.05)
            return type("Out", (), {"last_hidden_state": torch.ones(*input_ids.shape, 2)})

    texts = [[i] * 900 for i in range(1, 40)]
    with pytest.raises(AdvpriorError, match="PRI019"):
        mean_states(Slow(), texts, Deadline(SHORT))
    assert np.isfinite(mean_states(Slow(), texts[:3], Deadline(5))).all()


def test_sasrec_ends_by_its_time_with_the_best_pass_so_far(tmp_path) -> None:
    kind, data = predictor_class("sasrec"), couples(40)
    raw = {**SMALL, "training": {"epochs": 500, "patience": 500, "batch_tokens": 32, "max_minutes": 0.02}}
    began = time.process_time()
    facts = kind.fit(data, kind.settings(raw), tmp_path)
    assert time.process_time() - began < 60  # whole, it takes many times that
    assert "fit" in facts["stopped_by_max_minutes"]
    assert len(facts["curve"]) < 500
    assert "max_minutes ended: fit" in "\n".join(quality_lines(facts))
    assert kind(tmp_path).export(tmp_path)["parity"] < 1e-3


def test_names_that_take_longer_than_the_time_are_refused(tmp_path) -> None:
    kind, raw = predictor_class("zero_shot"), {"base": str(write_tiny_llm(tmp_path / "base", layers=1, hidden=16))}
    data = cycle_data(users=4)
    with pytest.raises(AdvpriorError, match="PRI019"):
        kind.fit(data, kind.settings({**raw, "max_minutes": 1e-9}), tmp_path)
    assert kind.fit(data, kind.settings({**raw, "max_minutes": 60}), tmp_path)["trie_nodes"] > 0


def test_the_llm_shares_its_time_between_stages(tmp_path) -> None:
    base = write_tiny_llm(tmp_path / "base")
    settings = cycle_settings(
        base,
        target="first",
        drift={"around_days": 10.0},
        training={"epochs": 400, "patience": 400, "max_minutes": 0.03},
    )
    facts = LLMPredictor.fit(cycle_data(), settings, tmp_path)
    assert "fine-tune" in facts["stopped_by_max_minutes"]
    assert len(facts["curve"]) < 400
    # fitted again on all labels only where it has a say, and where that would have ended in time
    again, late = "refit" in facts, "fine-tune again" in facts["stopped_by_max_minutes"]
    assert [again, late, facts["strength"] == 0].count(True) == 1
