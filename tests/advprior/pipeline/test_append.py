"""Appending to what is published: as if all had been published at once, and nothing that was published changes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from advprior.cli import main
from advprior.pipeline.append import append
from advprior.pipeline.publish import publish
from advprior.store.errors import AdvpriorError
from advprior.store.matrix import open_matrix
from advprior.store.runs import read_manifest
from tests.advprior.conftest import Fitted
from tests.advprior.scoring import score
from tests.tiny import PLAN, WEEK, write_tiny

KEYS = ["user_id", "snapshot"]


@dataclasses.dataclass
class Scored:
    folder: Path

    def __getitem__(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="module")
def scored(fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """Priors of the plan's first weeks, of the last four, of all, and all as top-K."""
    folder, model = tmp_path_factory.mktemp("append"), fitted.model("popularity")
    early = write_tiny(folder / "tables", dataclasses.replace(PLAN, end=PLAN.end - 4 * WEEK))
    score(model, early, folder / "early")
    score(model, fitted.tables, folder / "late", since=folder / "early")
    score(model, fitted.tables, folder / "whole")
    score(model, fitted.tables, folder / "top", top_k=4)
    return Scored(folder)


@pytest.fixture
def repo(tmp_path: Path, scored: Scored) -> Path:
    """The first weeks are published."""
    folder = tmp_path / "repo"
    folder.mkdir()
    shutil.copy(Path(__file__).parents[3] / "feature_repo/feature_store.yaml", folder)
    publish(scored["early"], folder)
    return folder


def published(repo: Path) -> pd.DataFrame:
    """Table by user and snapshot; each row's pointer leads to its own vector."""
    folder = repo / "data/prior_popularity"
    table = pd.read_parquet(folder / "table.parquet")
    matrix = open_matrix(folder / "log_probs.npy")[:]
    assert sorted(table.prior_row) == list(range(len(matrix)))
    np.testing.assert_array_equal(np.stack(table.log_probs.to_list()), matrix[table.prior_row])
    return table.drop(columns="prior_row").sort_values(KEYS, ignore_index=True)


def test_appended_is_as_published_at_once(scored: Scored, repo: Path, tmp_path: Path) -> None:
    done = append(scored["late"], repo)
    assert done is not None
    assert (done.added, done.dropped, done.snapshots) == (4, 0, len(PLAN.snapshots()))
    both = published(repo)
    whole = tmp_path / "whole"
    shutil.copytree(repo, whole, symlinks=True)
    publish(scored["whole"], whole)
    pd.testing.assert_frame_equal(both, published(whole))
    facts = read_manifest(repo / "data/prior_popularity", step="publish")["facts"]
    assert facts["rows"] == len(both)
    assert facts["last_snapshot"] == PLAN.snapshots()[-1].isoformat()
    assert len(facts["appended"]) == 2


def test_a_published_snapshot_never_changes(scored: Scored, repo: Path, tmp_path: Path) -> None:
    append(scored["late"], repo)
    before, current = published(repo), (repo / "data/prior_popularity").resolve()
    again = tmp_path / "again"
    shutil.copytree(scored["whole"], again)
    matrix = open_matrix(again / "log_probs.npy")[:]
    np.save(again / "log_probs.npy", np.roll(matrix, 1, axis=1))  # what another model, or late rows, would say
    manifest = json.loads((again / "manifest.json").read_text())
    (again / "manifest.json").write_text(json.dumps(manifest | {"key": "another"}))
    for run in (scored["late"], again, scored["early"]):
        assert append(run, repo) is None
    assert (repo / "data/prior_popularity").resolve() == current
    pd.testing.assert_frame_equal(before, published(repo))


def test_old_snapshots_go_and_the_publication_holds_no_more_than_it_says(scored: Scored, repo: Path) -> None:
    command = ["publish", str(scored["late"]), "--repo", str(repo), "--append", "--keep-snapshots", "6"]
    for _ in range(2):
        with pytest.raises(SystemExit) as caught:
            main(command)
        assert caught.value.code == 0
        table = published(repo)
        assert sorted(table.snapshot.unique()) == PLAN.snapshots()[-6:]
        assert len(open_matrix(repo / "data/prior_popularity/log_probs.npy")[:]) == len(table)


def test_what_has_another_catalog_or_form_is_refused_and_the_old_one_stays(
    scored: Scored, repo: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(scored["late"], other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["facts"]["catalog_version"] = "another"
    (other / "manifest.json").write_text(json.dumps(manifest))
    current = (repo / "data/prior_popularity").resolve()
    for run in (other, scored["top"]):
        with pytest.raises(AdvpriorError, match="PRI026"):
            append(run, repo)
    assert (repo / "data/prior_popularity").resolve() == current
    assert not list((repo / "data").glob(".staged*"))


@pytest.mark.parametrize("name", ["table.parquet", "log_probs.parquet", "catalog.json"])
def test_nothing_is_appended_to_what_was_damaged(name: str, repo: Path, scored: Scored) -> None:
    """A failing disk changes bytes and no size: copied on, the damage would be served for ever."""
    path = repo / "data/prior_popularity" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.unlink()  # else what was scored would be damaged with it
    path.write_bytes(content)
    before = path.resolve()
    with pytest.raises(AdvpriorError, match="RUN018") as caught:
        append(scored["late"], repo)
    assert name in str(caught.value)
    assert "rank rollback" in str(caught.value.fix)
    assert path.resolve() == before


def test_what_is_said_of_the_parts_does_not_grow(repo: Path, scored: Scored) -> None:
    """Of each model and run as long as one of its snapshots is published."""
    assert append(scored["late"], repo, keep=2) is not None
    parts = read_manifest(repo / "data/prior_popularity")["facts"]["appended"]
    assert [part["from"] for part in parts] == ["late"]
