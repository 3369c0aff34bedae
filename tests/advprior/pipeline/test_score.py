"""Scoring survives a kill, refuses what does not fit, and publishes whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from advprior.history.catalog import Catalog
from advprior.history.histories import build_histories, micros
from advprior.pipeline.publish import publish, shuffled_rows
from advprior.pipeline.score_checks import check_past_only, check_written
from advprior.predictors.base import Scorer
from advprior.predictors.registry import load_predictor
from advprior.store.errors import AdvpriorError
from advprior.store.matrix import open_matrix
from advprior.store.runs import manifest_digest
from advprior.store.tables import load_tables
from tests.advprior.conftest import Fitted
from tests.advprior.scoring import score
from tests.parity import assert_same_log_probs
from tests.tiny import PLAN, write_tiny


@pytest.fixture(scope="module")
def priors(fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("priors") / "llm"
    assert score(fitted.model("llm"), fitted.tables, out, shard_users=7)
    return out


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    folder.mkdir()
    shutil.copy(Path(__file__).parents[3] / "feature_repo/feature_store.yaml", folder)
    return folder


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "advprior", *map(str, arguments)]


def test_one_row_for_each_user_and_snapshot(fitted: Fitted, priors: Path) -> None:
    rows, matrix = pd.read_parquet(priors / "rows.parquet"), open_matrix(priors / "log_probs.npy")[:]
    users = load_tables(fitted.tables, "users")["users"].user_id
    expected = {(u, pd.Timestamp(s)) for u in users for s in PLAN.snapshots()}
    assert len(rows) == len(matrix) == len(expected)
    assert set(zip(rows.user_id, rows.snapshot, strict=True)) == expected
    np.testing.assert_allclose(rows.entropy, -(np.exp(matrix) * matrix).sum(1), rtol=1e-4)
    assert (rows.top1_index == matrix.argmax(1)).all()
    assert not {"journal.jsonl", "scalars.npy"} & {p.name for p in priors.iterdir()}


def test_unchanged_is_reused_and_shards_do_not_matter(fitted: Fitted, priors: Path, tmp_path: Path) -> None:
    assert not score(fitted.model("llm"), fitted.tables, priors, shard_users=7)
    assert score(fitted.model("llm"), fitted.tables, tmp_path / "again", shard_users=100)
    ours, theirs = (open_matrix(folder / "log_probs.npy")[:] for folder in (tmp_path / "again", priors))
    assert_same_log_probs(ours, theirs)


def test_a_changed_catalog_is_refused(fitted: Fitted, tmp_path: Path) -> None:
    tables = write_tiny(tmp_path / "tables")
    advertisers = load_tables(tables, "advertisers")["advertisers"]
    advertisers.loc[0, "name"] = "Another name"
    advertisers.to_parquet(tables / "advertisers.parquet")
    call = command("score", fitted.model("llm"), "--tables", tables, "--out", tmp_path / "out")
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "PRI002" in done.stderr
    assert "1 renamed (a00)" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tables"]


def test_a_prior_that_knows_the_future_is_refused(fitted: Fitted, priors: Path) -> None:
    """A scorer that reads one more week than it may is caught; the honest one is not."""

    class Ahead(Scorer):
        provider = "CPU"

        def score(self, histories, users, cutoffs):
            return honest.score(histories, users, cutoffs + 7 * 86_400_000_000)

    loaded = load_tables(fitted.tables, "users", "advertisers", "events")
    histories = build_histories(loaded["users"], loaded["events"], Catalog.from_table(loaded["advertisers"]))
    cutoffs = np.asarray([micros(s) for s in PLAN.snapshots()], np.int64)
    honest = load_predictor(fitted.model("llm")).scorer(fitted.model("llm") / "onnx", "cpu")
    sample = check_past_only(honest, histories, cutoffs)
    assert sample.difference <= 1e-4
    assert check_written(sample, priors / "log_probs.npy") <= 1e-4
    with pytest.raises(AdvpriorError, match="PRI011"):
        check_past_only(Ahead(), histories, cutoffs)
    # what was written, one row further than it should be
    moved = priors.parent / "moved.npy"
    np.save(moved, np.roll(open_matrix(priors / "log_probs.npy")[:], 1, axis=0))
    with pytest.raises(AdvpriorError, match="PRI011"):
        check_written(sample, moved)


def test_an_export_is_asked_for(fitted: Fitted, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(fitted.model("popularity"), run, ignore=shutil.ignore_patterns("onnx"))
    with pytest.raises(AdvpriorError, match="advprior export"):
        score(run, fitted.tables, tmp_path / "out")


def test_published_priors_are_what_was_scored(priors: Path, repo: Path) -> None:
    assert publish(priors, repo) == "prior_llm"
    assert publish(priors, repo) is None
    table = pd.read_parquet(repo / "data/prior_llm/table.parquet")
    matrix, rows = open_matrix(priors / "log_probs.npy")[:], pd.read_parquet(priors / "rows.parquet")
    np.testing.assert_array_equal(np.stack(table.log_probs.to_list()), matrix)
    np.testing.assert_array_equal(open_matrix(repo / "data/prior_llm/log_probs.npy")[:], matrix)
    assert (table.event_timestamp - table.snapshot == PLAN.lag).all()
    assert (table.model_cutoff == pd.Timestamp(PLAN.finetune_end)).all()
    assert (table.user_id == rows.user_id).all()
    assert json.loads((repo / "data/prior_llm/catalog.json").read_text())["version"] == table.catalog_version[0]


def test_a_publication_shares_its_arrays_and_holds_vectors_where_it_is_served(priors: Path, repo: Path) -> None:
    """What is measured only is on disk once; put online, its rows stay what they are for whoever measured them."""
    assert publish(priors, repo, name="measured", online=False) == "prior_measured"
    folder = repo / "data/prior_measured"
    assert os.path.samefile(folder / "log_probs.parquet", priors / "log_probs.parquet")
    offline, before = pd.read_parquet(folder / "table.parquet"), manifest_digest(folder)
    assert offline.log_probs.isna().all()
    assert publish(priors, repo, name="measured", online=False) is None
    assert publish(priors, repo, name="measured") == "prior_measured"
    online = pd.read_parquet(folder / "table.parquet")
    np.testing.assert_array_equal(np.stack(online.log_probs.to_list()), open_matrix(priors / "log_probs.npy")[:])
    pd.testing.assert_frame_equal(online.drop(columns="log_probs"), offline.drop(columns="log_probs"))
    assert manifest_digest(folder) == before
    assert publish(priors, repo, name="measured", online=False) == "prior_measured"
    assert pd.read_parquet(folder / "table.parquet").log_probs.notna().all()
    assert publish(priors, repo, name="measured") == "prior_measured"
    assert manifest_digest(folder) == before


def test_a_placebo_is_another_users_prior_at_the_same_snapshot(priors: Path, repo: Path) -> None:
    assert publish(priors, repo, name="placebo", seed=3) == "prior_placebo"
    rows = pd.read_parquet(priors / "rows.parquet")
    source = shuffled_rows(rows, 3)
    assert (rows.snapshot.to_numpy()[source] == rows.snapshot.to_numpy()).all()
    assert (rows.user_id.to_numpy()[source] != rows.user_id.to_numpy()).all()
    assert sorted(source) == list(range(len(rows)))
    # one partner for all of a user's snapshots: as steady in time as the prior itself
    partners = pd.DataFrame({"user": rows.user_id, "other": rows.user_id.to_numpy()[source]})
    assert len(partners.drop_duplicates()) == rows.user_id.nunique()
    assert publish(priors, repo, name="placebo_pair", seed=3) == "prior_placebo_pair"
    table = pd.read_parquet(repo / "data/prior_placebo/table.parquet")
    named = pd.read_parquet(repo / "data/prior_placebo_pair/table.parquet")
    assert (named.top1_log_prob == table.top1_log_prob).all()
    np.testing.assert_array_equal(np.stack(table.log_probs.to_list()), open_matrix(priors / "log_probs.npy")[:][source])
    np.testing.assert_array_equal(table.prior_row, source)  # the same arrays, other rows of them
    assert (table.top1_index == rows.top1_index.to_numpy()[source]).all()


def test_before_they_exist_users_have_no_prior_and_lend_none_to_a_placebo(
    fitted: Fitted, repo: Path, tmp_path: Path
) -> None:
    """Half the users come in the middle of the plan, one comes after it, one is there from the start."""
    tables, snapshots = tmp_path / "tables", PLAN.snapshots()
    shutil.copytree(fitted.tables, tables)
    users = load_tables(tables, "users")["users"]
    middle = snapshots[len(snapshots) // 2]
    users["known_from"] = pd.Series([middle if i % 2 else None for i in range(len(users))], dtype="datetime64[us, UTC]")
    users.loc[3, "known_from"] = PLAN.end
    users.to_parquet(tables / "users.parquet")
    for folder, of_tables in (("all", fitted.tables), ("out", tables)):
        assert score(fitted.model("popularity"), of_tables, tmp_path / folder)
    rows, whole = (pd.read_parquet(tmp_path / folder / "rows.parquet") for folder in ("out", "all"))
    exists = whole.merge(users, on="user_id", how="left").known_from
    expected = whole[~(exists > whole.snapshot)]
    pd.testing.assert_frame_equal(rows, expected.reset_index(drop=True))
    assert publish(tmp_path / "out", repo, name="young") == "prior_young"
    table = pd.read_parquet(repo / "data/prior_young/table.parquet")
    assert table.prior_row.tolist() == rows.prior_row.tolist()
    published = open_matrix(repo / "data/prior_young/log_probs.npy")[table.prior_row.to_numpy()]
    np.testing.assert_array_equal(published, open_matrix(tmp_path / "all/log_probs.npy")[rows.prior_row.to_numpy()])
    source = rows.set_index("prior_row").loc[shuffled_rows(rows, 3)]
    assert (source.snapshot.to_numpy() == rows.snapshot.to_numpy()).all()
    assert (source.user_id.to_numpy() != rows.user_id.to_numpy()).all()
    assert sorted(source.index) == sorted(rows.prior_row)


@pytest.mark.parametrize("damage", ["sum", "nan", "doubled"])
def test_damaged_priors_are_refused_and_the_old_ones_stay(
    priors: Path, repo: Path, tmp_path: Path, damage: str
) -> None:
    publish(priors, repo)
    before = (repo / "data/prior_llm").resolve()
    broken = tmp_path / "broken"
    shutil.copytree(priors, broken)
    if damage == "doubled":
        rows = pd.read_parquet(broken / "rows.parquet")
        rows.loc[1, ["user_id", "snapshot"]] = rows.loc[0, ["user_id", "snapshot"]].to_numpy()
        rows.to_parquet(broken / "rows.parquet")
    else:
        matrix = open_matrix(broken / "log_probs.npy")[:]
        matrix[5, 0] = np.nan if damage == "nan" else matrix[5, 0] + 1.0
        np.save(broken / "log_probs.npy", matrix)
    with pytest.raises(AdvpriorError) as caught:
        publish(broken, repo, force=True)
    assert caught.value.code == "PRI010"
    assert (repo / "data/prior_llm").resolve() == before
    assert not list((repo / "data").glob(".staged*"))


def test_not_a_feature_repository(priors: Path, tmp_path: Path) -> None:
    with pytest.raises(AdvpriorError, match="STO001"):
        publish(priors, tmp_path)
    assert list(tmp_path.iterdir()) == []
