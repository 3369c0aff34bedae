"""What a finished project need not keep: scored priors that can be made again in seconds, once they are measured.

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
    """Remove the arrays of priors that are measured, not served, as far as the project's setting says.

    Returns
    -------
    int
        Bytes that this gave back.
    """
    freed = 0
    for step in plan.steps:
        if not step.kind.startswith("score") or step.output is None or not _may_go(folder, config, step):
            continue
        readers = [other.output for other in plan.steps if other.kind == "publish" and step.output in other.inputs]
        freed += _remove(folder / step.output)
        for output in filter(None, readers):
            link = folder / output
            for version in (link, *sorted((link.parent / ".versions").glob(f"{link.name}-*"))):
                _remove(version)
    return freed


def _may_go(folder: Path, config: ProjectConfig, step: Step) -> bool:
    keep, path = config.disk.keep_scores, folder / str(step.output)
    if keep == "all" or path.name == config.served.name or not (path / MANIFEST).is_file():
        return False
    spent = read_manifest(path).get("cpu_seconds")
    return keep == "served" or (spent is not None and spent <= COSTLY_S)


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
