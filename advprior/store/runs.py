"""Run folders: written beside, renamed into place, manifest last; reused when nothing changed.

Every step writes one folder with a ``manifest.json`` that says what made it: step, configuration,
digests of its inputs and outputs, versions, time and memory. A folder without a manifest is
unfinished and never read. A step whose key (step, version, config, inputs) is unchanged is reused.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from advprior.store.errors import AdvpriorError
from advprior.store.spent import Stopwatch, peak_memory_mb
from advprior.store.versions import libraries_of, versions

MANIFEST = "manifest.json"
#: Of run folders and publications. One without a number is of this format: it was written before there were numbers.
#: 2: arrays of priors are compressed, and a publication's are those of its score run.
FORMAT = 2
READ_FORMATS = (1, 2)
#: In a manifest: outputs that were removed since, and can be made again (`advprior.pipeline.retention`).
REMOVED = "removed"


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hex.

    Raises
    ------
    FileNotFoundError
    AdvpriorError
        ``DAT002`` for what cannot be read whole: a device, a pipe, a file without permission.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "no regular file")
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise AdvpriorError(
            "DAT002",
            "a file cannot be read",
            where=str(path),
            actual=error.strerror or str(error),
            expected="a regular file that you may read",
            fix="name another file, or change its permissions",
        ) from error


def digest(value: Any) -> str:
    """Short stable digest of anything JSON can hold.

    >>> digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_json(path: Path, value: Any) -> None:
    """Write JSON beside ``path``, then rename: readers see the old file or the new, never half."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beside.write_text(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")
    os.replace(beside, path)


def read_manifest(folder: Path, *, step: str | None = None, fix: str | None = None) -> dict[str, Any]:
    """Manifest of a finished run folder.

    Raises
    ------
    AdvpriorError
        ``RUN001`` when there is none, ``RUN002`` when it is not JSON, ``RUN003`` when another step wrote it, ``RUN006``
        when a newer version did.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise AdvpriorError(
            "RUN001",
            "not a finished run folder",
            where=str(folder),
            actual="no manifest.json" if Path(folder).is_dir() else "no such folder",
            expected=f"the output of `{step}`" if step else "a folder with a manifest.json",
            fix=fix,
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise AdvpriorError(
            "RUN002", "the manifest cannot be read", where=str(path), actual=str(error), fix=fix
        ) from error
    if manifest.get("format", 1) not in READ_FORMATS:
        raise AdvpriorError(
            "RUN006",
            "the folder was written by another version, in a format that this one does not read",
            where=str(path),
            actual=f"format {manifest['format']}, by advprior {manifest.get('versions', {}).get('advprior', '?')}",
            expected=f"format {' or '.join(map(str, READ_FORMATS))}",
            fix="use that version, or make the folder again with this one",
        )
    if step is not None and manifest.get("step") != step:
        raise AdvpriorError(
            "RUN003",
            "the folder holds another step's output",
            where=str(folder),
            actual=str(manifest.get("step")),
            expected=step,
            fix=fix,
        )
    return manifest


def manifest_digest(folder: Path) -> str:
    """What a later step records as its input: the digest of a run folder's own key and outputs.

    Or that of the folder that it took the place of, where it says that it holds the same.
    """
    manifest = read_manifest(folder)
    if "same_as" in manifest:
        return str(manifest["same_as"])
    outputs: dict[str, Any] | None = manifest.get("outputs")
    if REMOVED in manifest:
        outputs = {**(outputs or {}), **manifest[REMOVED]}
    return digest({"key": manifest.get("key"), "outputs": outputs})


def require_unchanged(folder: Path, *, fix: str | None = None) -> None:
    """Hold a finished run folder's files to the digests in its manifest, before something is built on them.

    Raises
    ------
    AdvpriorError
        ``RUN018`` when a file is missing or its bytes are others, as on a failing disk.
    """
    folder = Path(folder)
    for name, facts in read_manifest(folder)["outputs"].items():
        path = folder / name
        if path.is_file() and path.stat().st_size == facts["bytes"] and sha256_file(path) == facts["sha256"]:
            continue
        raise AdvpriorError(
            "RUN018",
            "a file is not what was written",
            where=str(path),
            actual=f"{path.stat().st_size:,} bytes with another digest" if path.is_file() else "no such file",
            expected=f"{facts['bytes']:,} bytes, SHA-256 {facts['sha256'][:16]}…, as {MANIFEST} says",
            fix=fix,
        )


@dataclass(frozen=True)
class Origin:
    """What made a run folder.

    Parameters
    ----------
    step : str
        Name of the step.
    config : any JSON value
        Its settings.
    inputs : mapping of str to str
        Digest of each input by name.
    key : str
        See `run_key`.
    """

    step: str
    config: Any
    inputs: Mapping[str, str]
    key: str


@dataclass
class Run:
    """A run in progress: write into `path`; put facts worth keeping into `facts`."""

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)


def run_key(step: str, config: Any, inputs: Mapping[str, str], code_version: int = 1) -> str:
    """The identity of a run: same key, same output.

    Of a step that a library decides it holds that library's version too: an upgrade makes such a run stale.
    """
    identity = {"step": step, "config": config, "inputs": dict(inputs), "code": code_version}
    libraries = libraries_of(step)
    return digest({**identity, "libraries": libraries} if libraries else identity)


def is_current(out: Path, key: str, *, whole: bool = True) -> bool:
    """Whether ``out`` is a finished run with this key and its outputs still have their sizes.

    With ``whole=False`` also where some of them were removed on purpose.
    """
    path = Path(out) / MANIFEST
    if not path.is_file():
        return False
    try:
        manifest = json.loads(path.read_text())
    except ValueError:
        return False
    if manifest.get("key") != key or (whole and REMOVED in manifest):
        return False
    return all(
        (Path(out) / name).is_file() and (Path(out) / name).stat().st_size == facts["bytes"]
        for name, facts in manifest.get("outputs", {}).items()
    )


@contextmanager
def new_run(
    out: Path,
    step: str,
    *,
    config: Any,
    inputs: Mapping[str, str],
    key: str,
    resume: bool = False,
) -> Iterator[Run]:
    """Write a run folder so that it is either whole or absent.

    Work happens in ``.<name>.partial`` beside ``out``; on success the manifest is written last and the
    folder renamed over the old one. On an error or an interrupt the old output stays. With ``resume``
    a partial folder of the same key is kept and handed back, for steps that can go on.

    Raises
    ------
    AdvpriorError
        ``RUN004`` when ``out`` holds something that no run wrote: it would be deleted; ``RUN005`` when another
        process is writing there.
    """
    out = Path(out)
    if out.exists() and not (out / MANIFEST).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise AdvpriorError(
            "RUN004",
            "the output would replace something that no run wrote",
            where=str(out),
            actual=", ".join(sorted(p.name for p in out.iterdir())[:5]) if out.is_dir() else "a file",
            expected="a new or empty folder, or an earlier run's",
            fix="choose another --out",
        )
    partial = out.with_name(f".{out.name}.partial")
    key_file = partial / ".key"
    lock = _lock(partial, out)
    if not (resume and key_file.is_file() and key_file.read_text() == key):
        _empty(partial)  # and not the folder itself: it is what is locked
    key_file.write_text(key)
    stopwatch = Stopwatch()
    run = Run(partial)
    try:
        yield run
    except BaseException:
        if not resume:
            shutil.rmtree(partial, ignore_errors=True)
        os.close(lock)
        raise
    key_file.unlink()
    write_manifest(partial, Origin(step, config, inputs, key), run.facts, stopwatch)
    replace_folder(partial, out)
    os.close(lock)


def _lock(partial: Path, out: Path) -> int:
    """Make the folder that is written, and keep other processes from it: a descriptor, to be closed.

    It ends with the process. A lock is of the folder, not of its path: one that was moved away between the two calls
    is none, and the next is tried.
    """
    while True:
        partial.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(partial, os.O_RDONLY)
        except FileNotFoundError:  # another process has just ended with it
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise AdvpriorError(
                "RUN005",
                "another process is writing this folder",
                where=str(out),
                actual=f"{partial} is in use",
                expected="one at a time",
                fix="wait until it has ended, or stop it, and run the same command again",
            ) from None
        except OSError:  # a file system without locks: as good as it can be
            return lock
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.stat(partial)):
                return lock
        os.close(lock)


def _empty(folder: Path) -> None:
    """Remove what lies in a folder."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_manifest(folder: Path, origin: Origin, facts: Mapping[str, Any], stopwatch: Stopwatch) -> None:
    """Say what made ``folder``, and what lies in it: the last file to be written there."""
    outputs = {
        str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": sha256_file(p)}
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
    write_json(
        folder / MANIFEST,
        {
            "format": FORMAT,
            "step": origin.step,
            "key": origin.key,
            "config": origin.config,
            "inputs": dict(origin.inputs),
            "outputs": outputs,
            "facts": dict(facts),
            "versions": versions(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            **stopwatch.spent(),
            "peak_memory_mb": round(peak_memory_mb(), 1),
        },
    )


def replace_folder(new: Path, out: Path) -> None:
    """Put ``new`` in the place of ``out`` (two renames; an interrupted swap leaves one of them whole)."""
    old = out.with_name(f".{out.name}.old")
    _remove(old)
    if out.exists():
        os.rename(out, old)
    os.rename(new, out)
    _remove(old)


def _remove(path: Path) -> None:
    """A folder, or the link that stood for one; nothing where there is none."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def publish_version(folder: Path, link: Path, *, keep: int = 2) -> None:
    """Make ``folder`` the current version behind ``link`` with one atomic rename of a symbolic link.

    ``folder`` moves to ``<parent>/.versions/<link>-<manifest digest>``; readers of ``link`` see the old
    version whole or the new one whole. The newest ``keep`` versions stay, for a rollback; of the same content one, and
    the link has moved before the other goes.
    """
    link = Path(link)
    versions_dir = link.parent / ".versions"
    versions_dir.mkdir(parents=True, exist_ok=True)
    name = f"{link.name}-{manifest_digest(folder)}"
    same = [path for path in versions_dir.glob(f"{name}*") if path.name.partition(".")[0] == name]
    names = (name, *(f"{name}.{number}" for number in range(1, len(same) + 1)))
    target = next(path for path in map(versions_dir.joinpath, names) if path not in same)
    os.rename(folder, target)
    os.utime(target)
    beside = link.with_name(f".{link.name}.{os.getpid()}.link")
    beside.unlink(missing_ok=True)
    beside.symlink_to(Path(".versions") / target.name)
    if link.exists() and not link.is_symlink():
        shutil.rmtree(link)
    os.replace(beside, link)
    newest_first = sorted(versions_dir.glob(f"{link.name}-*"), key=lambda p: p.stat().st_mtime, reverse=True)
    stale = [path for path in newest_first if path not in same and path != target][keep - 1 :]
    for path in (*same, *stale):
        shutil.rmtree(path, ignore_errors=True)
