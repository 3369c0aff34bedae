"""One HTML file to mail: verdict first, then what it rests on. No script, no link, nothing to fetch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from math import isfinite
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from advprior.store.contract import TimePlan
from advprior.store.features import features_from_json
from advprior.store.runs import read_manifest
from ranking.candidates.curve import CandidateCurve
from ranking.candidates.endtoend import EFFECTS, TwoByTwo
from ranking.evidence import plots
from ranking.evidence.ablation import AblationResult
from ranking.evidence.lift import Lift
from ranking.evidence.metrics import DEFAULT_METRICS, MORE_METRICS, Auc, Conversions
from ranking.evidence.value import LOADS, scoring_price
from ranking.evidence.verdict import digits_of, segment_label, signed
from ranking.models.arms import Arm, predictors_of

REPORT_FILE = "report.html"
_TITLE = "Do advertiser priors change this ranker?"
#: Conversions have a table of their own, beside what a prior costs.
_SHOWN = tuple(metric for metric in DEFAULT_METRICS if not isinstance(metric, Conversions))
_SPLIT_LABELS = {"train": "Training", "valid": "Validation", "test": "Test"}


def write_report(
    ablation: Path,
    out: Path,
    predictor_runs: Sequence[Path] = (),
    *,
    candidates: Path | None = None,
    two_by_two: Path | None = None,
) -> str:
    """Write the report of a finished ablation.

    Parameters
    ----------
    ablation : Path
        What ``advprior rank ablate`` wrote.
    out : Path
        The HTML file.
    predictor_runs : sequence of Path
        Finetune, export or score folders whose facts belong in the report.
    candidates, two_by_two : Path, optional
        What ``advprior rank candidates`` and ``advprior rank two-by-two`` wrote.

    Returns
    -------
    str
        The verdict's sentence.

    Raises
    ------
    AdvpriorError
        ``RUN001`` … ``RUN003``, ``RNK026``.
    """
    result = AblationResult.load(ablation)
    manifests = {str(run.name): read_manifest(run) for run in predictor_runs}
    retrieval = _retrieval(
        None if candidates is None else CandidateCurve.load(candidates),
        None if two_by_two is None else TwoByTwo.load(two_by_two),
    )
    page = render(result, read_manifest(ablation), manifests, retrieval)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return result.verdict.sentence


def render(
    result: AblationResult,
    manifest: Mapping[str, Any],
    predictors: Mapping[str, Mapping[str, Any]],
    retrieval: Mapping[str, Any] | None = None,
) -> str:
    """The page as text.

    Parameters
    ----------
    result : AblationResult
    manifest : mapping
        Of the ablation's folder.
    predictors : mapping
        Name to manifest of finetune, export or score folders.
    retrieval : mapping, optional
        What `_retrieval` makes of a candidate curve and a two-by-two.
    """
    about = result.about
    facts = about["frame_facts"]
    treatment = result.arms.of_role("treatment")[0]
    settings = about["settings"]
    environment = Environment(
        loader=PackageLoader("ranking"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=_TITLE,
        verdict=result.verdict.to_json(),
        level=f"{100 * result.lifts[0].level:.0f} %",
        test={"users": f"{about['splits']['test']['users']:,}"},
        replicates=f"{settings['replicates']:,}",
        seeds=settings["seeds"],
        cutoffs=_cutoffs(result),
        warnings=[*facts.get("warnings", []), *about.get("warnings", [])],
        value=_value_rows(result, predictors),
        loads=LOADS,
        retrieval=retrieval or {},
        data_note=_data_note(facts),
        counts=_counts(result),
        metrics=[m.label for m in (*_SHOWN, *MORE_METRICS)],
        arms=_arms(result),
        left_out=", ".join(about.get("left_out", {})),
        forest=plots.svg_uri(plots.forest(result)),
        lifts=[_lifts(result, segment) for segment in result.segments],
        lift_metrics=[m.label for m in _SHOWN],
        comparisons=len(result.lifts),
        power=_power(result),
        best_control="" if result.best_control is None else result.arms.find(result.best_control).label,
        calibration=plots.svg_uri(plots.calibration(result)),
        importance=plots.svg_uri(plots.importance(result, treatment.name)),
        treatment=treatment.label,
        provenance=_provenance(result, manifest, predictors),
    )


def _retrieval(curve: CandidateCurve | None, cells: TwoByTwo | None) -> dict[str, Any]:
    """Pictures and words of candidate generation, for the page."""
    found: dict[str, Any] = {}
    if curve is not None:
        found |= {
            "k": curve.about["k"],
            "curve": plots.svg_uri(curve.plot()),
            "said": [curve.sentence(name) for name in curve.chosen],
        }
    if cells is not None:
        metrics = (f"conversions_{cells.about['slots']}", f"ndcg_{cells.about['slots']}")
        found |= {
            "about": cells.about,
            "effects": plots.svg_uri(cells.plot()),
            "cells": [
                [name, *(f"{v:.4f}" for v in row)]
                for name, row in zip(cells.table().index, cells.table().to_numpy(), strict=True)
            ],
            "rows": [
                {"label": label, "cells": [_cell(cells.lifts.get(arm, against, m)) for m in metrics]}
                for arm, against, label in EFFECTS
            ],
        }
    return found


def _data_note(facts: Mapping[str, Any]) -> str:
    """What the tables say of themselves: source and caveat."""
    data = facts.get("data", {})
    source, note = data.get("source"), str(data.get("note", "")).strip().rstrip(".")
    parts = [f"Tables: {source}." if source else "", f"{note}." if note else ""]
    return " ".join(part for part in parts if part)


def _counts(result: AblationResult) -> list[dict[str, str]]:
    about = result.about
    found = [(_SPLIT_LABELS[name], about["splits"][name]) for name in ("train", "valid", "test")]
    found += [
        (f"Test: {segment_label(s)[:1].lower()}{segment_label(s)[1:]}", about["segments"][s])
        for s in result.segments[1:]
    ]
    return [
        {
            "label": label,
            **{key: f"{counts[key]:,}" for key in ("rows", "positives", "users", "slates")},
            "rate": f"{100 * counts['positives'] / counts['rows']:.2f} %" if counts["rows"] else "–",
        }
        for label, counts in found
    ]


def _arms(result: AblationResult) -> list[dict[str, Any]]:
    table = result.table()
    return [
        {
            "label": arm.label,
            "role": arm.role,
            "features": result.about["per_arm"][arm.name]["features"],
            "cells": [_number(float(table[m.name][arm.name])) for m in (*_SHOWN, *MORE_METRICS)],
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
        cells = [_cell(result.lifts.get(arm, against, m.name, segment)) for m in _SHOWN]
        rows.append({"label": name, "cells": cells})
    counts = result.about["segments"][segment]
    return {"label": f"{segment_label(segment)} ({counts['positives']:,} positives)", "rows": rows}


def _cutoffs(result: AblationResult) -> list[dict[str, Any]]:
    """The verdict's lift at each cut-off of a pooled ablation."""
    lift = result.lifts.get(result.arms.of_role("treatment")[0].name, result.arms.baseline.name, Auc.name)
    return [
        {**cut, "lift": signed(by)} for cut, by in zip(result.about.get("cutoffs", []), lift.by_cutoff, strict=False)
    ]


def _power(result: AblationResult) -> list[dict[str, Any]]:
    """Each lift of the verdict's metric beside what the data could have shown, and what is left of it among many."""
    baseline = result.arms.baseline.name
    return [
        {
            "label": f"{_short(result.arms.find(lift.arm))}, {segment_label(lift.segment)[:1].lower()}"
            f"{segment_label(lift.segment)[1:]}",
            "lift": _cell(lift),
            "joint": f"[{signed(lift.adjusted_low)}, {signed(lift.adjusted_high)}]",
            "p": f"{lift.p:.3f}",
            "p_adjusted": f"{lift.p_adjusted:.3f}",
            "detectable": f"{lift.detectable:.4f}",
        }
        for lift in result.lifts
        if lift.metric == Auc.name and lift.baseline == baseline and isfinite(lift.difference) and lift.error > 0
    ]


def _value_rows(result: AblationResult, predictors: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Worth and price of each arm: conversions at ad loads, their concentration, lift, and what its prior costs."""
    origin = result.about["frame_facts"].get("priors", {})
    features = features_from_json(result.about["frame_facts"].get("features", []))
    runs = {str(m["facts"].get("predictor")): m for m in predictors.values() if m.get("step") == "score"}
    baseline, rows = result.arms.baseline.name, []
    for arm in result.arms.arms if "value" in result.about else ():  # an older ablation has none
        whose = predictors_of(arm, features)
        prices = [scoring_price(origin.get(name, {}), runs.get(name)) for name in whose]
        known = [price for price in prices if price is not None]
        values = {row["load"]: row for row in result.about["value"] if row["arm"] == arm.name}
        lift = None if arm.is_baseline else result.lifts.get(arm.name, baseline, Conversions().name)
        rows.append(
            {
                "label": arm.label,
                "conversions": [f"{1000 * values[load]['conversions']:,.1f}" for load in LOADS],
                "change": None if lift is None else _cell(lift),
                "hhi": f"{values[5]['hhi']:.4f}",
                "auc": None if lift is None else _cell(result.lifts.get(arm.name, baseline, Auc.name)),
                "price": "nothing" if not arm.adds else f"{sum(known):,.0f} s" if known else "not recorded",
            }
        )
    return rows


def _short(arm: Arm) -> str:
    """Label without its leading plus and what stands in brackets."""
    label = arm.label.removeprefix("+").split("(")[0].strip()
    return label if label[1:2].isupper() else label[:1].lower() + label[1:]


def _cell(lift: Lift) -> dict[str, str]:
    tone = "good" if lift.better else "bad" if lift.worse else ""
    if not isfinite(lift.difference):
        return {"tone": "", "value": "–", "range": "not measurable"}
    value, low, high = (signed(x, digits_of(lift)) for x in (lift.difference, lift.low, lift.high))
    return {"tone": tone, "value": value, "range": f"[{low}, {high}]"}


def _number(value: float) -> str:
    return f"{value:.4f}" if isfinite(value) else "–"


def _provenance(
    result: AblationResult, manifest: Mapping[str, Any], predictors: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    about, facts = result.about, result.about["frame_facts"]
    frame = about.get("frame_manifest", {})
    settings = about["settings"]
    blocks: list[dict[str, Any]] = [
        {
            "title": "This measurement",
            "rows": [
                ("Run key", manifest.get("key")),
                ("Finished", manifest.get("finished")),
                ("Seconds, peak memory", f"{manifest.get('seconds')} s, {manifest.get('peak_memory_mb')} MB"),
                ("Digest of test rows", about["test_rows"]),
                ("Seeds, replicates", f"{settings['seeds']}, {settings['replicates']}"),
                ("Ranker", _pairs(settings["ranker"])),
                ("Rounds by arm", _pairs({a: b["rounds"] for a, b in about["per_arm"].items()})),
                ("Spread of an AUC difference between seeds", _seed_sd(result)),
                ("Versions", _pairs(manifest.get("versions", {}))),
            ],
        },
        {"title": "Time", "rows": _times(facts)},
        {
            "title": "Frame",
            "rows": [
                ("Run key", frame.get("key")),
                ("Seconds, peak memory", f"{frame.get('seconds')} s, {frame.get('peak_memory_mb')} MB"),
                (
                    "Impressions with a prior",
                    _pairs({p: f"{100 * c:.1f} %" for p, c in facts.get("coverage", {}).items()}),
                ),
                ("Feature services", ", ".join(facts.get("services", []))),
                ("Inputs", _pairs(frame.get("inputs", {}))),
            ],
        },
    ]
    for name, prior in facts.get("priors", {}).items():
        blocks.append({"title": f"Prior: {name}", "rows": [(_words(k), _value(v)) for k, v in prior.items()]})
    for name, run in predictors.items():
        rows: list[tuple[str, Any]] = [(_words(k), _value(v)) for k, v in run.get("facts", {}).items()]
        rows += [
            ("Run key", run.get("key")),
            ("Seconds, peak memory", f"{run.get('seconds')} s, {run.get('peak_memory_mb')} MB"),
        ]
        blocks.append({"title": f"Run {name} ({run.get('step')})", "rows": rows})
    return [
        {**block, "rows": [(k, v) for k, v in block["rows"] if v not in (None, "", "None s, None MB")]}
        for block in blocks
    ]


def _times(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    if "time_plan" not in facts:
        return []
    plan = TimePlan.from_json(facts["time_plan"])

    def span(start: Any, end: Any) -> str:
        return f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC"

    return [
        ("Priors learn from", span(plan.start, plan.finetune_end)),
        ("Ranker trains on", span(plan.finetune_end, plan.train_end)),
        ("Validation", span(plan.train_end, plan.valid_end)),
        ("Test", span(plan.valid_end, plan.end)),
        ("Snapshots", f"every {_span(plan.snapshot_every)}, available {_span(plan.lag)} later"),
    ]


def _span(length: timedelta) -> str:
    """A length of time in its largest whole unit: ``7 days``, ``1 hour``."""
    seconds = length.total_seconds()
    for unit, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= unit and seconds % unit == 0:
            return f"{seconds / unit:.0f} {name}{'s' if seconds > unit else ''}"
    return f"{seconds:g} seconds"


def _seed_sd(result: AblationResult) -> str:
    sd = next((lift.seed_sd for lift in result.lifts if lift.metric == Auc.name), None)
    return "" if sd is None else f"{sd:.5f}"


def _words(name: str) -> str:
    """A manifest's key as words."""
    return name.replace("_", " ")[:1].upper() + name.replace("_", " ")[1:]


def _value(value: Any) -> str:
    """A manifest's value as text: numbers rounded, lists and tables on one line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return _pairs(value)
    if isinstance(value, list):
        shown = [_value(inner) for inner in value[:30]]
        return "; ".join(shown) + (f"; … {len(value) - 30} more" if len(value) > 30 else "")
    return str(value)


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_value(value)}" for key, value in values.items())
