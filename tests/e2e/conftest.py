"""One whole chain for all end-to-end tests: three commands on a user's own tables, with a tiny random LLM."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.shop import mapping, project_yaml, write_shop
from tests.tiny_llm import write_tiny_llm


@dataclass
class Chain:
    """A finished project over the shop's tables."""

    folder: Path
    checked: str
    ran: str

    @property
    def repo(self) -> Path:
        return self.folder / "feature_repo"


def advprior(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """An `advprior` command as a user types it in a folder of theirs."""
    command = [sys.executable, "-m", "advprior", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    root = tmp_path_factory.mktemp("chain")
    write_shop(root / "raw")
    base = write_tiny_llm(root / "base")
    folder = root / "project"
    made = advprior("init", "project", cwd=root)
    assert made.returncode == 0, made.stderr
    (folder / "mapping.yaml").write_text(mapping("../raw"))
    (folder / "advprior.yaml").write_text(project_yaml(base))
    # packages of the user's own that bear the names of ours: neither commands nor Feast may take them for ours
    for name in ("feature_repo", "ranking"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "__init__.py").write_text("")
    checked = advprior("data", "check", cwd=folder)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    ran = advprior("run", cwd=folder)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return Chain(folder, checked.stdout, ran.stdout)
