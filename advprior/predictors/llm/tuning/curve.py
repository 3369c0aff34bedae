"""The loss curve of a fit as files to look at: a table and, where matplotlib is there, a drawing."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

CSV_FILE, SVG_FILE = "curve.csv", "curve.svg"


def write_curve(folder: Path, stages: dict[str, list[dict[str, Any]]]) -> None:
    """Write ``curve.csv`` (a row an epoch) and ``curve.svg``.

    Parameters
    ----------
    folder : Path
    stages : dict
        Curve by stage, in order: ``{"sft": rows, "ranking": rows}``.
    """
    rows = [{"stage": stage, **row} for stage, curve in stages.items() for row in curve]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / CSV_FILE).open("w", newline="") as handle:
        writer = csv.DictWriter(handle, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    draw_curve(folder / SVG_FILE, stages)


def draw_curve(path: Path, stages: dict[str, list[dict[str, Any]]]) -> bool:
    """Draw train and validation likelihood and Recall@5 by epoch; False where matplotlib is not installed."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        return False
    # text stays text, and the same curve is the same file
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "curve"}):
        figure = Figure(figsize=(8, 3))
        figure.subplots_adjust(left=0.1, right=0.98, bottom=0.16, top=0.96, wspace=0.3)
        likelihood, recall = figure.subplots(1, 2)
        start = 0
        for stage, curve in stages.items():
            epochs = [start + row["epoch"] for row in curve]
            for axis, name in ((likelihood, "train_nll"), (likelihood, "valid_nll"), (recall, "valid_recall@5")):
                if curve and name in curve[0]:
                    axis.plot(epochs, [row[name] for row in curve], marker="o", markersize=3, label=f"{name}, {stage}")
            start = epochs[-1] if epochs else start
        likelihood.set(xlabel="epoch", ylabel="nats a target")
        recall.set(xlabel="epoch", ylabel="recall@5, validation")
        for axis in (likelihood, recall):
            if axis.lines:
                axis.legend(frameon=False, fontsize="small")
        figure.savefig(path, format="svg", metadata={"Date": None})
    return True
