"""The newest row of each key in a published table, found by three columns and read in the table's own order.

Feast reads every row of the time range whole, into one pandas frame, before it drops all but the newest of each key.
Here DuckDB looks at keys and times alone; the rows that won are then read batch by batch, so that memory follows the
batch and not the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from advprior.store.arrays import Int
from advprior.store.times import moment_us

#: Bytes of a batch, as Parquet states them before compression; and its rows at most.
BATCH_BYTES, BATCH_ROWS = 4 << 20, 10_000
_MEMORY = "600MB"


@dataclass(frozen=True)
class Times:
    """Columns that say which row is the newest: of equals, the one created last."""

    event: str
    created: str | None


def newest_rows(path: Path, keys: Sequence[str], times: Times, start: datetime | None, end: datetime | None) -> Int:
    """Row numbers in a Parquet file of each key's newest row within a range of event times, ascending.

    Parameters
    ----------
    keys : sequence of str
        Columns of the join keys; rows where one is null are left out.
    times : Times
    start, end : datetime, optional
        Both included.
    """
    import duckdb

    parts = [f'epoch_us("{times.event}")', *([f'epoch_us("{times.created}")'] if times.created else [])]
    newest = f"arg_max(file_row_number, ({', '.join([*parts, 'file_row_number'])}))"
    names = ", ".join(f'"{key}"' for key in keys)
    conditions = [f'"{key}" IS NOT NULL' for key in keys]
    bounds = [(sign, moment) for sign, moment in ((">=", start), ("<=", end)) if moment is not None]
    conditions += [f'epoch_us("{times.event}") {sign} {moment_us(moment)}' for sign, moment in bounds]
    with duckdb.connect(config={"memory_limit": _MEMORY}) as database:
        rows = database.execute(
            f"SELECT {newest} AS row FROM read_parquet($path, file_row_number = true) "
            f"WHERE {' AND '.join(conditions)} GROUP BY {names}",
            {"path": str(path)},
        ).fetchnumpy()["row"]
    return np.sort(np.asarray(rows, np.int64))


def read_rows(path: Path, columns: Sequence[str], rows: Int, batch_rows: int | None = None) -> Iterator[Any]:
    """Some rows of a Parquet file, in its order, batch by batch.

    Parameters
    ----------
    rows : int64 array
        Row numbers, ascending.
    batch_rows : int, optional
        Rows of a batch; twice as many at most, fewer in the last. Default: by the bytes of a row.

    Yields
    ------
    pyarrow.RecordBatch
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    # buffered reading: else a column of a row group is held whole
    with pq.ParquetFile(path, buffer_size=1 << 20) as file:
        size = batch_rows or rows_per_batch(file.metadata)
        waiting: list[Any] = []  # where few of the rows that are read are wanted, several batches make one
        for start, batch in _batches(file, list(columns), rows, size):
            low, high = np.searchsorted(rows, [start, start + batch.num_rows])
            if high > low:
                whole = high - low == batch.num_rows
                waiting.append(batch if whole else batch.take(pa.array(rows[low:high] - start)))
            if sum(part.num_rows for part in waiting) >= size:
                yield _one(waiting)
                waiting = []
        if waiting:
            yield _one(waiting)


def _batches(file: Any, columns: list[str], rows: Int, size: int) -> Iterator[tuple[int, Any]]:
    """Batches of the row groups that hold some of the rows, each with the number of its first row."""
    start = 0
    for group in range(file.metadata.num_row_groups):
        end = start + file.metadata.row_group(group).num_rows
        first, last = np.searchsorted(rows, [start, end])
        if first < last:
            for batch in file.iter_batches(size, row_groups=[group], columns=columns, use_threads=False):
                if start > rows[last - 1]:
                    break
                yield start, batch
                start += batch.num_rows
        start = end


def _one(parts: list[Any]) -> Any:
    """One batch of several."""
    import pyarrow as pa

    return parts[0] if len(parts) == 1 else pa.Table.from_batches(parts).combine_chunks().to_batches()[0]


def rows_per_batch(metadata: Any) -> int:
    """How many rows of a file make a batch of `BATCH_BYTES`."""
    total = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    return int(min(max(BATCH_BYTES * metadata.num_rows // max(total, 1), 100), BATCH_ROWS))
