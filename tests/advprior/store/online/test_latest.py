"""The newest row of each key, by event, then creation; and those rows in the order of the table."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from advprior.store.online.latest import Times, newest_rows, read_rows
from advprior.store.tables import write_parquet

T0 = datetime(2024, 3, 1, tzinfo=UTC)
TICK = timedelta(microseconds=1)


@pytest.mark.parametrize("group_rows", [7, 1000])
def test_newest_rows_are_those_of_a_sort(tmp_path: Path, group_rows: int) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"user_id": rng.choice([*"abcdefgh", None], 200), "region": rng.integers(0, 3, 200)})
    frame["event"] = pd.to_datetime([T0 + int(n) * TICK for n in rng.integers(0, 9, 200)], utc=True)
    frame["created"] = pd.to_datetime([T0 + int(n) * TICK for n in rng.permutation(200)], utc=True)
    path = tmp_path / "table.parquet"
    write_parquet(frame, path, row_group_size=group_rows)

    start, end = T0 + 2 * TICK, T0 + 6 * TICK
    rows = newest_rows(path, ["user_id", "region"], Times("event", "created"), start, end)
    within = frame[(frame.event >= start) & (frame.event <= end) & frame.user_id.notna()]
    newest = within.sort_values(["event", "created"]).groupby(["user_id", "region"]).tail(1)
    assert rows.tolist() == sorted(newest.index)

    batches = list(read_rows(path, ["user_id", "created"], rows, 5))
    read = pd.concat([batch.to_pandas() for batch in batches], ignore_index=True)
    expected = frame.loc[rows, ["user_id", "created"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(read, expected, check_dtype=False)
    assert max(batch.num_rows for batch in batches) < 10
    assert pq.ParquetFile(path).metadata.num_row_groups == -(-200 // group_rows)
    assert not list(read_rows(path, ["user_id"], rows[:0]))
