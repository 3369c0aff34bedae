"""Pictures of an ablation, as matplotlib figures without pyplot: no window, no global state.

Colours tell roles apart and hold for colour-blind readers; every mark also has its number in a table.
"""

from __future__ import annotations

import base64
from io import BytesIO
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.ticker
from matplotlib.figure import Figure

from ranking.evidence.wording import plain_label, segment_label, uncapitalised

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

COLOURS = {"baseline": "#57606a", "control": "#0072b2", "treatment": "#d55e00", "placebo": "#8c959f"}
_CALIBRATION_COLOURS = (COLOURS["baseline"], COLOURS["treatment"], "#009e73")
STYLE = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8c959f",
    "axes.labelcolor": "#24292f",
    "xtick.color": "#57606a",
    "ytick.color": "#24292f",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "svg.hashsalt": "advprior",
    "svg.fonttype": "path",
    "axes.grid": True,
    "grid.color": "#eaeef2",
    "axes.axisbelow": True,
    "ytick.left": False,
}


def forest(lifts: pd.DataFrame, arms: pd.DataFrame, segments: pd.DataFrame, axis: str, width: float = 7.6) -> Figure:
    """Lift of every arm over the baseline with its interval; one panel per segment.

    Parameters
    ----------
    lifts : DataFrame
        One metric's lifts over the baseline: columns arm, segment, difference, low, high.
    arms : DataFrame
        In the order shown, from the top: columns name, label, role.
    segments : DataFrame
        In the order shown: columns name, positives, users.
    axis : str
        What the horizontal axis says.
    width : float
        Inches.
    """
    rows = {(str(row.arm), str(row.segment)): row for row in lifts.itertuples()}
    with mpl.rc_context(STYLE):
        height = 0.6 + len(segments) * (0.6 + 0.33 * len(arms))
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(len(segments), 1, squeeze=False, sharex=False)[:, 0]
        for ax, segment in zip(axes, segments.itertuples(), strict=True):
            for y, arm in enumerate(reversed(list(arms.itertuples()))):
                lift: Any = rows[str(arm.name), str(segment.name)]
                _interval(ax, y, (lift.low, lift.difference, lift.high), COLOURS[str(arm.role)])
            _zero_line(ax, [plain_label(str(label)) for label in arms["label"][::-1]])
            title = segment_label(str(segment.name))
            counts = f"({segment.positives:,} positives, {segment.users:,} users)"
            ax.set_title(f"{title}\n{counts}" if len(title) > 28 else f"{title}  {counts}")  # the panel is narrow
            ax.margins(x=0.08)
            ax.xaxis.set_major_formatter(
                lambda value, _: f"{value:+.4f}".replace("-", "−") if abs(value) > 1e-9 else "0"
            )
            ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(6))
        axes[-1].set_xlabel(axis)
        return figure


def differences(lifts: pd.DataFrame, width: float = 7.6) -> Figure:
    """Any lifts of one metric, one below the other.

    Parameters
    ----------
    lifts : DataFrame
        As `Lifts.frame` gives them, in the order shown, from the top.
    width : float
        Inches.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, 0.8 + 0.33 * len(lifts)), layout="constrained")
        ax = figure.subplots()
        names = []
        for y, row in enumerate(reversed(list(lifts.itertuples()))):
            lift: Any = row
            good = lift.low > 0 if lift.higher_is_better else lift.high < 0
            colour = COLOURS["treatment" if good else "baseline"]
            ax.plot([lift.adjusted_low, lift.adjusted_high], [y, y], color=colour, linewidth=0.9)
            _interval(ax, y, (lift.low, lift.difference, lift.high), colour, linewidth=2.6)
            if len(lift.by_cutoff) > 1:
                ax.plot(lift.by_cutoff, [y] * len(lift.by_cutoff), "o", color=colour, markersize=4, fillstyle="none")
            names.append(f"{lift.arm} − {lift.baseline}, {uncapitalised(segment_label(lift.segment))}")
        _zero_line(ax, names)
        ax.set_xlabel(f"Difference in {', '.join(dict.fromkeys(lifts['metric']))}")
        return figure


def _interval(
    ax: Any, y: float, low_middle_high: tuple[float, float, float], colour: str, linewidth: float = 2.2
) -> None:
    """A dot in its interval."""
    low, middle, high = low_middle_high
    ax.plot([low, high], [y, y], color=colour, linewidth=linewidth, solid_capstyle="round")
    ax.plot([middle], [y], "o", color=colour, markersize=6)


def _zero_line(ax: Any, names: Sequence[str]) -> None:
    """Names from the bottom up, and a line at zero."""
    ax.axvline(0, color="#24292f", linewidth=0.9)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.grid(axis="y", visible=False)


def calibration(curves: Mapping[str, Sequence[Mapping[str, float]]], width: float = 7.6) -> Figure:
    """Observed rate against predicted probability on test rows, both axes logarithmic.

    Parameters
    ----------
    curves : mapping of label to list of points
        As `ranking.evidence.metrics.calibration_curve` gives them. Three at most: more lines hide each other.
    width : float
        Inches.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, 3.6), layout="constrained")
        ax = figure.subplots()
        ends: list[float] = []
        for (label, points), colour in zip(curves.items(), _CALIBRATION_COLOURS, strict=False):
            drawn = [(p["predicted"], p["observed"]) for p in points if p["observed"] > 0]
            if not drawn:  # no positive in any bin
                continue
            x, y = zip(*drawn, strict=True)
            ax.plot(x, y, "o-", color=colour, markersize=4.5, linewidth=1.2, label=label)
            ends += [min(*x, *y), max(*x, *y)]
        if ends:
            line = [min(ends), max(ends)]
            ax.plot(line, line, color="#24292f", linewidth=0.9, linestyle=(0, (4, 3)), label="perfect")
            ax.set_xscale("log")
            ax.set_yscale("log")
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
                axis.set_minor_locator(mpl.ticker.NullLocator())
        ax.set_xlabel("Predicted probability (mean of a bin)")
        ax.set_ylabel("Observed rate")
        if ends:
            ax.legend(frameon=False, loc="upper left")
        return figure


def importance(by_group: Mapping[str, float], by_feature: Mapping[str, float], width: float = 7.6) -> Figure:
    """Share of gain: by group of features on the left, of the first features on the right.

    Parameters
    ----------
    by_group, by_feature : mapping of name to share
        Largest first. Those of priors, ``prior_…``, are coloured.
    width : float
        Inches.
    """
    sides = [("By group", dict(by_group)), (f"First {len(by_feature)} features", dict(by_feature))]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, 0.8 + 0.21 * max(len(shares) for _, shares in sides)), layout="constrained")
        for ax, (title, shares) in zip(figure.subplots(1, 2), sides, strict=True):
            names = list(shares)[::-1]
            colours = [COLOURS["treatment"] if name.startswith("prior_") else COLOURS["baseline"] for name in names]
            ax.barh(range(len(names)), [100 * shares[name] for name in names], color=colours, height=0.65)
            ax.set_yticks(range(len(names)), [_shortened(name) for name in names])
            ax.grid(axis="y", visible=False)
            ax.tick_params(axis="y", labelsize=8)
            ax.set_title(title)
            ax.set_xlabel("% of gain")
        return figure


def _shortened(name: str, most: int = 40) -> str:
    """A long name without its middle: one of hundreds of characters would leave no room for the bars."""
    half = most // 2
    return name if len(name) <= most else f"{name[: half - 1]}…{name[-half:]}"


def svg_uri(figure: Figure) -> str:
    """Figure as a ``data:`` address, so that several pictures in one page share no identifiers."""
    with mpl.rc_context(STYLE):
        out = BytesIO()
        figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode()
