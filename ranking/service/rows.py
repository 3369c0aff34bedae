"""What the online store says: one entity's row of one view, and when the point-in-time join would take it.

The store says when a row became available; no online store enforces a TTL. So whether a row is in time is judged here,
by the rules of the join that made the training frame, and never by the store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]
#: A machine's clock may be behind the one that wrote a row by so much.
SKEW_US = 300 * 1_000_000


@dataclass(frozen=True)
class ViewRow:
    """One entity's row of one view.

    Attributes
    ----------
    available_us : int
        When the row became available (its ``event_timestamp``), microseconds since 1970.
    values : dict of feature name to Feast's value message
        A feature that the row does not hold is absent.
    """

    available_us: int
    values: dict[str, Any]

    def number(self, name: str) -> float | None:
        """A numeric value; None when the row has none of that name."""
        message = self.values.get(name)
        kind = None if message is None else message.WhichOneof("val")
        value = None if kind is None else getattr(message, kind)
        return float(value) if isinstance(value, int | float) else None  # a row may be corrupt

    def text(self, name: str) -> str | None:
        """A text value; None when the row has none of that name."""
        value = self.values.get(name)
        return value.string_val if value is not None and value.WhichOneof("val") == "string_val" else None

    def time_us(self, name: str) -> int | None:
        """A time, in microseconds since 1970 (the store keeps whole seconds)."""
        value = self.values.get(name)
        if value is None or value.WhichOneof("val") != "unix_timestamp_val":
            return None
        return int(value.unix_timestamp_val) * 1_000_000


@dataclass(frozen=True)
class Broken:
    """A row that cannot be decoded."""

    why: str


Row = ViewRow | Broken | None


@dataclass(frozen=True)
class ServedView:
    """A view that the services read.

    Attributes
    ----------
    name : str
    key : str
        ``user_id`` or ``ad_id``.
    ttl_us : int
        0: its rows never expire.
    columns : dict[str, str]
        Scalar feature to the frame's column, for those that are the ranker's features.
    text, times : frozenset of str
        Features that are text, and those that are moments: the ranker takes a moment as days of age.
    features : tuple of str
        Everything that is read, lists too.
    """

    name: str
    key: str
    ttl_us: int
    columns: dict[str, str]
    text: frozenset[str]
    times: frozenset[str]
    features: tuple[str, ...]


def in_time(available_us: int, view: ServedView, now_us: int) -> str | None:
    """None when the point-in-time join would take a row now; else ``early`` or ``stale``."""
    if available_us > now_us + SKEW_US:
        return "early"
    if view.ttl_us and available_us < now_us - view.ttl_us:
        return "stale"
    return None


def floats(message: Any) -> Matrix:
    """A Feast list of floats as an array, without walking it in Python: packed, it ends with its own bytes."""
    count = len(message.val)
    data = message.SerializeToString()
    return np.frombuffer(data, dtype="<f4", offset=len(data) - 4 * count, count=count)
