"""A learning curve in the terminal: the pooled differences that matter, then the sentence."""

from __future__ import annotations

from typing import Any

from advprior.evaluation.learning_curve.result import BEST_WITH, BEST_WITHOUT


def lines(result: dict[str, Any]) -> list[str]:
    """Lines of text: for each number of users, the best arm with a language model against the best without."""
    text = [f"{BEST_WITH} - {BEST_WITHOUT} [95 %], pooled over {len(result['about']['cutoffs'])} cut-offs"]
    best = [
        row
        for row in result["curve"]
        if row["cutoff"] is None and (row["arm"], row["baseline"]) == (BEST_WITH, BEST_WITHOUT)
    ]
    for users in sorted({row["users"] for row in best}):
        for segment in dict.fromkeys(row["segment"] for row in best):
            cells = [row for row in best if row["users"] == users and row["segment"] == segment]
            if not cells:  # no label of such an advertiser or user at this size
                continue
            figures = ", ".join(
                f"{row['metric']} {row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]" for row in cells
            )
            text.append(f"  {users:>7,} users, {segment:<19} {figures}")
    if result["cells_without_labels"]:
        text.append(f"note: {result['cells_without_labels']} cells had no label before their cut-off to fit on")
    text += [f"warning: {warning}" for warning in result["warnings"]]
    return [*text, result["verdict"]["sentence"]]
