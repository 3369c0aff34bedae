"""A project is found upward from a command's paths, then from the working folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from advprior.store.errors import AdvpriorError
from advprior.store.project_files import PROJECT_FILE, arms_block, project_folder


@pytest.fixture
def two_projects(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "below" / "deep").mkdir(parents=True)
        (tmp_path / name / PROJECT_FILE).write_text("tables: {folder: tables}\n")
    (tmp_path / "none").mkdir()
    return tmp_path


def test_paths_come_before_the_working_folder_and_upward_is_looked(two_projects, monkeypatch):
    monkeypatch.chdir(two_projects / "none")
    assert project_folder() is None
    assert project_folder(None, Path("x")) is None
    assert project_folder(two_projects / "one" / "below" / "not made yet") == two_projects / "one"
    monkeypatch.chdir(two_projects / "two" / "below" / "deep")
    assert project_folder() == two_projects / "two"
    assert project_folder(two_projects / "none", two_projects / "one" / "below") == two_projects / "one"
    monkeypatch.chdir(two_projects / "two")
    assert project_folder(Path("below")) == Path()
    monkeypatch.chdir(two_projects)
    assert project_folder(Path("two/below")) == Path("two")


@pytest.mark.parametrize(
    ("text", "block"),
    [("arms: mine.yaml", {"file": "mine.yaml"}), ("arms: {seeds: 3}", {"seeds": 3}), ("", {}), ("arms: 3", {})],
)
def test_the_arms_block_is_read_in_both_forms(tmp_path, text, block):
    (tmp_path / PROJECT_FILE).write_text(text)
    assert arms_block(tmp_path) == block


@pytest.mark.parametrize("text", ["- a list", "tables: ["])
def test_a_project_file_that_cannot_be_read_is_a_coded_error(tmp_path, text):
    (tmp_path / PROJECT_FILE).write_text(text)
    with pytest.raises(AdvpriorError, match="CFG001"):
        arms_block(tmp_path)
