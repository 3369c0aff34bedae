"""The zero-shot prior through the whole path: finetune, export, score, equal to the naive oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import advprior.predictors.llm.name_trie as name_trie
from advprior.history.histories import build_histories, micros
from advprior.pipeline.fit import finetune
from advprior.predictors.llm.prompts import occasions_before
from advprior.predictors.llm.tuning.names import name_model
from advprior.predictors.registry import load_predictor, predictor_class
from advprior.predictors.tuning.base import load_base
from advprior.store.errors import AdvpriorError
from advprior.store.tables import load_tables
from tests.advprior.conftest import export
from tests.advprior.predictors.llm.naive_names import naive_scores
from tests.parity import assert_distributions, assert_same_log_probs
from tests.tiny import PLAN, WEEK, write_tiny
from tests.tiny_llm import write_tiny_llm


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("zero")
    write_tiny(folder / "tables")
    write_tiny_llm(folder / "base")
    settings = predictor_class("zero_shot").settings({"base": str(folder / "base"), "context": 120})
    assert finetune(folder / "tables", folder / "run", "zero_shot", settings)
    export(folder / "run")
    return folder


def test_scores_are_the_naive_ones_less_the_empty_prompt(run) -> None:
    predictor = load_predictor(run / "run")
    tables = load_tables(run / "tables")
    histories = build_histories(tables["users"], tables["events"], predictor.catalog)
    scorer = predictor.scorer(run / "run" / "onnx", device="cpu", threads=1)
    users = np.arange(6)
    cutoffs = np.asarray([micros(PLAN.finetune_end + k * WEEK) for k in (-10, 0, 1)], np.int64)  # -10: nothing yet
    priors = scorer.score(histories, users, cutoffs)
    assert priors.shape == (6, 3, len(predictor.catalog))
    assert_distributions(priors)

    base = load_base(str(run / "base"), head=True)
    model = name_model(base, predictor._names())
    encoder = scorer._encoder
    empty = np.load(run / "run" / "empty.npy")
    for user in (0, 5):
        prompt = encoder.prompt(histories, user)
        for column, seen in enumerate(occasions_before(prompt, cutoffs)):
            ids = encoder.newest(prompt, int(seen)).ids
            wanted = naive_scores(model, ids.tolist()) - empty
            assert_same_log_probs(priors[user, column], wanted - np.logaddexp.reduce(wanted))
    assert np.abs(priors[:, 1] - priors[:, 0]).max() > 0.05, "the history says nothing"


def test_names_in_blocks_score_as_in_one_tree(run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask of a wide catalog is that of a block of names; the order of the catalog stays."""
    names = load_predictor(run / "run")._names()
    ids = torch.arange(2, 22).view(2, 10)
    mask = torch.ones_like(ids)
    scores = []
    for nodes in (4096, 3):
        monkeypatch.setattr(name_trie, "NODES", nodes)
        model = name_model(load_base(str(run / "base"), head=True), names)
        assert (len(model.tries) > 1) == (nodes == 3)
        assert max(trie.tokens.shape[0] for trie in model.tries) == name_trie.widest_trie(names)
        with torch.inference_mode():
            scores.append(model.scores(ids, mask).numpy())
    assert_same_log_probs(scores[1], scores[0])


def test_later_events_change_nothing(run) -> None:
    predictor = load_predictor(run / "run")
    tables = load_tables(run / "tables")
    histories = build_histories(tables["users"], tables["events"], predictor.catalog)
    scorer = predictor.scorer(run / "run" / "onnx", device="cpu", threads=1)
    moment = micros(PLAN.finetune_end)
    cutoffs = np.asarray([moment], np.int64)
    whole = scorer.score(histories, np.arange(4), cutoffs)
    assert_same_log_probs(scorer.score(histories.before(moment), np.arange(4), cutoffs), whole)


def test_another_base_is_refused(run, tmp_path) -> None:
    predictor = load_predictor(run / "run")
    file = run / "base" / "model.safetensors"
    kept = file.read_bytes()
    write_tiny_llm(run / "base", seed=1)
    try:
        with pytest.raises(AdvpriorError, match="PRI062"):
            predictor.export(tmp_path)
    finally:
        file.write_bytes(kept)
    assert torch.__version__
