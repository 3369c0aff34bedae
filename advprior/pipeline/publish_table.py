"""The table of a published prior: checked, then written in chunks beside the arrays that its rows point into."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from advprior.store.arrays import Int
from advprior.store.contract import (
    CATALOG_VERSION,
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    LOG_PROBS,
    MATRIX_FILE,
    MODEL_CUTOFF,
    PRIOR_ROW,
    SNAPSHOT,
    TABLE_FILE,
    TAIL_FILE,
    TAIL_LOG_MASS,
    TOP_INDEX,
    TOP_INDEX_FILE,
    USER_ID,
)
from advprior.store.errors import AdvpriorError
from advprior.store.progress import tracked

if TYPE_CHECKING:
    import pandas as pd

CHUNK_ROWS = 4096


@dataclass(frozen=True)
class ScoredArrays:
    """The arrays of a score run, memory-mapped: whole rows, or the K likeliest and the tail of each."""

    log_probs: npt.NDArray[np.float32]
    top_index: npt.NDArray[np.int32] | None
    tail: npt.NDArray[np.float32] | None

    @classmethod
    def open(cls, folder: Path) -> ScoredArrays:
        def mapped(name: str) -> Any:
            return np.load(folder / name, mmap_mode="r") if (folder / name).is_file() else None

        return cls(np.load(folder / MATRIX_FILE, mmap_mode="r"), mapped(TOP_INDEX_FILE), mapped(TAIL_FILE))

    @property
    def by_file(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays there are, by the name of their file; log-probs first."""
        every = {MATRIX_FILE: self.log_probs, TOP_INDEX_FILE: self.top_index, TAIL_FILE: self.tail}
        return {name: array for name, array in every.items() if array is not None}


def validate(rows: pd.DataFrame, arrays: ScoredArrays, scored: dict[str, Any], where: Path) -> None:
    """Refuse a score run whose files do not belong together, or whose rows are no distributions.

    Raises
    ------
    AdvpriorError
        ``PRI010``, with every problem.
    """
    problems = []
    matrix, top, tail = arrays.log_probs, arrays.top_index, arrays.tail
    size = int(scored["facts"].get("catalog_size", matrix.shape[1]))
    if (top is None) != (tail is None) or (top is not None and top.shape != matrix.shape):
        problems.append(f"{TOP_INDEX_FILE} or {TAIL_FILE} do not belong to {MATRIX_FILE}")
    if top is None and matrix.shape[1] != size:
        problems.append(f"{matrix.shape[1]} columns for {size} advertisers")
    if rows.duplicated([USER_ID, SNAPSHOT]).any():
        problems.append(f"{int(rows.duplicated([USER_ID, SNAPSHOT]).sum())} doubled (user, snapshot) rows")
    pointers = rows[PRIOR_ROW]
    if len(rows) != scored["facts"]["rows"] or not pointers.between(0, len(matrix) - 1).all() or not pointers.is_unique:
        problems.append(f"{len(rows)} rows into {len(matrix)} priors, {scored['facts']['rows']} in the manifest")
    worst = 0.0
    for start in range(0, len(matrix), CHUNK_ROWS):
        part = np.exp(np.asarray(matrix[start : start + CHUNK_ROWS], np.float64)).sum(1)
        if tail is not None:
            part += np.exp(np.asarray(tail[start : start + CHUNK_ROWS], np.float64))
        if top is not None:
            names = np.sort(top[start : start + CHUNK_ROWS], axis=1)
            if (names[:, 0] < 0).any() or (names[:, -1] >= size).any() or (np.diff(names, axis=1) == 0).any():
                problems.append(f"{TOP_INDEX_FILE} names an advertiser twice, or none, from row {start}")
        worst = max(worst, float(np.nan_to_num(np.abs(part - 1), nan=np.inf).max()))
    if worst > 1e-4:
        problems.append(f"probabilities sum to one within {worst:.1e} only")
    if problems:
        raise AdvpriorError(
            "PRI010",
            "the priors do not validate",
            where=str(where),
            actual="; ".join(problems),
            expected="one row per user and snapshot, each a distribution within 1e-4",
            fix="advprior score RUN --tables TABLES --out PRIORS --force",
        )


def write_table(out: Path, rows: pd.DataFrame, arrays: ScoredArrays, source: Int, facts: dict[str, Any]) -> None:
    """``table.parquet`` and the arrays behind its pointers, streamed in chunks.

    Parameters
    ----------
    out : Path
    rows : DataFrame
        Users and snapshots of the score run, in the order of what is published.
    arrays : ScoredArrays
    source : int64 [rows]
        Row of the score run that each published row takes; a placebo's is another user's.
    facts : dict
        Of the score run's manifest.
    """
    import pyarrow.parquet as pq

    copies = {
        name: np.lib.format.open_memmap(out / name, mode="w+", dtype=array.dtype, shape=(len(rows), *array.shape[1:]))
        for name, array in arrays.by_file.items()
    }
    scalars = rows.set_index(PRIOR_ROW)
    writer = None
    for start in tracked(range(0, len(rows), CHUNK_ROWS), "publish priors", f"{CHUNK_ROWS:,} rows"):
        part, taken = rows.iloc[start : start + CHUNK_ROWS], source[start : start + CHUNK_ROWS]
        values = {name: np.ascontiguousarray(array[taken]) for name, array in arrays.by_file.items()}
        for name, copy in copies.items():
            copy[start : start + len(part)] = values[name]
        table = _chunk(part, scalars.loc[taken], values, start, facts)
        writer = writer or pq.ParquetWriter(out / TABLE_FILE, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def _chunk(
    part: pd.DataFrame, scalars: pd.DataFrame, values: dict[str, npt.NDArray[Any]], start: int, facts: dict[str, Any]
) -> Any:
    """Rows of the published table: whose and when, what they are made of, and the vectors as served."""
    import pyarrow as pa

    lag, moment = timedelta(seconds=float(facts["lag_s"])), pa.timestamp("us", tz="UTC")
    cutoff = datetime.fromisoformat(facts["model_cutoff"])
    vectors = values[MATRIX_FILE]
    offsets = pa.array(np.arange(0, vectors.size + 1, vectors.shape[1], dtype=np.int32))
    columns = {
        USER_ID: pa.array(part[USER_ID], pa.string()),
        EVENT_TIMESTAMP: pa.array(part[SNAPSHOT] + lag, moment),
        # as of when a daily run would have written it: the frame joins with filter_by_created_timestamp, and a
        # backfill stamped with the wall clock could not be joined to any past impression
        CREATED_TIMESTAMP: pa.array(part[SNAPSHOT] + lag, moment),
        SNAPSHOT: pa.array(part[SNAPSHOT], moment),
        MODEL_CUTOFF: pa.array([cutoff] * len(part), moment),
        CATALOG_VERSION: pa.array([facts["catalog_version"]] * len(part), pa.string()),
        PRIOR_ROW: pa.array(np.arange(start, start + len(part)), pa.int64()),
        "entropy": pa.array(scalars["entropy"].to_numpy(np.float32)),
        "top1_index": pa.array(scalars["top1_index"].to_numpy(np.int64)),
        "top1_log_prob": pa.array(scalars["top1_log_prob"].to_numpy(np.float32)),
        LOG_PROBS: pa.ListArray.from_arrays(offsets, pa.array(vectors.ravel())),
    }
    if TOP_INDEX_FILE in values:
        index = values[TOP_INDEX_FILE].ravel().astype(np.int64)
        columns[TOP_INDEX] = pa.ListArray.from_arrays(offsets, pa.array(index))
        columns[TAIL_LOG_MASS] = pa.array(values[TAIL_FILE])
    return pa.table(columns)
