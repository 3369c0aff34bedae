"""`advprior init`: complete, idempotent, and never in the way of an edit."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
import yaml
from click.testing import CliRunner

from advprior.cli import main
from advprior.cli.init import init
from advprior.pipeline import project
from advprior.pipeline.project import EXAMPLES, OLD_RECORD, PROJECT_FILE, RECORD, lay_out, shipped
from advprior.pipeline.settings import read_project
from advprior.store.errors import AdvpriorError
from ranking.frame.preflight import check_store


def files(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_a_new_project_is_complete(tmp_path):
    done = lay_out(tmp_path / "mine")
    assert set(done.written) == set(shipped())
    assert files(tmp_path / "mine") == set(shipped()) | {RECORD}
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
    monkeypatch.setattr(project, "shipped", lambda example: newer)
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
    monkeypatch.setattr(project, "shipped", lambda example: dict.fromkeys(names, b"newer"))
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


@pytest.mark.parametrize("example", [None, *EXAMPLES])
def test_the_project_file_of_a_new_project_is_valid_and_stays(tmp_path, example):
    lay_out(tmp_path, example)
    assert read_project(tmp_path).config.tables.example == example
    assert (tmp_path / "mapping.yaml").exists() == (example is None)
    assert len((tmp_path / PROJECT_FILE).read_text().splitlines()) < 40  # one screen
    assert set(lay_out(tmp_path).unchanged) == set(shipped(example or ""))  # again, without saying which


def test_a_project_of_an_earlier_version_is_brought_up_to_date(tmp_path, capsys):
    lay_out(tmp_path)
    old = {name: hashlib.sha256(b"old").hexdigest() for name in ("feature_repo/definitions.py", "configs/llm.yaml")}
    (tmp_path / OLD_RECORD).write_text(json.dumps(old))
    (tmp_path / RECORD).unlink()
    (tmp_path / PROJECT_FILE).unlink()
    for name in old:
        (tmp_path / name).write_text("old")
    with pytest.raises(AdvpriorError, match="CFG013") as caught:
        read_project(tmp_path)
    assert f"advprior init {tmp_path}" in str(caught.value)
    with pytest.raises(SystemExit):
        main(["data", "check", str(tmp_path)])
    assert capsys.readouterr().err.startswith("error CFG013")
    done = lay_out(tmp_path)
    assert set(done.updated) == set(old)
    assert done.written == [PROJECT_FILE]


def test_definitions_of_an_earlier_version_are_refused_with_what_to_run(tmp_path):
    lay_out(tmp_path)
    definitions = tmp_path / "feature_repo" / "definitions.py"
    definitions.write_text("from feature_repo.contract import USER_ID\n")
    with pytest.raises(AdvpriorError, match="STO023") as caught:
        check_store(tmp_path / "feature_repo")
    assert f"advprior init {tmp_path}" in str(caught.value)
