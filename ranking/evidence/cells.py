"""Numbers as the cells of a report's tables."""

from __future__ import annotations

from math import isfinite

from ranking.evidence.lift import Lift
from ranking.evidence.wording import interval, signed


def lift_cell(lift: Lift) -> dict[str, str]:
    """A difference, its interval, and whether it is clear: ``good``, ``bad`` or nothing."""
    if not isfinite(lift.difference):
        return {"tone": "", "value": "–", "range": "not measurable"}
    return {
        "tone": "good" if lift.better else "bad" if lift.worse else "",
        "value": signed(lift.difference, lift.digits),
        "range": interval(lift.low, lift.high, lift.digits),
    }


def number(value: float) -> str:
    """Four digits, or a dash where it is undefined.

    >>> number(0.90861), number(float("nan"))
    ('0.9086', '–')
    """
    return f"{value:.4f}" if isfinite(value) else "–"
