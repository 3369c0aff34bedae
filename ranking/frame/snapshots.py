"""The snapshots that published features are computed as of, and the time columns of their tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from advprior.store.arrays import Float
from advprior.store.contract import CREATED_TIMESTAMP, EVENT_TIMESTAMP, SNAPSHOT, TimePlan

if TYPE_CHECKING:
    import pandas as pd


def snapshots_to_keep(plan: TimePlan) -> list[datetime]:
    """Snapshots the frame can reach: from the last before ``finetune_end`` on (rows become available with a lag)."""
    oldest = plan.finetune_end - plan.snapshot_every - plan.lag
    return [moment for moment in plan.feature_snapshots() if moment >= oldest]


def time_columns(snapshots: Sequence[datetime], lag: timedelta, rows: int) -> dict[str, pd.Series[pd.Timestamp]]:
    """Time columns of a snapshot-major table. A backfilled row counts as created when it became available."""
    import pandas as pd

    cut = pd.Series(pd.DatetimeIndex(list(snapshots)).as_unit("us").repeat(rows))
    return {EVENT_TIMESTAMP: cut + lag, CREATED_TIMESTAMP: cut + lag, SNAPSHOT: cut}


@dataclass
class Scalars:
    """Scalar columns of a snapshot-major table, filled snapshot by snapshot."""

    parts: dict[str, list[Float]] = field(default_factory=dict)

    def add(self, name: str, values: Any) -> None:
        """Values of the next snapshot, one per user or ad."""
        self.parts.setdefault(name, []).append(values.astype(np.float32))

    def columns(self) -> dict[str, Float]:
        """Whole columns, in the order in which they were first added."""
        return {name: np.concatenate(parts) for name, parts in self.parts.items()}
