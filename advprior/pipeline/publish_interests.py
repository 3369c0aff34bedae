"""Interests beside published priors: the matrix that training gathers from, and columns for serving.

They join the priors' own table and rows, so that a point-in-time join finds both with one pointer.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from advprior.store.contract import (
    INTEREST_LOG_PROBS,
    INTEREST_MATRIX_FILE,
    INTEREST_TOP_INDEX,
    INTEREST_TOP_LOG_PROBS,
    INTERESTS_FILE,
    TABLE_FILE,
)
from advprior.store.errors import AdvpriorError
from advprior.store.progress import tracked

TOP = 5
CHUNK_ROWS = 4096


def add_interests(folder: Path, priors: Path, source: npt.NDArray[np.int64]) -> bool:
    """Add the interests of a score run to a folder of published priors; False where the run has none.

    Parameters
    ----------
    folder : Path
        Holds ``table.parquet`` in the order of ``source``.
    priors : Path
        Score run.
    source : int64 [rows]
        Row of the score run behind each published row (a placebo's are another user's).

    Raises
    ------
    AdvpriorError
        ``PRI010`` when the matrix does not fit the rows or is no distribution.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not (priors / INTEREST_MATRIX_FILE).is_file():
        return False
    matrix = np.load(priors / INTEREST_MATRIX_FILE, mmap_mode="r")
    size = matrix.shape[1]
    top = min(TOP, size)
    _validate(matrix, int(source.max(initial=-1)) + 1, priors)
    written = np.lib.format.open_memmap(
        folder / INTEREST_MATRIX_FILE, mode="w+", dtype=np.float32, shape=(len(source), size)
    )
    table, beside = pq.ParquetFile(folder / TABLE_FILE), folder / f".{TABLE_FILE}"
    writer, start = None, 0
    batches = table.iter_batches(CHUNK_ROWS)
    for batch in tracked(batches, "publish interests", f"{CHUNK_ROWS:,} rows", total=-(-len(source) // CHUNK_ROWS)):
        vectors = np.ascontiguousarray(matrix[source[start : start + len(batch)]])
        written[start : start + len(batch)] = vectors
        order = np.argsort(-vectors, axis=1, kind="stable")[:, :top]
        best = np.take_along_axis(vectors, order, axis=1)
        columns: dict[str, Any] = dict(zip(batch.schema.names, batch.columns, strict=True))
        columns[INTEREST_LOG_PROBS] = _lists(vectors, pa.float32())
        columns[INTEREST_TOP_INDEX] = _lists(order, pa.int64())
        columns[INTEREST_TOP_LOG_PROBS] = _lists(best, pa.float32())
        part = pa.table(columns)
        writer = writer or pq.ParquetWriter(beside, part.schema)
        writer.write_table(part)
        start += len(batch)
    table.close()
    if writer is not None:
        writer.close()
        beside.replace(folder / TABLE_FILE)
    written.flush()
    shutil.copyfile(priors / INTERESTS_FILE, folder / INTERESTS_FILE)
    return True


def _lists(values: npt.NDArray[Any], kind: Any) -> Any:
    import pyarrow as pa

    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel(), kind))


def _validate(matrix: npt.NDArray[np.float32], rows: int, where: Path) -> None:
    worst = 0.0
    for start in range(0, len(matrix), CHUNK_ROWS):
        part = np.asarray(matrix[start : start + CHUNK_ROWS], np.float64)
        worst = max(worst, float(np.nan_to_num(np.abs(np.exp(part).sum(1) - 1), nan=np.inf).max()))
    if len(matrix) < rows or worst > 1e-4:
        raise AdvpriorError(
            "PRI010",
            "the interests do not validate",
            where=str(where),
            actual=f"{len(matrix)} rows whose probabilities sum to one within {worst:.1e}",
            expected=f"{rows} rows or more, each a distribution within 1e-4",
            fix="advprior score RUN --tables TABLES --out PRIORS --force",
        )
