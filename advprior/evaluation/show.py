"""The result of an evaluation as text, as Markdown to paste into a README, and as data frames."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("text", "md")


def render(result: dict[str, Any], form: str) -> list[str]:
    """Lines of ``result`` in one of `FORMATS`."""
    return markdown(result) if form == "md" else lines(result)


def frame(result: dict[str, Any], part: str = "arms") -> pd.DataFrame:
    """``arms``, ``comparisons`` or ``segments`` of a result as a data frame."""
    import pandas as pd

    return pd.DataFrame(result[part])


def lines(result: dict[str, Any]) -> list[str]:
    """The tables of arms and of overall Recall@5 differences, as text."""
    width = max(len(_called(row)) for row in result["arms"])
    text = [
        *_headline(result),
        f"{'arm':<{width}}  recall@1  recall@5  recall@20     mrr     nll",
    ]
    for called, rows in (("", result["arms"]), ("profile only", _alone(result))):
        if called and rows:
            text.append(f"{called}: {rows[0]['users']} users without an event before the cut-off")
        text += [
            f"{_called(r):<{width}}  {r['recall@1']:8.4f}  {r['recall@5']:8.4f}  {r['recall@20']:9.4f}"
            f"  {r['mrr']:6.4f}  {r['nll']:6.3f}"
            for r in rows
        ]
    text.append("recall@5, arm - baseline [95 %]")
    text += [
        f"  {c['arm']} - {c['baseline']}: {c['difference']:+.4f} [{c['low']:+.4f}, {c['high']:+.4f}]{_relative(c)}"
        for c in _overall(result)
    ]
    return text + [f"note: {note}" for note in notes(result)]


def markdown(result: dict[str, Any]) -> list[str]:
    """The ladder, Recall@5 by segment, and the differences, as Markdown tables."""
    tables = (ladder_table(result), segment_table(result), comparison_table(result))
    text = [*_headline(result)]
    for table in tables:
        text += ["", *table]
    remarks = notes(result)
    return text + ([""] + [f"- {note}" for note in remarks] if remarks else [])


def ladder_table(result: dict[str, Any]) -> list[str]:
    """Every arm and metric as a Markdown table."""
    return ["| arm | Recall@1 | Recall@5 | Recall@20 | MRR | NLL |", "|---" * 6 + "|"] + [
        f"| {_called(r)} | {r['recall@1']:.4f} | {r['recall@5']:.4f} | {r['recall@20']:.4f} | {r['mrr']:.4f} "
        f"| {r['nll']:.3f} |"
        for r in result["arms"]
    ]


def segment_table(result: dict[str, Any]) -> list[str]:
    """Recall@5 of every arm by segment as a Markdown table."""
    people = {row["segment"]: row["users"] for row in result["segments"]}
    cells = {(row["arm"], row["segment"]): row["recall@5"] for row in result["segments"]}
    heads = [f"{name} ({users})" for name, users in people.items()]
    table = [f"| Recall@5 (users) | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for r in result["arms"]:
        values = [cells.get((r["name"], name)) for name in people]
        table.append(f"| {_called(r)} | {' | '.join('' if v is None else f'{v:.4f}' for v in values)} |")
    return table


def comparison_table(result: dict[str, Any], arms: Collection[str] | None = None) -> list[str]:
    """Overall differences in Recall@5, of some arms or of all, as a Markdown table."""
    return ["| Recall@5 | against | difference [95 %] | relative |", "|---" * 4 + "|"] + [
        f"| {c['arm']} | {c['baseline']} | {c['difference']:+.4f} [{c['low']:+.4f}, {c['high']:+.4f}] "
        f"| {'' if c['relative'] is None else format(c['relative'], '+.1%')} |"
        for c in _overall(result)
        if arms is None or c["arm"] in arms
    ]


def notes(result: dict[str, Any]) -> list[str]:
    """What a reader of the tables must know besides."""
    about = result["about"]
    remarks = [f"left out: {arm} ({why})" for arm, why in about["left_out"].items()]
    remarks += [_saw_labels(name, about) for name in about["saw_the_blend_labels"]]
    several = [row for row in result["arms"] if row["seeds"] > 1 and not row["name"].startswith("blend")]
    remarks += [
        f"{row['name']}: recall@5 of its seeds {', '.join(f'{v:.4f}' for v in row['by_seed']['recall@5'])}"
        for row in several
    ]
    return remarks


def _saw_labels(name: str, about: dict[str, Any]) -> str:
    if name in about.get("trained_on_the_blend_labels", (name,)):
        return (
            f"{name} saw the labels that weigh it in the blend, which overstates it there, and it is not among those "
            "that the best control is chosen from; --earlier fixes that"
        )
    return (
        f"{name} was trained before the labels that weigh it in the blend, but its offset, strength and epoch were "
        "chosen on them, which overstates it there a little"
    )


def _headline(result: dict[str, Any]) -> list[str]:
    about = result["about"]
    return [
        f"{about['users']} users, {about['advertisers']} advertisers, labels from {about['config']['cutoff']}; "
        f"settings and blends fitted at {about['fitted_at']}; "
        f"best control on the labels before: {about['best_control']['name']}"
    ]


def _called(row: dict[str, Any]) -> str:
    name = row.get("name", row.get("arm", ""))
    return f"{name} x{row['seeds']}" if row["seeds"] > 1 else str(name)


def _alone(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in result["segments"] if row["segment"] == "profile only"]


def _overall(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [c for c in result["comparisons"] if c["metric"] == "recall@5" and c["segment"] == "overall"]


def _relative(comparison: dict[str, Any]) -> str:
    return "" if comparison["relative"] is None else f"  ({comparison['relative']:+.1%})"
