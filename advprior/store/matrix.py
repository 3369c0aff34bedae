"""Arrays of many rows on disk, compressed: log-probabilities of users, read a group of rows at a time.

One Parquet file of one column, ``values``, of lists of one length: the four bytes of each number apart
(``BYTE_STREAM_SPLIT``) and then zstd, which loses nothing. Log-probabilities take some 0.73 of their size so, those
that many users share next to nothing. What an earlier version wrote as ``.npy`` is read as it was.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

GROUP_BYTES = 1 << 20  # of rows that are read together: a single row costs that much, a millisecond or two
_COLUMN = "values"
COMPRESSED = ".parquet"
AT_HAND_BYTES = 256 << 20


class MatrixFile:
    """An array [rows, …] in a Parquet file, to be indexed like a mapped one; it cannot be written to.

    The file stays open, so that it can be asked when it is no longer in its folder. Threads may share it.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy dtype

    Raises
    ------
    ValueError
        When the file is no such array.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._file = pq.ParquetFile(path)
        columns = self._file.schema_arrow
        kind = columns.field(0).type if columns.names == [_COLUMN] else None
        self._listed = kind is not None and pa.types.is_fixed_size_list(kind)
        if kind is None or not (self._listed or pa.types.is_primitive(kind)):
            raise ValueError(f"{path} is no array: its columns are {', '.join(columns.names)}")
        row: tuple[int, ...] = (kind.list_size,) if self._listed else ()
        self.dtype: np.dtype[Any] = np.dtype((kind.value_type if self._listed else kind).to_pandas_dtype())
        facts = self._file.metadata
        counts = [facts.row_group(i).num_rows for i in range(facts.num_row_groups)]
        self._begins = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        self.shape = (int(self._begins[-1]), *row)
        self._lock = threading.Lock()
        self._last: tuple[int, npt.NDArray[Any]] = (-1, np.zeros((0, *row), self.dtype))

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.asarray(self[:], dtype)

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        """Rows by number, slice, numbers [n] or flags [rows]; with a tuple, what the rest picks of those rows."""
        if isinstance(key, tuple):
            return self._cells(*key)
        if isinstance(key, int | np.integer):
            row = int(key) + (len(self) if key < 0 else 0)
            if not 0 <= row < len(self):
                raise IndexError(f"row {key} of {len(self)}")
            group = int(np.searchsorted(self._begins, row, side="right")) - 1
            of_row: npt.NDArray[Any] = self._group(group)[row - int(self._begins[group])]
            return of_row
        return self._rows(np.arange(len(self))[key])

    def _rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        out = np.empty((*rows.shape, *self.shape[1:]), self.dtype)
        flat = out.reshape(rows.size, *self.shape[1:])
        for group, places, inside in self._by_group(rows.ravel()):
            flat[places] = group[inside]
        return out

    def _cells(self, rows: Any, *rest: Any) -> npt.NDArray[Any]:
        """One cell of each row [n]: numbers of columns [n] beside numbers of rows [n], as numpy takes them."""
        numbers = np.asarray(rows)
        if numbers.ndim != 1 or len(rest) != 1 or np.shape(rest[0]) != numbers.shape:
            return np.asarray(self[rows])[(slice(None), *rest) if numbers.ndim else rest]
        out = np.empty(len(numbers), self.dtype)
        for group, places, inside in self._by_group(numbers):
            out[places] = group[inside, np.asarray(rest[0])[places]]
        return out

    def _by_group(
        self, rows: npt.NDArray[np.int64]
    ) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Each group of rows that is asked for: its rows, which of ``rows`` lie in it, and where there."""
        if not len(rows):
            return
        if rows.min() < 0 or rows.max() >= len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)}")
        group = np.searchsorted(self._begins, rows, side="right") - 1
        order = np.argsort(group, kind="stable")
        numbers, starts = np.unique(group[order], return_index=True)
        for number, places in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
            yield self._group(number), places, rows[places] - self._begins[number]

    def let_go(self) -> None:
        """Forget the group of rows that was read last: it is read again when it is asked for."""
        with self._lock:
            self._last = (-1, np.zeros((0, *self.shape[1:]), self.dtype))

    def _group(self, number: int) -> npt.NDArray[Any]:
        with self._lock:
            if self._last[0] != number:
                column = self._file.read_row_group(number, use_threads=False).column(0).combine_chunks()
                values = (column.flatten() if self._listed else column).to_numpy()
                self._last = number, values.reshape(-1, *self.shape[1:])
            return self._last[1]


#: An array on disk: mapped, of an earlier version, or compressed.
Matrix = npt.NDArray[Any] | MatrixFile


def matrix_path(path: Path) -> Path | None:
    """Where an array named ``*.npy`` lies: there, or compressed beside; None where there is none."""
    return next((one for one in (path, path.with_suffix(COMPRESSED)) if one.is_file()), None)


def open_matrix(path: Path) -> Matrix:
    """Open the array that is named ``*.npy``, whichever way it was written.

    Raises
    ------
    FileNotFoundError
    ValueError
        When the file is no array.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> path = Path(mkdtemp()) / "log_probs.npy"
    >>> write_matrix(path, [np.arange(6.0, dtype=np.float32).reshape(3, 2)])
    >>> matrix = open_matrix(path)
    >>> matrix.shape, matrix[1].tolist(), matrix[[2, 0]].tolist()
    ((3, 2), [2.0, 3.0], [[4.0, 5.0], [0.0, 1.0]])
    """
    where = matrix_path(path)
    if where is None:
        raise FileNotFoundError(f"no {path.name} and no {path.with_suffix(COMPRESSED).name} in {path.parent}")
    mapped: Matrix = np.load(where, mmap_mode="r") if where == path else MatrixFile(where)
    return mapped


def at_hand(matrix: Matrix) -> Matrix:
    """The array in memory, where it is compressed and takes little there: for who goes through it many times."""
    if isinstance(matrix, MatrixFile) and int(np.prod(matrix.shape)) * matrix.dtype.itemsize <= AT_HAND_BYTES:
        return matrix[:]
    return matrix


def share_matrix(path: Path, folder: Path) -> None:
    """Put the array that is named ``*.npy`` into another folder as well, at no cost where the file system has links.

    Files of finished folders are never written to again, so that one file may have several names.

    Raises
    ------
    FileNotFoundError
    """
    where = matrix_path(path)
    if where is None:
        raise FileNotFoundError(path)
    try:
        os.link(where, folder / where.name)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(where, folder / where.name)


class MatrixWriter:
    """Writes an array to its compressed form, block after block of rows.

    Parameters
    ----------
    path : Path
        Named ``*.npy``; what is written is the compressed file beside it.
    row : tuple of int
        Shape of a row: ``(N,)``, or ``()`` for one number.
    dtype : numpy dtype
    """

    def __init__(self, path: Path, row: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._row, self._dtype = row, np.dtype(dtype)
        self._count = max(1, GROUP_BYTES // max(int(np.prod(row, dtype=np.int64)) * self._dtype.itemsize, 1))
        value = pa.field("element", pa.from_numpy_dtype(self._dtype), nullable=False)
        kind = pa.list_(value, row[0]) if row else value.type
        self._schema = pa.schema([pa.field(_COLUMN, kind, nullable=False)])
        self._writer = pq.ParquetWriter(
            path.with_suffix(COMPRESSED),
            self._schema,
            compression="zstd",
            use_dictionary=False,
            column_encoding={f"{_COLUMN}.list.element" if row else _COLUMN: "BYTE_STREAM_SPLIT"},
            write_statistics=False,
            data_page_size=2 * GROUP_BYTES,  # a page a group: what rows have in common is seen within a page only
        )
        self._waiting: list[npt.NDArray[Any]] = []

    def write(self, block: npt.NDArray[Any]) -> None:
        """Add rows [n, …]."""
        rows = np.concatenate([*self._waiting, np.asarray(block, self._dtype).reshape(-1, *self._row)])
        whole = len(rows) // self._count * self._count
        for start in range(0, whole, self._count):
            self._put(rows[start : start + self._count])
        self._waiting = [rows[whole:].copy()]

    def _put(self, rows: npt.NDArray[Any]) -> None:
        import pyarrow as pa

        if not len(rows):
            return
        kind, values = self._schema.field(0).type, pa.array(rows.ravel())
        column = pa.FixedSizeListArray.from_arrays(values, type=kind) if self._row else values
        self._writer.write_table(pa.table([column], schema=self._schema), row_group_size=len(rows))

    def close(self) -> None:
        """Write what is left, and the end of the file."""
        for rows in self._waiting:
            self._put(rows)
        self._writer.close()

    def __enter__(self) -> MatrixWriter:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()


def write_matrix(path: Path, blocks: Iterable[npt.NDArray[Any]]) -> None:
    """Write an array that comes in blocks of rows, one at least; ``path`` as `MatrixWriter` takes it."""
    writer = None
    for block in blocks:
        writer = writer or MatrixWriter(path, block.shape[1:], block.dtype)
        writer.write(block)
    if writer is None:
        raise ValueError("no block, so that the shape of a row is not known")
    writer.close()
