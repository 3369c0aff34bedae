"""What was shown to whom: one JSON line a request, appended so that an acknowledged one is never lost.

A line is written by one ``write`` straight to the kernel before the answer goes out, so a killed process loses nothing;
what a power cut may take is decided by the fsync policy. A write that fails, as on a full disk, leaves no half line
behind, and the caller is told, so that the answer can say that this exposure was not logged.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from advprior.store.errors import AdvpriorError

log = logging.getLogger("advprior.service")
Fsync = Literal["always", "interval", "never"]
MAX_BYTES = 64 * 1024 * 1024
#: Of a record. One without a number is of this format: it was written before there were numbers.
FORMAT = 1


class ExposureLog:
    """An append-only log of one process.

    Parameters
    ----------
    folder : Path
        Files are ``exposures-<started>-<pid>-<number>.jsonl``: no two processes share one.
    fsync : {'always', 'interval', 'never'}
        ``always``: before each answer. ``interval``: every ``every_s``, in the background. ``never``: left to the
        system.
    max_bytes : int
        A file is closed and the next begun when it is this long.
    """

    def __init__(self, folder: Path, *, fsync: Fsync = "interval", every_s: float = 1.0, max_bytes: int = MAX_BYTES):
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._fsync, self._every_s, self._max_bytes = fsync, every_s, max_bytes
        self._name = f"exposures-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}-{os.urandom(3).hex()}"
        self._number = 0
        self._handle: int | None = None
        self._size = 0
        self._unsynced = False
        self._lock = threading.Lock()
        self._closed = threading.Event()
        if fsync == "interval":
            threading.Thread(target=self._sync_on, name="advprior-fsync", daemon=True).start()

    def append(self, record: dict[str, Any]) -> None:
        """Write one record.

        Raises
        ------
        OSError
            Nothing of the record is in the log then.
        """
        line = (json.dumps(record, separators=(",", ":")) + "\n").encode()
        with self._lock:
            handle = self._open()
            try:
                written = os.write(handle, line)
                if written < len(line):  # the disk filled up in the middle
                    raise OSError(28, "only part of the line was written")
                if self._fsync == "always":
                    os.fsync(handle)
            except OSError:
                self._undo(handle)
                raise
            self._size += written
            self._unsynced = True

    def _sync_on(self) -> None:
        """Force what was written to the disk now and then, on a handle of its own: no append waits for it."""
        while not self._closed.wait(self._every_s):
            with self._lock:
                handle = os.dup(self._handle) if self._unsynced and self._handle is not None else None
                self._unsynced = False
            if handle is not None:
                try:
                    os.fsync(handle)
                except OSError:
                    log.exception("exposures cannot be forced to the disk")
                finally:
                    os.close(handle)

    def close(self) -> None:
        """Bring everything to the disk."""
        self._closed.set()
        with self._lock:
            if self._handle is not None:
                handle, self._handle = self._handle, None
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)

    def _open(self) -> int:
        if self._handle is not None and self._size >= self._max_bytes:
            os.fsync(self._handle)
            os.close(self._handle)
            self._handle, self._size = None, 0
            self._number += 1
        if self._handle is None:
            path = self._folder / f"{self._name}-{self._number:05d}.jsonl"
            self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
            self._size = os.fstat(self._handle).st_size
        return self._handle

    def _undo(self, handle: int) -> None:
        """Cut a half line off; if even that fails, go on in a new file, so that no later line is glued to it."""
        try:
            os.ftruncate(handle, self._size)
        except OSError:
            os.close(handle)
            self._handle, self._size = None, 0
            self._number += 1


def read_exposures(folder: Path) -> Iterator[dict[str, Any]]:
    """All records of a folder's files, in no particular order between files; a last line cut short is left out.

    Raises
    ------
    AdvpriorError
        ``SRV022`` for a record in a format that this version does not read: a readout without it would be wrong.
    """
    for path in sorted(Path(folder).glob("exposures-*.jsonl")):
        with path.open("rb") as handle:
            for line in handle:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if not isinstance(record, dict):
                    continue
                if record.get("format", FORMAT) != FORMAT:
                    raise AdvpriorError(
                        "SRV022",
                        "exposures were logged by another version, in a format that this one does not read",
                        where=str(path),
                        actual=f"format {record['format']}",
                        expected=f"format {FORMAT}",
                        fix="read them with the version that wrote them",
                    )
                yield record
