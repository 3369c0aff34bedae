"""Where a report's numbers come from: run keys, versions, time spans, and the facts of every run behind them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from advprior.store.contract import TimePlan
from ranking.evidence.result import AblationResult


def provenance(
    result: AblationResult, manifest: Mapping[str, Any], predictors: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Blocks of the report's last section.

    Parameters
    ----------
    result : AblationResult
    manifest : mapping
        Of the ablation's folder.
    predictors : mapping
        Name to manifest of finetune, export or score folders.

    Returns
    -------
    list of dict
        ``title`` and ``rows``, pairs of name and text.
    """
    facts = result.about["frame_facts"]
    blocks = [*_measurement(result, manifest), {"title": "Time", "rows": _times(facts)}, _frame(result)]
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


def _measurement(result: AblationResult, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    about, settings = result.about, result.about["settings"]
    return [
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
                (f"Spread of the first arm's difference in {result.metric.label} between seeds", _seed_sd(result)),
                ("Versions", _pairs(manifest.get("versions", {}))),
            ],
        },
    ]


def _frame(result: AblationResult) -> dict[str, Any]:
    frame, facts = result.about.get("frame_manifest", {}), result.about["frame_facts"]
    coverage = {p: f"{100 * c:.1f} %" for p, c in facts.get("coverage", {}).items()}
    return {
        "title": "Frame",
        "rows": [
            ("Run key", frame.get("key")),
            ("Seconds, peak memory", f"{frame.get('seconds')} s, {frame.get('peak_memory_mb')} MB"),
            ("Impressions with a prior", _pairs(coverage)),
            ("Feature services", ", ".join(facts.get("services", []))),
            ("Inputs", _pairs(frame.get("inputs") or {})),
        ],
    }


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
    first = result.arms.on_trial[0].name
    sd = result.lifts.get(first, result.arms.baseline.name, result.metric.name).seed_sd
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
