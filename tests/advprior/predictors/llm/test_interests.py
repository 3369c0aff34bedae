"""Interests as priors: as of their time, resumable, published beside the advertisers' and found by the ranker."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from advprior.history.catalog import Catalog
from advprior.history.histories import build_histories, micros
from advprior.history.interests import build_interests
from advprior.pipeline.fit import finetune
from advprior.pipeline.publish import publish, shuffled_rows
from advprior.pipeline.rowfiles import Journal
from advprior.predictors.llm.tuning.model import AdvertiserModel
from advprior.predictors.registry import load_predictor, predictor_class
from advprior.runtime.session import Engine
from advprior.store.contract import INTEREST_MATRIX_FILE, INTERESTS_FILE
from advprior.store.errors import AdvpriorError
from advprior.store.matrix import matrix_path, open_matrix
from advprior.store.runs import read_manifest
from advprior.store.tables import load_tables
from ranking.frame.gather import gather_interests
from tests.advprior.conftest import Fitted, export, llm_settings
from tests.advprior.scoring import score
from tests.parity import assert_distributions, assert_other_log_probs, assert_same_log_probs
from tests.ranking.stores import copy_repo, definitions
from tests.tiny import CATEGORIES, PLAN, tiny_tables

SNAPSHOTS = np.asarray([micros(s) for s in PLAN.snapshots()], np.int64)
OBSERVED = sorted([*CATEGORIES, "Produce"])  # the last is nobody's in the catalog, and an interest all the same


@pytest.fixture(scope="module")
def run(fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("interests") / "llm"
    raw = {**llm_settings(fitted.folder / "base", epochs=2), "interests": {"weight": 0.5}}
    assert finetune(fitted.tables, out, "llm", predictor_class("llm").settings(raw))
    export(out)
    return out


@pytest.fixture(scope="module")
def priors(fitted: Fitted, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scored") / "llm"
    assert score(run, fitted.tables, out)
    return out


def histories(fitted: Fitted):
    loaded = load_tables(fitted.tables, "users", "advertisers", "events")
    return build_histories(loaded["users"], loaded["events"], Catalog.from_table(loaded["advertisers"]))


def test_interests_are_what_was_seen_before_the_cutoff() -> None:
    tables = tiny_tables(users=6)
    cutoff = micros(PLAN.finetune_end)
    found = build_interests(tables["users"], tables["events"], cutoff)
    assert found is not None
    before = tables["events"][tables["events"].timestamp < PLAN.finetune_end]
    assert list(found.catalog.ids) == sorted(before.category.unique())
    assert found.histories.time.max() < cutoff
    rows = before[["user_id", "timestamp", "category"]].drop_duplicates()
    assert len(found.histories.time) == len(rows)
    # a category of the future changes nothing
    late = tables["events"].iloc[[0]].assign(timestamp=pd.Timestamp(PLAN.finetune_end), category="Later")
    again = build_interests(tables["users"], pd.concat([tables["events"], late]), cutoff)
    assert again is not None
    assert again.catalog.version == found.catalog.version
    few = found.most_frequent(2)
    assert list(few.catalog.ids) == sorted(few.catalog.ids)
    assert int(rows.category.isin(few.catalog.ids).sum()) == int(rows.category.value_counts().iloc[:2].sum())
    assert len(few.histories.time) == int(rows.category.isin(few.catalog.ids).sum())
    assert build_interests(tables["users"], tables["events"].drop(columns="category"), cutoff) is None


def test_scored_as_the_torch_model_and_from_the_past_only(fitted: Fitted, run: Path, priors: Path) -> None:
    whole, predictor = histories(fitted), load_predictor(run)
    matrix = open_matrix(priors / INTEREST_MATRIX_FILE)[:].reshape(len(whole), len(SNAPSHOTS), -1)
    assert list(Catalog.load(priors / INTERESTS_FILE).ids) == OBSERVED
    assert matrix.shape[2] == len(OBSERVED)
    assert_distributions(matrix)
    assert read_manifest(priors)["facts"]["interests"] == len(OBSERVED)
    scorer = predictor.scorer(run / "onnx", "cpu")
    for column in (0, 6):
        cut = whole.before(int(SNAPSHOTS[column]))
        alone = scorer.network(cut, np.arange(9), SNAPSHOTS[column : column + 1])
        assert_same_log_probs(alone.interests[alone.index[:, 0]], matrix[:9, column])
    model = AdvertiserModel.from_pretrained(run / "model").eval()
    prompt = predictor.encoder().prompt(whole.before(int(SNAPSHOTS[-1])), 3)
    (window,) = predictor.encoder().windows(prompt, np.asarray([len(prompt.ends)]))
    ids = torch.from_numpy(window.ids)[None]
    with torch.no_grad():
        at = torch.from_numpy(window.positions)[None]
        expected = model(ids, torch.ones_like(ids), at, torch.zeros(1, 1, 12))["interest_log_probs"]
    assert_same_log_probs(matrix[3, -1], expected[0, 0].numpy())
    assert_other_log_probs(matrix[:, 0], matrix[:, -1])


def test_they_ride_on_the_forwards_of_the_priors(
    fitted: Fitted, run: Path, priors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every prompt is forwarded once for both, and a refresh in which nothing changed forwards nobody."""
    tokens: list[int] = []
    real = Engine.run_all

    def counted(self, inputs, *names):
        tokens.append(int(inputs["attention_mask"].sum()))
        return real(self, inputs, *names)

    monkeypatch.setattr(Engine, "run_all", counted)
    plain = tmp_path / "plain"  # the same fit, and nobody asks it for interests
    shutil.copytree(run, plain)
    (plain / INTERESTS_FILE).unlink()
    sums = []
    for number, each in enumerate((run, plain)):
        tokens.clear()
        assert score(each, fitted.tables, tmp_path / str(number), device="cpu", threads=1, shard_users=9)
        sums.append(sum(tokens))
    assert sums[0] == sums[1]
    assert matrix_path(tmp_path / "1" / INTEREST_MATRIX_FILE) is None
    same = open_matrix(tmp_path / "0" / INTEREST_MATRIX_FILE)[:]
    assert_same_log_probs(same, open_matrix(priors / INTEREST_MATRIX_FILE)[:])

    tokens.clear()
    assert score(run, fitted.tables, tmp_path / "again", since=tmp_path / "0", device="cpu", threads=1)
    facts = read_manifest(tmp_path / "again")["facts"]
    assert (facts["forwarded"], facts["carried"]) == (0, facts["users"])
    assert facts["interests"] == len(OBSERVED)
    # the sample that is scored again from histories cut at the snapshot is all that was forwarded
    assert sum(tokens) < sums[0] / 2
    newest = same.reshape(facts["users"], -1, len(OBSERVED))[:, -1]
    np.testing.assert_array_equal(open_matrix(tmp_path / "again" / INTEREST_MATRIX_FILE)[:], newest)


def test_a_kill_costs_a_shard_of_both(
    fitted: Fitted, run: Path, priors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "out", Journal.add

    def killed(self, shard, facts):
        real(self, shard, facts)
        if shard == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        score(run, fitted.tables, out, shard_users=9)
    monkeypatch.setattr(Journal, "add", real)
    assert score(run, fitted.tables, out, shard_users=9)
    assert_same_log_probs(open_matrix(out / INTEREST_MATRIX_FILE)[:], open_matrix(priors / INTEREST_MATRIX_FILE)[:])


@pytest.fixture(scope="module")
def repo(priors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    repo = copy_repo(tmp_path_factory.mktemp("store") / "repo")
    for name in ("llm", "placebo"):
        publish(priors, repo, name=name)
    return repo


def test_published_beside_the_priors(priors: Path, repo: Path) -> None:
    folder = repo / "data" / "prior_llm"
    table = pq.read_table(folder / "table.parquet").to_pandas()
    matrix = open_matrix(priors / INTEREST_MATRIX_FILE)[:]
    np.testing.assert_array_equal(open_matrix(folder / INTEREST_MATRIX_FILE)[:], matrix)
    np.testing.assert_array_equal(np.stack(table.interest_log_probs), matrix[table.prior_row])
    best = np.stack(table.interest_top5_index)
    assert best.shape[1] == 5
    assert (best[:, 0] == matrix.argmax(1)).all()
    np.testing.assert_array_equal(np.stack(table.interest_top5_log_probs), np.take_along_axis(matrix, best, 1))
    assert np.stack(table.log_probs).shape == (len(table), 12)  # what was there is there still
    rows = pd.read_parquet(priors / "rows.parquet")
    placebo = repo / "data" / "prior_placebo"
    pointers = pq.read_table(placebo / "table.parquet", columns=["prior_row"])["prior_row"].to_numpy()
    shuffled = open_matrix(placebo / INTEREST_MATRIX_FILE)[pointers]
    np.testing.assert_array_equal(shuffled, matrix[shuffled_rows(rows, 0)])


def test_feast_knows_them_where_they_are(fitted: Fitted, repo: Path, tmp_path: Path) -> None:
    fields = {f.name for o in definitions(repo) if getattr(o, "name", "") == "prior_llm" for f in o.schema}
    assert {"interest_log_probs", "interest_top5_index", "interest_top5_log_probs"} <= fields
    without = copy_repo(tmp_path / "repo")
    assert score(fitted.model("popularity"), fitted.tables, tmp_path / "popularity")
    publish(tmp_path / "popularity", without)
    assert matrix_path(tmp_path / "popularity" / INTEREST_MATRIX_FILE) is None
    plain = {f.name for o in definitions(without) if getattr(o, "name", "") == "prior_popularity" for f in o.schema}
    assert plain
    assert not any(name.startswith("interest") for name in plain)


def test_the_ranker_finds_the_category_of_an_ad(repo: Path, priors: Path, tmp_path: Path) -> None:
    matrix = open_matrix(priors / INTEREST_MATRIX_FILE)[:]
    rows = np.asarray([5, -1, 2, 2, 0])
    asked = pd.Series(["Tea", "Tea", "Soap", "Unknown", None])
    found = gather_interests(repo / "data" / "prior_llm", rows, asked)
    assert found is not None
    expected = [matrix[5, OBSERVED.index("Tea")], np.nan, matrix[2, OBSERVED.index("Soap")], np.nan, np.nan]
    np.testing.assert_array_equal(found, np.asarray(expected, np.float32))
    assert gather_interests(tmp_path, rows, asked) is None


def test_a_broken_matrix_is_not_published(priors: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(priors, tmp_path / "priors")
    matrix = open_matrix(broken / INTEREST_MATRIX_FILE)[:]
    matrix[3] = 0.0
    np.save(broken / INTEREST_MATRIX_FILE, matrix)
    repo = copy_repo(tmp_path / "repo")
    with pytest.raises(AdvpriorError, match="PRI010"):
        publish(broken, repo)
    assert not (repo / "data" / "prior_llm").exists()
    assert json.loads((broken / INTERESTS_FILE).read_text())["version"]
