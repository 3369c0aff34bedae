"""What a finished project need not keep: scored priors that can be made again in seconds, once they are measured.

They go only where all of them take more than a limit, so that a small project can be looked into as a whole.

The frame holds what a ranker reads of them, so their arrays are looked at again only where a frame is made anew. Then
`advprior run` scores them first. A manifest lists what was removed beside what is there, so that nothing that was made
of it counts as stale; to a command that is to write the folder it counts as unfinished.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from advprior.pipeline.settings import ProjectConfig
from advprior.pipeline.steps import Plan, State, Step
from advprior.store.contract import INTEREST_MATRIX_FILE, MATRIX_FILE, TAIL_FILE, TOP_INDEX_FILE
from advprior.store.matrix import COMPRESSED
from advprior.store.runs import MANIFEST, REMOVED, read_manifest, write_json

#: Scoring that took more processor seconds is not for doing again.
COSTLY_S = 60.0
_ARRAYS = tuple(
    str(Path(name).with_suffix(COMPRESSED)) for name in (MATRIX_FILE, TOP_INDEX_FILE, TAIL_FILE, INTEREST_MATRIX_FILE)
)
#: Kinds of steps that look into the arrays of priors.
_READS_ARRAYS = ("publish", "rank frame", "first rank frame", "rank candidates", "rank two-by-two")


def remove_measured(folder: Path, config: ProjectConfig, plan: Plan) -> int:
    """Remove the arrays of priors that are measured, not served, as far as they take more than the project's setting.

    Those that cost the least to score again, for the room they take, go first; what took over `COSTLY_S` stays.

    Returns
    -------
    int
        Bytes that this gave back.
    """
    if config.disk.scores_mb is None:
        return 0
    scored = {
        step: _arrays_of(folder / step.output) for step in plan.steps if step.output and _is_measured(step, config)
    }
    over = sum(size for size, _ in scored.values()) - int(config.disk.scores_mb * 1e6)
    freed = 0
    for step, (size, spent) in sorted(scored.items(), key=lambda item: item[1][1] / max(item[1][0], 1)):
        if freed >= over or spent > COSTLY_S or not size:
            continue
        readers = [other.output for other in plan.steps if other.kind == "publish" and step.output in other.inputs]
        freed += _remove(folder / str(step.output))
        for output in filter(None, readers):
            link = folder / output
            for version in (link, *sorted((link.parent / ".versions").glob(f"{link.name}-*"))):
                _remove(version)
    return freed


def _is_measured(step: Step, config: ProjectConfig) -> bool:
    return step.kind.startswith("score") and Path(str(step.output)).name != config.served.name


def _arrays_of(folder: Path) -> tuple[int, float]:
    """Bytes of a score run's arrays, and the processor seconds that they took."""
    if not (folder / MANIFEST).is_file():
        return 0, 0.0
    manifest = read_manifest(folder)
    size = sum(facts["bytes"] for name, facts in manifest["outputs"].items() if name in _ARRAYS)
    return size, float(manifest.get("cpu_seconds", COSTLY_S + 1))


def _remove(folder: Path) -> int:
    """Take the arrays out of a finished folder, the manifest first; the bytes of their names that were there."""
    if not (folder / MANIFEST).is_file():
        return 0
    manifest = read_manifest(folder)
    outputs = dict(manifest["outputs"])
    gone = {name: outputs.pop(name) for name in _ARRAYS if name in outputs}
    if gone:
        write_json(folder / MANIFEST, {**manifest, "outputs": outputs, REMOVED: {**manifest.get(REMOVED, {}), **gone}})
    freed = 0
    for name in manifest.get(REMOVED, {}) | gone:
        if (folder / name).is_file():
            freed += (folder / name).stat().st_size
            (folder / name).unlink()
    return freed


def wanted_again(folder: Path, plan: Plan, states: Mapping[str, tuple[State, str]], steps: Iterable[Step]) -> set[str]:
    """Names of steps whose arrays were removed and are read by one of ``steps`` that is not current.

    Parameters
    ----------
    states : mapping of str to (state, why)
        Of every step (`advprior.pipeline.steps.states`).
    """
    every: set[str] = set()
    queue = [step for step in steps if step.kind in _READS_ARRAYS and states[step.name][0] != "current"]
    while queue:
        for other in plan.needs(queue.pop()):
            if other.name not in every and _is_removed(folder, other):
                every.add(other.name)
                queue.append(other)
    return every


def _is_removed(folder: Path, step: Step) -> bool:
    path = folder / str(step.output)
    return step.output is not None and (path / MANIFEST).is_file() and REMOVED in read_manifest(path)
