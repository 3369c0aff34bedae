"""`advprior init`: complete, idempotent, and never in the way of an edit."""

from __future__ import annotations

import os

import pytest
import yaml
from click.testing import CliRunner

from advprior.cli.init import init
from advprior.pipeline import project
from advprior.pipeline.project import RECORD, lay_out, shipped
from advprior.store.errors import AdvpriorError


def files(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_a_new_project_is_complete(tmp_path):
    done = lay_out(tmp_path / "mine")
    assert set(done.written) == set(shipped())
    assert files(tmp_path / "mine") == set(shipped()) | {RECORD}
    assert not list((tmp_path / "mine").rglob("__init__.py"))  # it would shadow the installed feature_repo
    for config in (tmp_path / "mine" / "configs").iterdir():
        assert yaml.safe_load(config.read_text()) is not None


def test_again_changes_nothing(tmp_path):
    lay_out(tmp_path)
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in files(tmp_path)}
    done = lay_out(tmp_path)
    assert set(done.unchanged) == set(shipped())
    assert [*done.written, *done.updated, *done.kept] == []
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in files(tmp_path)} == before


def test_an_edited_file_is_kept_and_named_a_deleted_one_comes_back(tmp_path):
    lay_out(tmp_path)
    edited = tmp_path / "feature_repo" / "feature_store.yaml"
    edited.write_text("project: ours\n")
    (tmp_path / "README.md").unlink()
    (tmp_path / "notes.txt").write_text("mine")
    shown = CliRunner().invoke(init, [str(tmp_path)])
    assert shown.exit_code == 0
    assert f"kept {edited}" in shown.output
    assert f"wrote {tmp_path / 'README.md'}" in shown.output
    assert edited.read_text() == "project: ours\n"
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_files_of_a_folder_that_was_there_are_the_users(tmp_path):
    (tmp_path / "README.md").write_text("our team's own")
    done = lay_out(tmp_path)
    assert done.kept == ["README.md"]
    assert (tmp_path / "README.md").read_text() == "our team's own"
    assert lay_out(tmp_path).kept == ["README.md"]


def test_an_unedited_copy_follows_a_newer_version(tmp_path, monkeypatch):
    lay_out(tmp_path)
    newer = {**shipped(), "configs/llm.yaml": b"layers: 12\n"}
    (tmp_path / "configs" / "arms.yaml").write_text("edited: true\n")
    newer["configs/arms.yaml"] = b"newer: true\n"
    monkeypatch.setattr(project, "shipped", lambda: newer)
    done = lay_out(tmp_path)
    assert done.updated == ["configs/llm.yaml"]
    assert done.kept == ["configs/arms.yaml"]
    assert (tmp_path / "configs" / "llm.yaml").read_bytes() == b"layers: 12\n"
    assert lay_out(tmp_path).updated == []


@pytest.mark.parametrize("broken", ["", "{", "[]"])
def test_a_broken_record_makes_every_file_the_users(tmp_path, broken, monkeypatch):
    lay_out(tmp_path)
    (tmp_path / RECORD).write_text(broken)
    names = set(shipped())
    monkeypatch.setattr(project, "shipped", lambda: dict.fromkeys(names, b"newer"))
    assert set(lay_out(tmp_path).kept) == names


def test_a_file_in_the_way_is_a_coded_error(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(AdvpriorError) as caught:
        lay_out(tmp_path / "taken")
    assert caught.value.code == "CFG010"
    with pytest.raises(AdvpriorError):
        lay_out(tmp_path / "taken" / "below")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_a_coded_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(AdvpriorError):
        lay_out(tmp_path / "below")
