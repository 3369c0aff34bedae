"""Pictures of retrieval: the quota's curve and the effects of the two-by-two, in the style of the ablation's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

from ranking.evidence.plots import COLOURS, STYLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

_PALETTE = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c959f")
_DASHES = ("-", "--", ":")


def quota_curve(table: pd.DataFrame, chosen: Mapping[str, float], k: int, width: float = 7.6) -> Figure:
    """Gain in recall with its interval, and concentration of advertisers, against quota.

    Parameters
    ----------
    table : DataFrame
        Of one split: columns predictor, quota, gain, low, high, hhi.
    chosen : mapping of predictor to quota
        Marked by a ring.
    k : int
        Candidates per request.
    width : float
        Inches.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, 3.2 + 0.2 * -(-len(chosen) // 5)), layout="constrained")
        left, right = figure.subplots(1, 2)
        for i, (name, quota) in enumerate(chosen.items()):
            rows = table[table["predictor"] == name]
            colour, x = _PALETTE[i % len(_PALETTE)], 100 * rows["quota"]
            dash = _DASHES[i // len(_PALETTE) % len(_DASHES)]
            left.fill_between(x, rows["low"], rows["high"], color=colour, alpha=0.15, linewidth=0)
            left.plot(x, rows["gain"], f"o{dash}", color=colour, markersize=3.5, linewidth=1.4, label=name)
            right.plot(x, rows["hhi"], f"o{dash}", color=colour, markersize=3.5, linewidth=1.4, label=name)
            at = rows[rows["quota"] == quota]
            left.plot(100 * at["quota"], at["gain"], "o", color=colour, markersize=9, fillstyle="none")
        left.axhline(0, color="#24292f", linewidth=0.9)
        left.set_title(f"Change in recall@{k}")
        right.set_title("Concentration of advertisers (HHI)")
        for ax in (left, right):
            ax.set_xlabel("Quota: % of slots for predicted advertisers")
        handles, labels = left.get_legend_handles_labels()
        title = "Priors of (ring: quota chosen on validation)"
        figure.legend(
            handles, labels, title=title, loc="outside lower center", ncols=min(len(labels), 5), frameon=False
        )
        return figure


def effects(rows: pd.DataFrame, axis: str, width: float = 7.6) -> Figure:
    """Effects of priors, with intervals.

    Parameters
    ----------
    rows : DataFrame
        One metric's effects in the order shown, from the top: columns effect, difference, low, high.
    axis : str
        What the horizontal axis says.
    width : float
        Inches.
    """
    rows = rows.iloc[::-1]
    low, high, middle = (rows[name].to_numpy(float) for name in ("low", "high", "difference"))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, 2.6), layout="constrained")
        ax = figure.subplots()
        ax.hlines(range(len(rows)), low, high, color=COLOURS["treatment"], linewidth=2.2)
        ax.plot(middle, range(len(rows)), "o", color=COLOURS["treatment"], markersize=6)
        ax.axvline(0, color="#24292f", linewidth=0.9)
        ax.set_yticks(range(len(rows)), list(rows["effect"]))
        ax.set_ylim(-0.6, len(rows) - 0.4)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel(axis)
        return figure
