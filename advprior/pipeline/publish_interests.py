"""Interests beside published priors: checked, and as columns for serving.

They join the priors' own table and rows, so that a point-in-time join finds both with one pointer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from advprior.store.contract import INTEREST_LOG_PROBS, INTEREST_TOP_INDEX, INTEREST_TOP_LOG_PROBS
from advprior.store.errors import AdvpriorError
from advprior.store.matrix import Matrix

TOP = 5
CHUNK_ROWS = 4096


def interest_columns(vectors: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Columns of the published table from log-probabilities of categories [rows, C]: all, and the likeliest."""
    order = np.argsort(-vectors, axis=1, kind="stable")[:, : min(TOP, vectors.shape[1])]
    return {
        INTEREST_LOG_PROBS: lists(vectors),
        INTEREST_TOP_INDEX: lists(order.astype(np.int64)),
        INTEREST_TOP_LOG_PROBS: lists(np.take_along_axis(vectors, order, axis=1)),
    }


def lists(values: npt.NDArray[Any]) -> Any:
    """Rows of an array [rows, width] as a column of lists."""
    import pyarrow as pa

    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.ascontiguousarray(values).ravel()))


def validate_interests(matrix: Matrix, rows: int, where: Path) -> None:
    """Refuse interests that do not fit the rows, or are no distributions.

    Parameters
    ----------
    matrix : float32 [at least rows, C]
    rows : int
        That are pointed to.

    Raises
    ------
    AdvpriorError
        ``PRI010``.
    """
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
