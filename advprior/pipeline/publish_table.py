"""The table of a published prior: checked, then written in chunks beside the arrays that its rows point into.

The arrays are the score run's own: rows point to their places there, a placebo's to another user's. The vectors stand
in the table once more where they are served from it, and only there.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from advprior.pipeline.publish_interests import interest_columns, lists, validate_interests
from advprior.store.arrays import Int
from advprior.store.contract import (
    CATALOG_VERSION,
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    INTEREST_MATRIX_FILE,
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
from advprior.store.matrix import Matrix, matrix_path, open_matrix
from advprior.store.progress import tracked

if TYPE_CHECKING:
    import pandas as pd

CHUNK_ROWS = 4096


@dataclass(frozen=True)
class ScoredArrays:
    """The arrays of a score run, on disk: whole rows, or the K likeliest and the tail of each; and interests."""

    log_probs: Matrix
    top_index: Matrix | None = None
    tail: Matrix | None = None
    interests: Matrix | None = None

    @classmethod
    def open(cls, folder: Path) -> ScoredArrays:
        def there(name: str) -> Matrix | None:
            return open_matrix(folder / name) if matrix_path(folder / name) else None

        others = (there(name) for name in (TOP_INDEX_FILE, TAIL_FILE, INTEREST_MATRIX_FILE))
        return cls(open_matrix(folder / MATRIX_FILE), *others)

    @property
    def by_file(self) -> dict[str, Matrix]:
        """The arrays there are, by the name of their file; log-probs first."""
        names = (MATRIX_FILE, TOP_INDEX_FILE, TAIL_FILE, INTEREST_MATRIX_FILE)
        every = zip(names, (self.log_probs, self.top_index, self.tail, self.interests), strict=True)
        return {name: array for name, array in every if array is not None}


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
    if arrays.interests is not None:
        validate_interests(arrays.interests, int(pointers.max() + 1) if len(rows) else 0, where)
    if problems:
        raise AdvpriorError(
            "PRI010",
            "the priors do not validate",
            where=str(where),
            actual="; ".join(problems),
            expected="one row per user and snapshot, each a distribution within 1e-4",
            fix="advprior score RUN --tables TABLES --out PRIORS --force",
        )


def write_table(
    out: Path, rows: pd.DataFrame, arrays: ScoredArrays, source: Int, facts: dict[str, Any], *, vectors: bool = True
) -> None:
    """``table.parquet``, streamed in chunks.

    Parameters
    ----------
    out : Path
    rows : DataFrame
        Users and snapshots of the score run, in the order of what is published.
    arrays : ScoredArrays
    source : int64 [rows]
        Row of the arrays that each published row takes; a placebo's is another user's.
    facts : dict
        Of the score run's manifest.
    vectors : bool
        Write the vectors as well, as what is served needs them; else these columns are empty.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    scalars = rows.set_index(PRIOR_ROW)
    writer = None
    for start in tracked(range(0, len(rows), CHUNK_ROWS), "publish priors", f"{CHUNK_ROWS:,} rows"):
        part, taken = rows.iloc[start : start + CHUNK_ROWS], source[start : start + CHUNK_ROWS]
        columns = _scalars(part, scalars.loc[taken], taken, facts)
        every = _vectors({name: array[taken if vectors else taken[:1]] for name, array in arrays.by_file.items()})
        columns |= every if vectors else {name: pa.nulls(len(part), one.type) for name, one in every.items()}
        if arrays.tail is not None:
            columns[TAIL_LOG_MASS] = pa.array(arrays.tail[taken])
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(out / TABLE_FILE, table.schema, compression="zstd")
        writer.write_table(table)
    if writer is not None:
        writer.close()


def _scalars(part: pd.DataFrame, scalars: pd.DataFrame, pointers: Int, facts: dict[str, Any]) -> dict[str, Any]:
    """Whose and when, what they are made of, and what sums a row up."""
    import pyarrow as pa

    lag, moment = timedelta(seconds=float(facts["lag_s"])), pa.timestamp("us", tz="UTC")
    cutoff = datetime.fromisoformat(facts["model_cutoff"])
    return {
        USER_ID: pa.array(part[USER_ID], pa.string()),
        EVENT_TIMESTAMP: pa.array(part[SNAPSHOT] + lag, moment),
        # as of when a daily run would have written it: the frame joins with filter_by_created_timestamp, and a
        # backfill stamped with the wall clock could not be joined to any past impression
        CREATED_TIMESTAMP: pa.array(part[SNAPSHOT] + lag, moment),
        SNAPSHOT: pa.array(part[SNAPSHOT], moment),
        MODEL_CUTOFF: pa.array([cutoff] * len(part), moment),
        CATALOG_VERSION: pa.array([facts["catalog_version"]] * len(part), pa.string()),
        PRIOR_ROW: pa.array(pointers, pa.int64()),
        "entropy": pa.array(scalars["entropy"].to_numpy(np.float32)),
        "top1_index": pa.array(scalars["top1_index"].to_numpy(np.int64)),
        "top1_log_prob": pa.array(scalars["top1_log_prob"].to_numpy(np.float32)),
    }


def _vectors(values: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """The vectors of rows as served, by column."""
    columns = {LOG_PROBS: lists(values[MATRIX_FILE])}
    if TOP_INDEX_FILE in values:
        columns[TOP_INDEX] = lists(values[TOP_INDEX_FILE].astype(np.int64))
    return columns | (interest_columns(values[INTEREST_MATRIX_FILE]) if INTEREST_MATRIX_FILE in values else {})
