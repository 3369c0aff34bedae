"""The part of a report that is about retrieval: pictures, words and numbers, ready for the template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ranking.candidates.cells import BOTH, CONTROL, EFFECTS, NEITHER
from ranking.candidates.curve import CandidateCurve
from ranking.candidates.endtoend import TwoByTwo
from ranking.evidence.cells import lift_cell
from ranking.evidence.plots import svg_uri
from ranking.evidence.steps import Steps


def retrieval_section(candidates: Path | None = None, two_by_two: Path | None = None) -> dict[str, Any]:
    """What the report says of finished ``advprior rank candidates`` and ``rank two-by-two`` runs.

    Parameters
    ----------
    candidates, two_by_two : Path, optional
        Their folders.

    Returns
    -------
    dict
        ``curve``, ``k``, ``sentences`` of the first; ``steps``, ``sentences_of_cells``, ``effects``, ``cells``,
        ``rows``, ``about``, ``quota``, ``cutoffs`` of the second; nothing of what was not given.

    Raises
    ------
    AdvpriorError
        ``RUN001`` … ``RUN003``, ``RNK032``.
    """
    section: dict[str, Any] = {}
    if candidates is not None:
        section |= _of_curve(CandidateCurve.load(candidates))
    if two_by_two is not None:
        section |= _of_cells(TwoByTwo.load(two_by_two))
    return section


def steps_of(result: TwoByTwo) -> Steps:
    """What leads a verdict: both steps, each by itself, and every other treatment over both."""
    effects = [(name, against) for name, against, _ in EFFECTS if against == NEITHER]
    both, retrieval, ranking = (result.claim(*effect) for effect in effects)
    others = {
        arm: (result.claim(BOTH, NEITHER, arm, joint=True), result.sentence(BOTH, NEITHER, arm))
        for arm in result.treatments
        if arm != result.arm
    }
    named = {arm: result.references(arm).get(CONTROL) for arm in result.treatments}
    controls = {arm: control for arm, control in named.items() if control is not None}
    first, second, third = (result.sentence(*effect) for effect in effects)
    return Steps(result.arm, both, retrieval, ranking, (first, second, third), others, controls, tuple(result.cutoffs))


def _of_curve(curve: CandidateCurve) -> dict[str, Any]:
    return {
        "k": curve.about["k"],
        "curve": svg_uri(curve.plot()),
        "sentences": [curve.sentence(name) for name in curve.told],
    }


def _of_cells(result: TwoByTwo) -> dict[str, Any]:
    slots = result.about["slots"]
    metrics = (f"conversions_{slots}", f"ndcg_{slots}")
    table = result.table()
    return {
        "about": result.about,
        "quota": _quotas(result),
        "cutoffs": result.about.get("cutoffs", []),
        "steps": steps_of(result),
        "sentences_of_cells": [*result.sentences(), *result.others()],
        "effects": svg_uri(result.plot()),
        "cells": [[name, *(f"{v:.4f}" for v in row)] for name, row in zip(table.index, table.to_numpy(), strict=True)],
        "rows": [
            {"label": label, "cells": [lift_cell(result.lifts.get(arm, against, m)) for m in metrics]}
            for arm, against, label in EFFECTS
        ],
    }


def _quotas(result: TwoByTwo) -> str:
    """Slots for predicted advertisers, of each cut-off where there are several."""
    quotas = [row["quota"] for row in result.about.get("cutoffs", [])] or [result.about["quota"]]
    return ", ".join(f"{100 * quota:.0f} %" for quota in quotas)
