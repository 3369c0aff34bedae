"""One HTML file to mail: lines to act on, then what they rest on. No script, no link, nothing to fetch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from advprior.store.runs import read_manifest
from ranking.evidence import plots
from ranking.evidence.cells import lift_cell, number
from ranking.evidence.metrics import DEFAULT_METRICS, MORE_METRICS, Auc, Conversions
from ranking.evidence.provenance import provenance
from ranking.evidence.result import AblationResult
from ranking.evidence.share_table import share_table
from ranking.evidence.steps import whole_verdict
from ranking.evidence.summary import Evidence, Manifests, costs, headline, opening_lines
from ranking.evidence.verdict import Verdict, said
from ranking.evidence.wording import interval, plain_label, segment_label, signed, uncapitalised
from ranking.evidence.worth import Price
from ranking.frame.read import SPLITS
from ranking.models.arms import Arm

REPORT_FILE = "report.html"
_TITLE = "Do advertiser priors change this ranker?"
#: Conversions have a table of their own, beside what a prior costs.
_SHOWN = tuple(metric for metric in DEFAULT_METRICS if not isinstance(metric, Conversions))
_SPLIT_LABELS = {"train": "Training", "valid": "Validation", "test": "Test"}


def write_report(
    ablation: Path,
    out: Path,
    predictor_runs: Sequence[Path] = (),
    retrieval: Mapping[str, Any] | None = None,
    price: Price | None = None,
) -> Verdict:
    """Write the report of a finished ablation.

    Parameters
    ----------
    ablation : Path
        What ``advprior rank ablate`` wrote.
    out : Path
        The HTML file.
    predictor_runs : sequence of Path
        Finetune, export or score folders whose facts belong in the report.
    retrieval : mapping, optional
        The section on candidates, as `ranking.candidates.section.retrieval_section` makes it.
    price : Price, optional
        Of an hour of computing, for the value that a conversion must have.

    Returns
    -------
    Verdict
        Over both steps where the section has them; what the conversions cost is its last step.

    Raises
    ------
    AdvpriorError
        ``RUN001`` … ``RUN003``, ``RNK026``.
    """
    result = AblationResult.load(ablation)
    manifests = {str(run): read_manifest(run) for run in predictor_runs}
    evidence = Evidence(result, manifests, (retrieval or {}).get("steps"), price)
    page = render(evidence, read_manifest(ablation), retrieval)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    verdict, worth = whole_verdict(result, evidence.steps), dict(opening_lines(evidence)).get("Worth")
    return replace(verdict, steps=[*verdict.steps, worth]) if worth else verdict


def render(evidence: Evidence, manifest: Mapping[str, Any], retrieval: Mapping[str, Any] | None = None) -> str:
    """The page as text.

    Parameters
    ----------
    evidence : Evidence
    manifest : mapping
        Of the ablation's folder.
    retrieval : mapping, optional
        As for `write_report`.
    """
    result, predictors = evidence.result, evidence.predictors
    about, settings = result.about, result.about["settings"]
    facts = about["frame_facts"]
    words, tone = headline(evidence)
    environment = Environment(
        loader=PackageLoader("ranking"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=_TITLE,
        headline=words,
        tone=tone,
        lines=opening_lines(evidence),
        verdict=result.verdict.to_json(),
        others_both=[] if evidence.steps is None else [text for _, text in evidence.steps.others.values()],
        decided=said(result.metric),
        metric=result.metric.label,
        level=result.level,
        test={"users": f"{about['splits']['test']['users']:,}"},
        replicates=f"{settings['replicates']:,}",
        seeds=settings["seeds"],
        cutoffs=_cutoffs(result),
        warnings=[*facts.get("warnings", []), *about.get("warnings", [])],
        value=_value_rows(result, predictors),
        loads=_loads(result),
        slots=result.slots,
        retrieval=retrieval or {},
        data_note=_data_note(facts),
        counts=_counts(result),
        metrics=[m.label for m in (*_SHOWN, *MORE_METRICS)],
        arms=_arms(result),
        left_out=", ".join(about.get("left_out", {})),
        lifts=[_lifts(result, segment) for segment in result.segments],
        lift_metrics=[m.label for m in _SHOWN],
        shares=share_table(result.folder, result.arms),
        comparisons=len(result.lifts),
        power=_power(result),
        best_control="" if result.best_control is None else result.arms.find(result.best_control).label,
        provenance=provenance(result, manifest, predictors),
        **_pictures(result),
    )


def _pictures(result: AblationResult) -> dict[str, str]:
    """The ablation's pictures as addresses, and whose importance is shown.

    Calibration is of the baseline, the first treatment, and the one that gains most.
    """
    baseline, treatments = result.arms.baseline, result.arms.on_trial
    name, sign = result.metric.name, 1 if result.metric.higher_is_better else -1
    best = max(treatments, key=lambda arm: sign * result.lifts.get(arm.name, baseline.name, name).difference)
    per_arm = result.about["per_arm"]
    shown = {arm.name: arm for arm in (baseline, treatments[0], best)}.values()
    curves = {arm.label: per_arm[arm.name]["calibration"] for arm in shown}
    of_first = per_arm[treatments[0].name]
    by_feature = dict(of_first["importance"][:15])
    return {
        "treatment": treatments[0].label,
        "forest": plots.svg_uri(result.plot()),
        "calibration": plots.svg_uri(plots.calibration(curves)),
        "importance": plots.svg_uri(plots.importance(dict(of_first["importance_by_group"]), by_feature)),
    }


def _data_note(facts: Mapping[str, Any]) -> str:
    """What the tables say of themselves: source and caveat."""
    data = facts.get("data", {})
    source, note = data.get("source"), str(data.get("note", "")).strip().rstrip(".")
    parts = [f"Tables: {source}." if source else "", f"{note}." if note else ""]
    return " ".join(part for part in parts if part)


def _counts(result: AblationResult) -> list[dict[str, str]]:
    about = result.about
    parts = [(_SPLIT_LABELS[name], about["splits"][name]) for name in SPLITS]
    parts += [(f"Test: {uncapitalised(segment_label(s))}", about["segments"][s]) for s in result.segments[1:]]
    return [
        {
            "label": label,
            **{key: f"{counts[key]:,}" for key in ("rows", "positives", "users", "slates")},
            "rate": f"{100 * counts['positives'] / counts['rows']:.2f} %" if counts["rows"] else "–",
        }
        for label, counts in parts
    ]


def _arms(result: AblationResult) -> list[dict[str, Any]]:
    table = result.table()
    return [
        {
            "label": arm.label,
            "role": arm.role,
            "features": result.about["per_arm"][arm.name]["features"],
            "cells": [number(float(table[m.name][arm.name])) for m in (*_SHOWN, *MORE_METRICS)],
        }
        for arm in result.arms.arms
    ]


def _lifts(result: AblationResult, segment: str) -> dict[str, Any]:
    """Rows of one segment's table: every arm over the baseline, then treatments over the others."""
    label = {arm.name: arm.label.removeprefix("+").strip() for arm in result.arms.arms}
    pairs = list(dict.fromkeys((lift.arm, lift.baseline) for lift in result.lifts))
    baseline = result.arms.baseline.name
    rows = []
    for arm, against in pairs:
        name = (
            result.arms.find(arm).label
            if against == baseline
            else f"{label[arm]} over {_short(result.arms.find(against))}"
        )
        cells = [lift_cell(result.lifts.get(arm, against, m.name, segment)) for m in _SHOWN]
        rows.append({"label": name, "cells": cells})
    counts = result.about["segments"][segment]
    return {"label": f"{segment_label(segment)} ({counts['positives']:,} positives)", "rows": rows}


def _cutoffs(result: AblationResult) -> list[dict[str, Any]]:
    """The verdict's lift at each cut-off of a pooled ablation."""
    lift = result.lifts.get(result.arms.on_trial[0].name, result.arms.baseline.name, result.metric.name)
    return [
        {**cut, "lift": signed(by)} for cut, by in zip(result.about.get("cutoffs", []), lift.by_cutoff, strict=False)
    ]


def _power(result: AblationResult) -> list[dict[str, Any]]:
    """Each lift of the verdict's metric beside what the data could have shown, and what is left of it among many."""
    baseline = result.arms.baseline.name
    return [
        {
            "label": f"{_short(result.arms.find(lift.arm))}, {uncapitalised(segment_label(lift.segment))}",
            "lift": lift_cell(lift),
            "joint": interval(lift.adjusted_low, lift.adjusted_high),
            "p": f"{lift.p:.3f}",
            "p_adjusted": f"{lift.p_adjusted:.3f}",
            "detectable": f"{lift.detectable:.4f}",
        }
        for lift in result.lifts
        if lift.metric == result.metric.name
        and lift.baseline == baseline
        and isfinite(lift.difference)
        and lift.error > 0
    ]


def _value_rows(result: AblationResult, predictors: Manifests) -> list[dict[str, Any]]:
    """Worth and cost of each arm: conversions at ad loads, their concentration, lift, and what its prior costs."""
    baseline, rows, by_arm = result.arms.baseline.name, [], costs(result, predictors)
    for arm in result.arms.arms:
        values = {row["load"]: row for row in result.about["value"] if row["arm"] == arm.name}
        lift = None if arm.is_baseline else result.lifts.get(arm.name, baseline, Conversions(result.slots).name)
        cost = by_arm[arm.name]
        rows.append(
            {
                "label": arm.label,
                "conversions": [f"{1000 * values[load]['conversions']:,.1f}" for load in _loads(result)],
                "change": None if lift is None else lift_cell(lift),
                "hhi": f"{values[result.slots]['hhi']:.4f}",
                "auc": None if lift is None else lift_cell(result.lifts.get(arm.name, baseline, Auc.name)),
                "cost": "nothing" if not arm.adds else "not recorded" if cost is None else f"{cost:,.0f} s",
            }
        )
    return rows


def _loads(result: AblationResult) -> list[int]:
    """Ad loads of the table on gain and cost."""
    return sorted({int(row["load"]) for row in result.about["value"]})


def _short(arm: Arm) -> str:
    """Label in the middle of a sentence, without what stands in brackets."""
    return uncapitalised(plain_label(arm.label))
