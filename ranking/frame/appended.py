"""An array on disk that grows part by part, and is an ordinary ``.npy`` file in the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class AppendedArray:
    """Rows appended to a ``.npy`` file, whose header is written anew at the end.

    Parameters
    ----------
    path : Path
    dtype : numpy.dtype
    width : int, optional
        Columns; a vector without.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.npy"
    >>> array = AppendedArray(path, np.dtype(np.int64))
    >>> array.append(np.array([1, 2]))
    >>> array.append(np.array([3]))
    >>> array.close()
    >>> np.load(path, mmap_mode="r").tolist()
    [1, 2, 3]
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], width: int | None = None) -> None:
        self._dtype, self._width, self._rows = dtype, width, 0
        self._file = path.open("wb")
        self._write_header()
        self._start = self._file.tell()

    def append(self, rows: NDArray[Any]) -> None:
        """Write further rows [rows], or [rows, width]."""
        np.ascontiguousarray(rows, self._dtype).tofile(self._file)
        self._rows += len(rows)

    def close(self) -> None:
        """Say how many there are."""
        self._file.seek(0)
        self._write_header()
        assert self._file.tell() == self._start  # numpy leaves room for a first axis of any length
        self._file.close()

    def _write_header(self) -> None:
        shape = (self._rows,) if self._width is None else (self._rows, self._width)
        about = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, about)
