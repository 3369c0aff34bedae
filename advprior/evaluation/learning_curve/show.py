"""A learning curve in the terminal: the pooled differences that matter, then the sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from advprior.evaluation.learning_curve.cells import SEGMENTS
from advprior.evaluation.learning_curve.result import BEST_WITH, BEST_WITHOUT, NAMES_BEYOND_RANDOM, NO_NAMES


def lines(result: dict[str, Any]) -> list[str]:
    """Lines of text: for each number of users, the best arm with a language model against the best without."""
    cutoffs = len(result["about"]["cutoffs"])
    text = [f"{BEST_WITH} - {BEST_WITHOUT} [95 %], pooled over {cutoffs} cut-offs", *_rows(result, BEST_WITHOUT)]
    for baseline in (NO_NAMES, NAMES_BEYOND_RANDOM):
        if rows := _rows(result, baseline, SEGMENTS[:1]):
            text += [f"{BEST_WITH} - {baseline}", *rows]
    if result["cells_without_labels"]:
        text.append(f"note: {result['cells_without_labels']} cells had no label before their cut-off to fit on")
    text += [f"warning: {warning}" for warning in result["warnings"]]
    return [*text, result["verdict"]["sentence"]]


def _rows(result: dict[str, Any], baseline: str, segments: Sequence[str] = SEGMENTS) -> list[str]:
    """Pooled differences of the best arm with a language model to a baseline, a line each."""
    chosen = [
        row
        for row in result["curve"]
        if row["cutoff"] is None and (row["arm"], row["baseline"]) == (BEST_WITH, baseline)
    ]
    text = []
    for users in sorted({row["users"] for row in chosen}):
        for segment in segments:
            cells = [row for row in chosen if row["users"] == users and row["segment"] == segment]
            if not cells:  # no label of such an advertiser or user at this size
                continue
            figures = ", ".join(
                f"{row['metric']} {row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]" for row in cells
            )
            text.append(f"  {users:>7,} users, {segment:<19} {figures}")
    return text
