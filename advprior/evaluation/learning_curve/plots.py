"""The picture of a learning curve: gain against users, pooled, with its interval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from advprior.evaluation.learning_curve.arms import LEXICAL
from advprior.evaluation.learning_curve.result import BEST_WITH, BEST_WITHOUT, HIGHER_IS_BETTER
from advprior.evaluation.terms import LOGIT

#: (arm, baseline), what it is called, colour: as elsewhere, they hold for colour-blind readers
CURVES = (
    ((BEST_WITH, BEST_WITHOUT), "language model over the best without", "#d55e00"),
    ((LEXICAL, LOGIT), "words without a model over no text", "#0072b2"),
)
LABELS = {"recall@5": "Recall@5, gain", "nll": "nats a label, gain"}


def draw(result: dict[str, Any], path: Path) -> None:
    """Write an SVG with one panel a metric; nothing where there is no pooled row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, (metric, label) in zip(figure.subplots(1, len(LABELS)), LABELS.items(), strict=True):
        sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0
        for pair, called, colour in CURVES:
            rows = sorted(
                (
                    row
                    for row in result["curve"]
                    if row["cutoff"] is None
                    and row["segment"] == "overall"
                    and (row["arm"], row["baseline"], row["metric"]) == (*pair, metric)
                ),
                key=lambda row: row["users"],
            )
            users = [row["users"] for row in rows]
            ends = [sorted((sign * row["low"], sign * row["high"])) for row in rows]
            axes.plot(users, [sign * row["difference"] for row in rows], "o-", color=colour, label=called, ms=4)
            axes.fill_between(users, [low for low, _ in ends], [high for _, high in ends], color=colour, alpha=0.15)
        axes.axhline(0.0, color="#8c959f", lw=0.8)
        axes.set_xscale("log")
        axes.set_xlabel("users that everything is fitted on")
        axes.set_ylabel(label)
    figure.axes[0].legend(frameon=False, fontsize=8)
    beside = path.with_suffix(".tmp.svg")
    figure.savefig(beside)
    beside.rename(path)
