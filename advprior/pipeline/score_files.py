"""The arrays of a score run in progress, and the table of rows that they end in.

Everything has its place on disk before it is computed, so that a run that was stopped goes on; what is written is
read once more at the end, compressed, and a row that is no distribution is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from advprior.pipeline.rowfiles import JOURNAL, Journal, RowFile
from advprior.runtime.topk import top_k
from advprior.store.arrays import Float, Int
from advprior.store.contract import (
    INTEREST_MATRIX_FILE,
    MATRIX_FILE,
    PRIOR_ROW,
    SNAPSHOT,
    TAIL_FILE,
    TAIL_LOG_MASS,
    TOP_INDEX_FILE,
    USER_ID,
)
from advprior.store.errors import AdvpriorError

if TYPE_CHECKING:
    from advprior.runtime.top_graph import TopRows

ROWS_FILE = "rows.parquet"
NETWORK_FILE = "network.npy"  # [U, N] float32: the network's part at the last snapshot
STATES_FILE = "network_states.npy"  # [U, W] float32: in its place where the score went on from states
SCALARS_FILE = "scalars.npy"  # while scoring only: becomes columns of ROWS_FILE
SHARDS_FILE = "shards.json"  # while scoring only: another device may go on, and would plan others
SUM_TOLERANCE = 1e-4
CHUNK_ROWS = 16_384
CHUNK_BYTES = 32 << 20  # of log-probs that are read at once
_SCALARS: list[tuple[str, str]] = [("entropy", "<f4"), ("top1", "<i4"), ("best", "<f4")]


class ScoreFiles:
    """The arrays of a run in progress.

    Parameters
    ----------
    folder : Path
    users, snapshots, size : int
        U, S and N: priors are [U × S, N].
    k : int, optional
        Keep the K likeliest of a row only.
    network : bool
        Keep the network's part of the last snapshot, for a later ``since``.
    state_width : int, optional
        W, where the network's part is states: some hundred numbers a user in place of N.
    interests : int, optional
        C product categories, where the network answers for them too: [U × S, C] beside the priors, in their order.
    """

    def __init__(
        self,
        folder: Path,
        shape: tuple[int, int, int],
        *,
        k: int | None = None,
        network: bool = False,
        state_width: int | None = None,
        interests: int | None = None,
    ) -> None:
        self.users, self.snapshots, self.size = shape
        rows = self.users * self.snapshots
        self.k = k
        self.log_probs = RowFile(folder / MATRIX_FILE, (rows, k or self.size), np.float32)
        self.index = RowFile(folder / TOP_INDEX_FILE, (rows, k), np.int32) if k else None
        self.tail = RowFile(folder / TAIL_FILE, (rows,), np.float32) if k else None
        part = (NETWORK_FILE, self.size) if state_width is None else (STATES_FILE, state_width)
        self.network = RowFile(folder / part[0], (self.users, part[1]), np.float32) if network else None
        self.interests = RowFile(folder / INTEREST_MATRIX_FILE, (rows, interests), np.float32) if interests else None
        self.scalars = RowFile(folder / SCALARS_FILE, (rows,), _SCALARS)
        self.journal = Journal(folder / JOURNAL)
        self._shards = folder / SHARDS_FILE

    def shard_users(self, planned: int) -> int:
        """Users a shard: ``planned``, or what the run that is gone on with had planned."""
        if not self._shards.is_file():
            self._shards.write_text(json.dumps({"shard_users": planned}))
        return int(json.loads(self._shards.read_text())["shard_users"])

    @property
    def arrays(self) -> list[RowFile]:
        """Those that stay."""
        files = (self.log_probs, self.index, self.tail, self.network, self.interests)
        return [file for file in files if file is not None]

    @property
    def all(self) -> list[RowFile]:
        return [*self.arrays, self.scalars]

    @property
    def chunk_rows(self) -> int:
        """Rows that are read at once: whole users."""
        rows = min(CHUNK_ROWS, CHUNK_BYTES // (4 * (self.k or self.size)))
        return max(1, rows // self.snapshots) * self.snapshots

    def write(self, users: Int, log_probs: Float, index: Int | None = None) -> float:
        """Write priors of ``users``; the largest distance of a sum of probabilities from one.

        Parameters
        ----------
        log_probs : float32 [n, S, N], or [D, N] with ``index``
        index : int64 [n, S], optional
            Which of D distinct rows each user and snapshot takes.
        """
        rows = self._rows(users)
        flat = log_probs.reshape(-1, self.size)
        worst = check_sums(flat, f"users {users[0]} to {users[-1]}")
        scalars = np.empty(len(flat), _SCALARS)
        scalars["entropy"] = -(np.exp(flat) * flat).sum(1)
        scalars["top1"] = flat.argmax(1)
        scalars["best"] = flat.max(1)
        if self.k is None or self.index is None or self.tail is None:
            arrays: list[tuple[RowFile, npt.NDArray[Any]]] = [(self.log_probs, flat)]
        else:
            named, best, tail = top_k(flat, self.k)
            arrays = [(self.log_probs, best), (self.index, named), (self.tail, tail)]
        each = index is None or np.array_equal(index.ravel(), np.arange(len(flat)))
        for file, values in (*arrays, (self.scalars, scalars)):
            file.write(rows, values if each or index is None else values[index.ravel()])
        return worst

    def write_top(self, users: Int, top: TopRows) -> float:
        """Write the K likeliest advertisers of ``users`` [n, S] rows; the largest distance of a sum from one."""
        assert self.index is not None
        assert self.tail is not None
        rows = self._rows(users)
        worst = check_sums(top.log_probs, f"users {users[0]} to {users[-1]}", top.tail)
        scalars = np.empty(len(rows), _SCALARS)
        scalars["entropy"], scalars["top1"], scalars["best"] = top.entropy, top.index[:, 0], top.log_probs[:, 0]
        for file, values in (
            (self.log_probs, top.log_probs),
            (self.index, top.index),
            (self.tail, top.tail),
            (self.scalars, scalars),
        ):
            file.write(rows, values)
        return worst

    def write_interests(self, users: Int, log_probs: Float) -> None:
        """Write interests [n, S, C] of ``users``."""
        assert self.interests is not None
        check_sums(log_probs, f"interests of users {users[0]} to {users[-1]}")
        self.interests.write(self._rows(users), log_probs.reshape(-1, log_probs.shape[-1]))

    def _rows(self, users: Int) -> Int:
        rows: Int = (users[:, None] * self.snapshots + np.arange(self.snapshots)).ravel()
        return rows

    def close(self) -> None:
        """Close every file."""
        for file in self.all:
            file.close()


def check_sums(log_probs: Float, where: str, tail: Float | None = None) -> float:
    """Largest distance of a row's sum of probabilities from one.

    Raises
    ------
    AdvpriorError
        ``PRI008`` above `SUM_TOLERANCE`.
    """
    flat = log_probs.reshape(-1, log_probs.shape[-1])
    sums = np.exp(flat).sum(1, dtype=np.float64) + (0.0 if tail is None else np.exp(tail, dtype=np.float64))
    error = float(np.abs(sums - 1).max()) if len(flat) else 0.0
    if not error <= SUM_TOLERANCE:  # a NaN fails too
        raise AdvpriorError(
            "PRI008",
            "a prior is no distribution over its catalog",
            where=where,
            actual=f"sum of probabilities off by {error}",
            expected=f"at most {SUM_TOLERANCE}",
            fix="advprior export RUN --force, then score again",
        )
    return error


def finish(out: Path, files: ScoreFiles, users: Sequence[str], snapshots: list[datetime]) -> dict[str, float]:
    """The table of rows, streamed, while everything written is read once more; then what scoring alone needed goes.

    The arrays are compressed on the way: while they are written in any order they cannot be.

    Returns
    -------
    dict
        ``rows``, ``max_sum_error``, ``mean_entropy``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    worst, entropy, rows, writer = 0.0, 0.0, 0, None
    for log_probs, scalars, tail in _chunks(files):
        worst = max(worst, check_sums(log_probs, f"{out / MATRIX_FILE} from row {rows}", tail))
        first, stop = rows // len(snapshots), (rows + len(log_probs)) // len(snapshots)
        columns: dict[str, Any] = {
            USER_ID: pa.array([user for user in users[first:stop] for _ in snapshots], pa.string()),
            SNAPSHOT: pa.array(list(snapshots) * (stop - first), pa.timestamp("us", tz="UTC")),
            PRIOR_ROW: pa.array(np.arange(rows, rows + len(log_probs))),
            "entropy": pa.array(np.ascontiguousarray(scalars["entropy"])),
            "top1_index": pa.array(scalars["top1"].astype(np.int64)),
            "top1_log_prob": pa.array(np.ascontiguousarray(scalars["best"])),
        }
        table = pa.table(columns if tail is None else {**columns, TAIL_LOG_MASS: pa.array(tail)})
        writer = writer or pq.ParquetWriter(out / ROWS_FILE, table.schema, compression="zstd")
        writer.write_table(table)
        entropy += float(scalars["entropy"].sum(dtype=np.float64))
        rows += len(log_probs)
    if writer is not None:
        writer.close()
    for file in files.arrays:
        file.compress(files.chunk_rows)
    # the journal first: without it all is scored again, with it but without the arrays they would be zeros
    (out / JOURNAL).unlink()
    (out / SHARDS_FILE).unlink(missing_ok=True)
    for file in files.all:
        file.path.unlink()
    return {"rows": rows, "max_sum_error": worst, "mean_entropy": entropy / rows if rows else 0.0}


def _chunks(files: ScoreFiles) -> Iterator[tuple[Any, Any, Any]]:
    """Log-probs, scalars and tails (or None), whole users at a time; an empty chunk where there are no rows."""
    size = files.chunk_rows
    tails = files.tail.blocks(size) if files.tail is not None else None
    empty = True
    for log_probs, scalars in zip(files.log_probs.blocks(size), files.scalars.blocks(size), strict=True):
        empty = False
        yield log_probs, scalars, next(tails) if tails is not None else None
    if empty:
        width = files.k or files.size
        tail = np.empty(0, np.float32) if files.k else None
        yield np.empty((0, width), np.float32), np.empty(0, _SCALARS), tail
