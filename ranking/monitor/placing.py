"""A ranker's place: swapped by one rename, taken back by another, and every decision written down.

``ranker`` becomes a link to a version beside it; whoever reads it sees the old one whole or the new one whole. Refusals
are written as well: a log that has promotions only cannot say what was tried.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from advprior.store.errors import AdvpriorError
from advprior.store.runs import MANIFEST, manifest_digest, read_manifest
from ranking.monitor.promotion import Decision

VERSIONS = ".versions"
LOG_FILE = "promotions.jsonl"
_KEEP = 3


def put_in_place(candidate: Path, place: Path) -> Path:
    """Copy a ranker beside its place and make it the current one; the version that it became.

    Parameters
    ----------
    candidate : Path
        A finished ``rank train`` run; it stays where it is.
    place : Path
        What the service is given as ``--ranker``.
    """
    folder = _versions(place)
    if place.is_dir() and not place.is_symlink():
        _adopt(place, folder)
    target = folder / _name(place, candidate)
    if not (target / MANIFEST).is_file():
        staged = folder / f".{target.name}.partial"
        shutil.rmtree(staged, ignore_errors=True)
        shutil.copytree(candidate, staged, symlinks=False)
        os.rename(staged, target)
    os.utime(target)
    _point(place, target)
    newest = sorted(folder.glob(f"{place.name}-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in newest[_KEEP:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def take_back(place: Path) -> tuple[str, str]:
    """Make the version before the current one current again; digests of the one that goes and of the one that serves.

    Raises
    ------
    AdvpriorError
        ``SRV007`` when there is none.
    """
    folder, current = _versions(place), place.resolve()
    others = [p for p in folder.glob(f"{place.name}-*") if p.resolve() != current and (p / MANIFEST).is_file()]
    before = max(others, key=lambda path: path.stat().st_mtime, default=None)
    if before is None or not place.is_symlink():
        raise AdvpriorError(
            "SRV007",
            "there is nothing to go back to",
            where=str(place),
            actual="no earlier version beside it" if place.is_symlink() else "it was never promoted",
            expected=f"an earlier ranker in {folder}",
            fix="advprior rank train --frame FRAME --service SERVICE --out CANDIDATE, then rank promote",
        )
    gone = manifest_digest(place)
    _point(place, before)
    os.utime(current, (0, 0))  # taken back twice, it is the one before that
    return gone, manifest_digest(place)


def log_line(place: Path, what: str, about: dict[str, Any]) -> None:
    """Append one line to the audit log beside a ranker's place, forced to the disk."""
    record = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "what": what,
        "place": place.name,
        "by": _user(),
        **about,
    }
    with (place.parent / LOG_FILE).open("a") as handle:
        handle.write(json.dumps(record, sort_keys=True) + "\n")
        handle.flush()
        os.fsync(handle.fileno())


def log_decision(place: Path, candidate: Path, decision: Decision) -> None:
    """Write a promotion or a refusal down."""
    about = {"folder": str(candidate), **{key: value for key, value in asdict(decision).items() if key != "promoted"}}
    log_line(place, "promoted" if decision.promoted else "refused", about)


def _versions(place: Path) -> Path:
    folder = place.parent / VERSIONS
    folder.mkdir(exist_ok=True)
    return folder


def _name(place: Path, run: Path) -> str:
    return f"{place.name}-{manifest_digest(run)}"


def _adopt(place: Path, folder: Path) -> None:
    """A place that is a folder of its own becomes a version, and a link to it."""
    read_manifest(place, step="rank train")
    target = folder / _name(place, place)
    if not target.exists():
        staged = folder / f".{target.name}.partial"
        shutil.rmtree(staged, ignore_errors=True)
        shutil.copytree(place, staged)
        os.rename(staged, target)
    link = _link(place, target)
    aside = place.with_name(f".{place.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(place, aside)  # between these two, a service that looks keeps the ranker that it holds
    os.rename(link, place)
    shutil.rmtree(aside, ignore_errors=True)


def _point(place: Path, target: Path) -> None:
    os.replace(_link(place, target), place)


def _link(place: Path, target: Path) -> Path:
    beside = place.with_name(f".{place.name}.{os.getpid()}.link")
    beside.unlink(missing_ok=True)
    beside.symlink_to(Path(VERSIONS) / target.name)
    return beside


def _user() -> str:
    with suppress(Exception):
        return getpass.getuser()
    return "unknown"
