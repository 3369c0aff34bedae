"""What an evaluation says of one run: for its model card, which must not say more than was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from advprior.evaluation.show import comparison_table, ladder_table, notes, segment_table
from advprior.store.errors import AdvpriorError
from advprior.store.runs import manifest_digest

METRICS = ("recall@1", "recall@5", "recall@20", "mrr", "nll")


def measured(path: Path, run: Path) -> dict[str, Any]:
    """What an evaluation says of a run: its arm, the ladder, differences and segments as Markdown.

    Parameters
    ----------
    path : Path
        What ``advprior evaluate --out`` wrote, with ``run`` among its runs.
    run : Path

    Raises
    ------
    AdvpriorError
        ``CFG001`` for a file that is no evaluation, ``PRI046`` for an evaluation of other runs.
    """
    try:
        result = json.loads(path.read_text())
        about = result["about"]
        arm_by_digest = {one["digest"]: name for name, members in about["runs"].items() for one in members}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdvpriorError(
            "CFG001",
            "the evaluation cannot be read",
            where=str(path),
            actual=f"{type(error).__name__}: {error}",
            expected="what advprior evaluate --out wrote",
            fix="advprior evaluate RUN … --out FILE.json",
        ) from error
    arm = arm_by_digest.get(manifest_digest(run))
    if arm is None:
        raise AdvpriorError(
            "PRI046",
            "the evaluation is of other runs",
            where=str(path),
            actual=", ".join(about["runs"]) or "no run",
            expected=f"{run} as it is now",
            fix=f"advprior evaluate {run} --tables TABLES --cutoff T --out FILE.json",
        )
    (row,) = (row for row in result["arms"] if row["name"] == arm)
    own = {arm, f"blend + {arm}"}
    return {
        "arm": arm,
        "seeds": row["seeds"],
        "users": about["users"],
        "cutoff": about["config"]["cutoff"],
        "tables": about["inputs"]["tables"],
        "metrics": {metric: round(row[metric], 6) for metric in METRICS},
        "ladder": "\n".join(ladder_table(result)),
        "against": "\n".join(comparison_table(result, own)),
        "segments": "\n".join(segment_table(result)),
        "notes": notes(result),
    }
