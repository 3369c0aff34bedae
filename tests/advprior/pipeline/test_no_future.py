"""Drop all rows after a snapshot, and no prior at or before it changes, no prompt, and nothing fitted before it."""

from __future__ import annotations

import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from advprior.history.histories import Histories, micros
from advprior.history.read import load_histories
from advprior.pipeline.fit import finetune
from advprior.predictors.registry import load_predictor, predictor_class
from advprior.store.runs import MANIFEST, read_manifest
from tests.advprior.conftest import Fitted
from tests.parity import assert_other_log_probs, assert_same_log_probs
from tests.ranking.frame.no_future import cut
from tests.tiny import PLAN

KINDS = ("popularity", "neighbours", "text", "sasrec", "hybrid", "llm", "zero_shot")
SNAPSHOT = PLAN.snapshots()[9]


@pytest.fixture(scope="module")
def tables(fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fitted tables with a third of the events late by up to three weeks, and users who come in the middle."""
    folder = tmp_path_factory.mktemp("late") / "tables"
    shutil.copytree(fitted.tables, folder)
    rng = np.random.default_rng(0)
    for name in ("events", "impressions"):
        table = pd.read_parquet(folder / f"{name}.parquet")
        early = table["user_id"].isin(["u003", "u020", "u039"]) & (table["timestamp"] < PLAN.snapshots()[12])
        table = table[~early].reset_index(drop=True)
        if name == "events":
            late = pd.to_timedelta(rng.integers(1, 21 * 86400, len(table)), unit="s")
            table["arrived"] = (table["timestamp"] + late).where(rng.random(len(table)) < 0.3).dt.as_unit("us")
            table["text"] = pd.Series(["word " + str(i % 97) for i in range(len(table))]).where(table.index % 2 == 0)
        table.to_parquet(folder / f"{name}.parquet", index=False)
    return folder


@pytest.fixture(scope="module")
def both(tables: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Histories, Histories]:
    """Histories of the whole log, and of the log at the snapshot."""
    past = cut(tables, SNAPSHOT, tmp_path_factory.mktemp("cut") / "tables")
    whole, then = load_histories(tables)[0], load_histories(past)[0]
    assert len(then) == len(whole) - 3
    assert len(then.time) < len(whole.time)
    return whole, then


def places(whole: Histories, then: Histories) -> Any:
    return pd.Index(whole.users).get_indexer(pd.Index(then.users)).astype(np.int64)


@pytest.mark.parametrize("kind", KINDS)
def test_no_prior_knows_what_comes_after_its_snapshot(
    fitted: Fitted, both: tuple[Histories, Histories], kind: str
) -> None:
    whole, then = both
    cutoffs = np.array([micros(s) for s in (PLAN.snapshots()[0], PLAN.snapshots()[5], SNAPSHOT)], np.int64)
    scorer = load_predictor(fitted.model(kind)).scorer(fitted.model(kind) / "onnx", "cpu")
    users = np.arange(len(then), dtype=np.int64)
    ours, theirs = scorer.score(whole, places(whole, then), cutoffs), scorer.score(then, users, cutoffs)
    assert_same_log_probs(theirs, ours)
    # and the test can fail: one that reads a week ahead
    week = 7 * 86_400_000_000
    assert_other_log_probs(scorer.score(whole, places(whole, then)[:8], cutoffs + week), theirs[:8])


def test_prompts_say_nothing_of_what_comes_after_the_snapshot(
    fitted: Fitted, both: tuple[Histories, Histories]
) -> None:
    whole, then = both
    encoder = load_predictor(fitted.model("llm")).encoder()
    past = whole.before(micros(SNAPSHOT))
    for user, place in enumerate(places(whole, then)):
        ours, theirs = encoder.prompt(past, int(place)), encoder.prompt(then, user)
        for field in fields(ours):
            np.testing.assert_array_equal(getattr(ours, field.name), getattr(theirs, field.name))


@pytest.mark.parametrize("kind", ["popularity", "neighbours", "text", "sasrec"])
def test_a_fit_knows_nothing_after_its_cut_off(fitted: Fitted, tables: Path, tmp_path: Path, kind: str) -> None:
    cut(tables, PLAN.finetune_end, tmp_path / "past")
    settings = predictor_class(kind).settings(read_manifest(fitted.model(kind))["config"]["settings"])
    for name, folder in (("whole", tables), ("then", tmp_path / "past")):
        assert finetune(folder, tmp_path / name, kind, settings)
    files = sorted(path.name for path in (tmp_path / "whole").iterdir() if path.is_file() and path.name != MANIFEST)
    differ = [n for n in files if (tmp_path / "whole" / n).read_bytes() != (tmp_path / "then" / n).read_bytes()]
    assert files
    assert differ == []
