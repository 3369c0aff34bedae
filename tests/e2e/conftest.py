"""One whole chain for all end-to-end tests: three commands on a user's own tables, with a tiny random LLM.

Its steps are commands as `advprior run` starts them, in forks of one process that has imported what they share
(`tests.preloaded`): started anew, thirty of them import for two thirds of their processor time.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.shop import mapping, project_yaml, write_shop
from tests.preloaded import MODULES, PYTHON, TRAINING, preloaded, write_command, write_python
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
    with preloaded(root, (*MODULES, *TRAINING), options=()) as server:
        write_command(root / "advprior", "advprior", server)
        write_python(root / "python", server)
        environment = {**os.environ, PYTHON: str(root / "python")}

        def typed(*words: str, cwd: Path = folder) -> str:
            done = subprocess.run(
                [root / "advprior", *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        typed("init", "project", cwd=root)
        (folder / "mapping.yaml").write_text(mapping("../raw"))
        (folder / "advprior.yaml").write_text(project_yaml(base))
        # packages of the user's own that bear the names of ours: neither commands nor Feast may take them for ours
        for name in ("feature_repo", "ranking"):
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "__init__.py").write_text("")
        return Chain(folder, typed("data", "check"), typed("run"))
