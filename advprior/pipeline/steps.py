"""One step of a project: a command as a user types it, what it reads and what it writes; and whether it is current.

Commands skip by themselves when nothing changed, at the cost of starting each. Here the same is known from a stamp, so
that a second run of fifty steps takes a second, and `advprior status` can say why a step is stale.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from advprior.store.runs import MANIFEST, digest, is_current, manifest_digest, sha256_file, write_json

State = Literal["current", "stale", "missing"]
HASHED_BYTES = 1 << 20  # larger files are known by size and time


@dataclass(frozen=True)
class Step:
    """One command of a project.

    Parameters
    ----------
    name : str
        Unique in the project: ``finetune llm``.
    command : tuple of str
        As typed in the project folder: ``advprior …`` or ``feast …``.
    inputs : tuple of str
        Run folders and files that it reads, relative to the project.
    output : str, optional
        Run folder that it writes; None for Feast's commands, which leave no manifest.
    after : tuple of str
        Names of steps that come first although it reads none of their folders.
    exists : tuple of str
        Files that must be there for it to count as done, where it has no output.
    kind : str
        What its cost depends on: a key of `forecast.COSTS`.
    """

    name: str
    command: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    output: str | None = None
    after: tuple[str, ...] = ()
    exists: tuple[str, ...] = ()
    kind: str = ""


@dataclass(frozen=True)
class Plan:
    """All steps of a project in order, and the small files that they read and that nobody writes by hand."""

    steps: tuple[Step, ...]
    files: Mapping[str, str] = field(default_factory=dict)

    def write_files(self, folder: Path, step: Step) -> None:
        """Write those files that a step reads into the project's folder."""
        for name in step.inputs:
            if name in self.files:
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(self.files[name])

    def needs(self, step: Step) -> list[Step]:
        """Steps whose output a step reads, or that it comes after."""
        return [
            other
            for other in self.steps
            if other.name != step.name
            and (other.name in step.after or (other.output is not None and other.output in step.inputs))
        ]

    def until(self, name: str) -> tuple[Step, ...]:
        """The named step and all that it needs, in order."""
        (last,) = (step for step in self.steps if step.name == name)
        wanted, queue = {last.name}, [last]
        while queue:
            for other in self.needs(queue.pop()):
                if other.name not in wanted:
                    wanted.add(other.name)
                    queue.append(other)
        return tuple(step for step in self.steps if step.name in wanted)


@dataclass(frozen=True)
class Cost:
    """What a step took when it last did its work."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    memory_mb: float = 0.0
    disk_mb: float = 0.0


class Stamps:
    """What each step read and wrote when it was last known to be current, and what it cost; one small JSON file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._stamps: dict[str, dict[str, Any]] = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            self._stamps = {}

    def of(self, step: Step) -> dict[str, Any] | None:
        """The stamp of a step."""
        return self._stamps.get(step.name)

    def cost(self, step: Step) -> Cost | None:
        """What a step cost, where that was ever measured."""
        stamp = self._stamps.get(step.name)
        return Cost(**stamp["cost"]) if stamp and "cost" in stamp else None

    def put(self, step: Step, stamp: Mapping[str, Any], cost: Cost) -> None:
        """Note a step as current."""
        self._stamps[step.name] = {**stamp, "cost": asdict(cost)}
        self._write()

    def forget(self, step: Step) -> None:
        """A step that starts is not current until it ends: what it writes may be half written. Its cost is kept."""
        stamp = self._stamps.pop(step.name, None)
        if stamp is not None:
            self._stamps[step.name] = {"cost": stamp["cost"]} if "cost" in stamp else {}
            self._write()

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._path, self._stamps)


@cache
def code_digest() -> str:
    """Digest of both packages' sources: another version may write other outputs, and its commands know whether."""
    package = Path(__file__).resolve().parents[1]
    sources = [path for folder in (package, package.parent / "ranking") for path in sorted(folder.rglob("*.py"))]
    whole = hashlib.sha256()
    for path in sources:
        whole.update(path.read_bytes())
    return whole.hexdigest()[:16]


def stamp_of(folder: Path, plan: Plan, step: Step) -> dict[str, Any]:
    """What a step reads and writes as it stands now."""
    return {
        "command": list(step.command),
        "inputs": {name: _input_digest(folder, plan, name) + _online(folder, step, name) for name in step.inputs},
        "output": _output_digest(folder, step),
        "code": code_digest(),
    }


def _input_digest(folder: Path, plan: Plan, name: str) -> str:
    if name in plan.files:
        return digest(plan.files[name])
    path = folder / name
    if (path / MANIFEST).is_file():
        return manifest_digest(path)
    if path.is_dir():  # a table of the user's in parts
        return digest({str(part.relative_to(path)): _file_digest(part) for part in path.rglob("*") if part.is_file()})
    return _file_digest(path) if path.is_file() else "absent"


def _file_digest(path: Path) -> str:
    facts = path.stat()
    return sha256_file(path) if facts.st_size <= HASHED_BYTES else f"{facts.st_size} bytes, {facts.st_mtime_ns}"


def _online(folder: Path, step: Step, name: str) -> str:
    """Feast's commands also go by whether a view is served, which is no part of what it holds."""
    path = folder / name / MANIFEST
    if step.command[0] != "feast" or not path.is_file():
        return ""
    return ", online" if json.loads(path.read_text())["facts"].get("online", True) else ", offline"


def _output_digest(folder: Path, step: Step) -> str:
    if step.output is None:
        return "done" if all((folder / name).exists() for name in step.exists) else "absent"
    out = folder / step.output
    try:
        key = json.loads((out / MANIFEST).read_text()).get("key")
    except (OSError, ValueError):
        return "absent"
    return manifest_digest(out) if is_current(out, key, whole=False) else "absent"


def state_of(folder: Path, plan: Plan, step: Step, stamps: Stamps) -> tuple[State, str]:
    """Whether a step is current, and why it is not. What comes before it is not looked at.

    Returns
    -------
    state : {"current", "stale", "missing"}
    why : str
        Empty for a current step.
    """
    now, then = stamp_of(folder, plan, step), stamps.of(step)
    if now["output"] == "absent":
        return "missing", "not made yet" if then is None else "its output is gone"
    if then is None or "inputs" not in then:
        return "stale", "made by hand, or its run was stopped; its command looks whether anything is to do"
    changed = [name for name, value in now["inputs"].items() if then["inputs"].get(name) != value]
    if changed:
        return "stale", f"changed: {', '.join(changed)}"
    if now["command"] != then["command"]:
        return "stale", "its options changed"
    if now["output"] != then["output"]:
        return "stale", "its output was made anew by hand"
    if now["code"] != then["code"]:
        return "stale", "another version of advprior"
    return "current", ""


def states(folder: Path, plan: Plan, stamps: Stamps) -> dict[str, tuple[State, str]]:
    """State of every step, and why; a step behind one that is not current is not current either."""
    result: dict[str, tuple[State, str]] = {}
    for step in plan.steps:
        state, why = state_of(folder, plan, step, stamps)
        before = [other.name for other in plan.needs(step) if result.get(other.name, ("current",))[0] != "current"]
        if before and state == "current":
            state, why = "stale", f"comes after {', '.join(before[:2])}{', …' if len(before) > 2 else ''}"
        result[step.name] = (state, why)
    return result
