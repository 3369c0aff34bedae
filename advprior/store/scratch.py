"""Folders for what a process needs while it runs, which the next one removes where it was killed.

Each is locked for as long as its process lives, whatever its number is and whichever container it runs in: who can
take the lock may remove the folder.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OWNER = ".owner"  # the file that is locked
_PREFIX = "advprior-"
#: A folder without a lock is an earlier version's, or its owner is about to make one.
_UNLOCKED_S = 2 * 86_400.0
_locks: dict[Path, int] = {}


def scratch_folder(kind: str) -> Path:
    """A new folder below the system's temporary one, gone when the process ends; those of killed ones go now.

    Parameters
    ----------
    kind : str
        A word of what it is for: part of its name.
    """
    remove_abandoned(kind)
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{kind}-"))
    lock = os.open(folder / _OWNER, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    _locks[folder] = lock
    atexit.register(let_go, folder, os.getpid())
    return folder


def let_go(folder: Path, owner: int | None = None) -> None:
    """Remove a folder of this process; a fork of its owner leaves it alone."""
    if owner is not None and owner != os.getpid():
        return
    lock = _locks.pop(folder, None)
    shutil.rmtree(folder, ignore_errors=True)
    if lock is not None:
        os.close(lock)


@contextmanager
def scratch(kind: str) -> Iterator[Path]:
    """`scratch_folder` that goes at the end of the block.

    >>> with scratch("example") as folder:
    ...     _ = (folder / "a").write_text("b")
    >>> folder.exists()
    False
    """
    folder = scratch_folder(kind)
    try:
        yield folder
    finally:
        let_go(folder)


def remove_abandoned(kind: str) -> int:
    """Remove folders of a kind whose processes ended without doing so; how many. Those of other users stay."""
    removed = 0
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}{kind}-*"):
        try:
            facts = folder.lstat()
            if facts.st_uid != os.getuid() or not folder.is_dir() or folder.is_symlink() or folder in _locks:
                continue
            if _is_abandoned(folder, facts.st_mtime):
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
        except OSError:  # gone meanwhile
            continue
    return removed


def _is_abandoned(folder: Path, changed: float) -> bool:
    try:
        lock = os.open(folder / _OWNER, os.O_RDWR)
    except FileNotFoundError:
        return time.time() - changed > _UNLOCKED_S
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True
