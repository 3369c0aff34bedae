"""An LLM that reads what was bought: one forward for all snapshots equals the truncated prompts, details and all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from advprior.history.catalog import Catalog
from advprior.history.histories import build_histories, micros
from advprior.pipeline.fit import finetune
from advprior.predictors.registry import load_predictor, predictor_class
from advprior.store.errors import AdvpriorError
from advprior.store.tables import load_tables
from tests.advprior.conftest import export, llm_settings
from tests.parity import assert_other_log_probs, assert_same_log_probs
from tests.tiny import PLAN, write_tiny
from tests.tiny_llm import write_tiny_llm


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    write_tiny(folder / "tables")
    events = load_tables(folder / "tables", "events")["events"]
    events["text"] = events["category"] + " no. " + (np.arange(len(events)) % 7).astype(str)
    events.to_parquet(folder / "tables/events.parquet")
    raw = llm_settings(write_tiny_llm(folder / "base"), epochs=1)
    raw["prompt"] = {"context": 160, "detail": "full", "detail_tokens": 12}
    assert finetune(folder / "tables", folder / "llm", "llm", predictor_class("llm").settings(raw))
    export(folder / "llm")
    return folder


def test_a_long_forward_says_what_the_truncated_prompts_say(reader: Path) -> None:
    tables = load_tables(reader / "tables", "users", "advertisers", "events")
    histories = build_histories(tables["users"], tables["events"], Catalog.from_table(tables["advertisers"]))
    predictor = load_predictor(reader / "llm")
    scorer = predictor.scorer(reader / "llm/onnx", device="cpu", threads=1)
    cutoffs = np.asarray([micros(moment) for moment in PLAN.snapshots()[::5]], np.int64)
    users = np.asarray([0, 3, 17], np.int64)
    lengths = [len(predictor.encoder().prompt(histories, int(user)).body) for user in users]
    assert max(lengths) > 160  # histories outgrow the context
    together = scorer.score(histories, users, cutoffs)
    for column, cutoff in enumerate(cutoffs):
        alone = scorer.score(histories.before(int(cutoff)), users, cutoffs[column : column + 1])
        assert_same_log_probs(together[:, column], alone[:, 0])
    said = scorer.score(histories, users, cutoffs[-1:])
    events = tables["events"].assign(text="something else")
    other = build_histories(tables["users"], events, predictor.catalog)
    assert_other_log_probs(scorer.score(other, users, cutoffs[-1:]), said)  # the text is read


def test_tables_without_the_texts_it_reads_are_refused(reader: Path) -> None:
    tables = load_tables(reader / "tables", "users", "advertisers", "events")
    predictor = load_predictor(reader / "llm")
    histories = build_histories(tables["users"], tables["events"].drop(columns="text"), predictor.catalog)
    with pytest.raises(AdvpriorError) as caught:
        predictor.scorer(reader / "llm/onnx", device="cpu").score(
            histories, np.asarray([0]), np.asarray([micros(PLAN.end)])
        )
    assert caught.value.code == "PRI013"
