"""Arrays on disk that are written row by row, in any order, and go on after a kill.

Every row has its place in the file before anything is written, so a shard that is written twice is written to
the same place: nothing can be doubled, and what the journal does not name is written again. Plain writes, no
memory map: a mapped file counts towards the memory of whoever writes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from advprior.store.arrays import Int
from advprior.store.matrix import MatrixWriter

JOURNAL = "journal.jsonl"


class RowFile:
    """One ``.npy`` file of fixed shape [rows, …].

    Parameters
    ----------
    path : Path
    shape : tuple of int
    dtype : numpy dtype

    Attributes
    ----------
    path : Path
    shape : tuple of int
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self._width = int(np.prod(shape[1:], dtype=np.int64)) * self._dtype.itemsize
        self.path, self.shape = path, shape
        if not path.is_file():
            with path.open("wb") as handle:
                description = np.lib.format.dtype_to_descr(self._dtype)
                np.lib.format.write_array_header_1_0(
                    handle, {"descr": description, "fortran_order": False, "shape": shape}
                )
                # full length at once, without a byte of it written
                handle.truncate(handle.tell() + shape[0] * self._width)
        self._start = path.stat().st_size - shape[0] * self._width
        self._file = os.open(path, os.O_RDWR)

    def write(self, rows: Int, values: npt.NDArray[Any]) -> None:
        """Put ``values`` [n, …] at ``rows`` [n]; neighbours in one write."""
        values = np.ascontiguousarray(values, self._dtype)
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        for start, stop in zip([0, *breaks], [*breaks, len(rows)], strict=True):
            if stop > start:
                _write_all(self._file, values[start:stop], self._start + int(rows[start]) * self._width)

    def blocks(self, size: int) -> Iterator[npt.NDArray[Any]]:
        """All rows in order, ``size`` at a time."""
        for start in range(0, self.shape[0], size):
            count = min(size, self.shape[0] - start)
            raw = os.pread(self._file, count * self._width, self._start + start * self._width)
            yield np.frombuffer(raw, self._dtype).reshape(count, *self.shape[1:])

    def compress(self, rows: int) -> None:
        """Write the whole array in its final form beside (`advprior.store.matrix`), so many rows at a time."""
        with MatrixWriter(self.path, self.shape[1:], self._dtype) as writer:
            for block in self.blocks(rows):
                writer.write(block)

    def sync(self) -> None:
        """Wait until what was written is on disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def _write_all(file: int, values: npt.NDArray[Any], at: int) -> None:
    left = memoryview(values.view(np.uint8).reshape(-1))  # type: ignore[arg-type]
    while left:
        done = os.pwrite(file, left, at)
        left, at = left[done:], at + done


class Journal:
    """Which shards are done, one line each, written after their rows are on disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.done: dict[int, dict[str, float]] = {}
        whole = 0
        if path.is_file():
            for line in path.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n"):  # torn by a kill
                    break
                entry = json.loads(line)
                self.done[entry.pop("shard")] = entry
                whole += len(line)
            os.truncate(path, whole)

    def add(self, shard: int, facts: dict[str, float]) -> None:
        """Note a shard as done."""
        with self._path.open("ab") as handle:
            handle.write(json.dumps({"shard": shard, **facts}).encode() + b"\n")
            handle.flush()
            os.fsync(handle.fileno())
        self.done[shard] = facts
