"""The ranker's learning curve as a table of the report: AUC by share of the users, an arm and a share a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ranking.evidence.lift import OVERALL
from ranking.evidence.metrics import Auc
from ranking.evidence.user_shares import BEST_CONTROL, USER_SHARES_FILE
from ranking.evidence.wording import interval, plain_label, segment_label, signed, uncapitalised
from ranking.models.arms import Arms

_TONES = {"gain": "good", "loss": "bad"}


def share_table(folder: Path | None, arms: Arms) -> dict[str, Any]:
    """Heading and rows; nothing where no share of the users was measured.

    Parameters
    ----------
    folder : Path or None
        Of the ablation, or of the pooled one.
    arms : Arms
        Those of the ablation.
    """
    path = None if folder is None else folder / USER_SHARES_FILE
    if path is None or not path.is_file():
        return {}
    curve = [row for row in json.loads(path.read_text())["curve"] if row["metric"] == Auc.name]
    segments = list(dict.fromkeys(row["segment"] for row in curve))
    cells: dict[tuple[str, str, float], dict[str, dict[str, Any]]] = {}
    for row in curve:
        cells.setdefault((row["arm"], row["baseline"], row["share"]), {})[row["segment"]] = row
    names = {arm.name: uncapitalised(plain_label(arm.label)) for arm in arms.arms}
    rows = [
        {
            "label": _against(names, of_row[segments[0]]),
            "users": f"{of_row[segments[0]]['users']:,} ({100 * share:.3g} %)",
            "cells": [_cell(of_row[segment]) for segment in segments],
        }
        for (_, _, share), of_row in sorted(cells.items(), key=lambda one: _order(arms, *one[0]))
    ]
    shown = ["all" if segment == OVERALL else uncapitalised(segment_label(segment)) for segment in segments]
    return {"segments": shown, "rows": rows}


def _order(arms: Arms, arm: str, baseline: str, share: float) -> tuple[bool, int, float]:
    """Arms over the baseline in the arms' order, then those over the best control; the smallest share first."""
    return baseline == BEST_CONTROL, [one.name for one in arms.arms].index(arm), share


def _against(names: dict[str, str], row: dict[str, Any]) -> str:
    if row["baseline"] != BEST_CONTROL:
        return names[row["arm"]]
    chosen = ", ".join(names.get(name, name) for name in row["control"].split(", "))
    return f"{names[row['arm']]} over the best control ({chosen})"


def _cell(row: dict[str, Any]) -> dict[str, str]:
    """A difference with its interval, coloured where it is clear."""
    if row["difference"] is None:
        return {"tone": "", "value": "–", "range": "not measurable"}
    tone = _TONES.get(row.get("says", ""), "")
    return {"tone": tone, "value": signed(row["difference"]), "range": interval(row["low"], row["high"])}
