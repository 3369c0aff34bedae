"""Folders of killed processes go with the next one; those of living ones, and of other kinds, stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from advprior.store.scratch import remove_abandoned, scratch, scratch_folder

CHILD = "from advprior.store.scratch import scratch_folder; print(scratch_folder('t'), flush=True); input()"


def child() -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_only_what_a_killed_process_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "advprior-t-new").mkdir()  # its owner is about to lock it
    (tmp_path / "advprior-t-old").mkdir()  # an earlier version's
    os.utime(tmp_path / "advprior-t-old", (0, 0))
    (tmp_path / "advprior-other-x").mkdir()
    os.utime(tmp_path / "advprior-other-x", (0, 0))
    killed, left = child()
    alive, used = child()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    with scratch("t") as own:
        assert not left.exists()
        assert used.is_dir()
        assert remove_abandoned("t") == 0
        assert {path.name for path in tmp_path.iterdir()} == {"advprior-t-new", "advprior-other-x", own.name, used.name}
    assert not own.exists()
    alive.communicate("\n")
    assert not used.exists(), "it tidied up itself"
    assert scratch_folder("t").is_dir()
