"""How many rows of the log came late: after a snapshot that would have seen them, had it known them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from advprior.store.contract import ARRIVED, EVENTS, TIMESTAMP, USER_ID, TimePlan
from advprior.store.tables import parquet_columns, read_parquet
from advprior.store.times import counting_times, micros, moment_us


def late_events(tables: Path, plan: TimePlan) -> int:
    """Events that a snapshot after them does not count, since they arrived behind it.

    The frame's features are without them as far as they were unknown at its snapshots.
    """
    path = Path(tables) / f"{EVENTS}.parquet"
    if ARRIVED not in parquet_columns(path):
        return 0
    events = read_parquet(path, columns=[USER_ID, TIMESTAMP, ARRIVED], coded=[USER_ID])
    snapshots = np.array([moment_us(snapshot) for snapshot in plan.feature_snapshots()], np.int64)
    first = (
        np.searchsorted(snapshots, times, side="right") for times in (micros(events[TIMESTAMP]), counting_times(events))
    )
    seen_by, counted_by = first
    return int((seen_by < counted_by).sum())
