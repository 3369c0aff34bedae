"""Pictures of an ablation, as matplotlib figures without pyplot: no window, no global state.

Colours tell roles apart and hold for colour-blind readers; every mark also has its number in a table.
"""

from __future__ import annotations

import base64
from io import BytesIO
from typing import TYPE_CHECKING

import matplotlib as mpl
import matplotlib.ticker
from matplotlib.figure import Figure

from ranking.evidence.metrics import DEFAULT_METRICS, Auc
from ranking.evidence.verdict import segment_label

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ranking.candidates.curve import CandidateCurve
    from ranking.candidates.endtoend import TwoByTwo
    from ranking.evidence.ablation import AblationResult
    from ranking.evidence.lift import Lift

COLOURS = {"baseline": "#57606a", "control": "#0072b2", "treatment": "#d55e00", "placebo": "#8c959f"}
_STYLE = {
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


def forest(result: AblationResult, metric: str = Auc.name, width: float = 7.6) -> Figure:
    """Lift of every arm over the baseline with its interval; one panel per segment.

    Parameters
    ----------
    result : AblationResult
    metric : str
        Name of a metric that has lifts.
    width : float
        Inches.
    """
    arms = [arm for arm in result.arms.arms if not arm.is_baseline]
    label = next(m.label for m in DEFAULT_METRICS if m.name == metric)
    panels = result.segments
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, 0.6 + len(panels) * (0.6 + 0.33 * len(arms))), layout="constrained")
        axes = figure.subplots(len(panels), 1, squeeze=False, sharex=False)[:, 0]
        for ax, segment in zip(axes, panels, strict=True):
            for y, arm in enumerate(reversed(arms)):
                lift = result.lifts.get(arm.name, result.arms.baseline.name, metric, segment)
                colour = COLOURS[arm.role]
                ax.plot([lift.low, lift.high], [y, y], color=colour, linewidth=2.2, solid_capstyle="round")
                ax.plot([lift.difference], [y], "o", color=colour, markersize=6)
            counts = result.about["segments"][segment]
            ax.axvline(0, color="#24292f", linewidth=0.9)
            ax.set_yticks(range(len(arms)), [short(arm.label) for arm in reversed(arms)])
            ax.set_ylim(-0.6, len(arms) - 0.4)
            ax.grid(axis="y", visible=False)
            title = segment_label(segment)
            rows = f"({counts['positives']:,} positives, {counts['users']:,} users)"
            ax.set_title(f"{title}\n{rows}" if len(title) > 28 else f"{title}  {rows}")  # the panel is narrow
            ax.margins(x=0.08)
            ax.xaxis.set_major_formatter(
                lambda value, _: f"{value:+.4f}".replace("-", "−") if abs(value) > 1e-9 else "0"
            )
            ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(6))
        axes[-1].set_xlabel(
            f"Difference in {label} from “{result.arms.baseline.label}”, with {_level(result)} interval"
        )
        return figure


def differences(lifts: Sequence[Lift], width: float = 7.6) -> Figure:
    """Any lifts of one metric, one below the other.

    Parameters
    ----------
    lifts : sequence of Lift
        In the order shown, from the top.
    width : float
        Inches.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, 0.8 + 0.33 * len(lifts)), layout="constrained")
        ax = figure.subplots()
        for y, lift in enumerate(reversed(lifts)):
            colour = COLOURS["treatment" if lift.better else "baseline"]
            ax.plot([lift.adjusted_low, lift.adjusted_high], [y, y], color=colour, linewidth=0.9)
            ax.plot([lift.low, lift.high], [y, y], color=colour, linewidth=2.6, solid_capstyle="round")
            ax.plot([lift.difference], [y], "o", color=colour, markersize=6)
            if len(lift.by_cutoff) > 1:
                ax.plot(lift.by_cutoff, [y] * len(lift.by_cutoff), "o", color=colour, markersize=4, fillstyle="none")
        names = [f"{lift.arm} − {lift.baseline}, {segment_label(lift.segment).lower()}" for lift in reversed(lifts)]
        ax.axvline(0, color="#24292f", linewidth=0.9)
        ax.set_yticks(range(len(lifts)), names)
        ax.set_ylim(-0.6, len(lifts) - 0.4)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel(f"Difference in {', '.join(dict.fromkeys(lift.metric for lift in lifts))}")
        return figure


def calibration(result: AblationResult, width: float = 7.6) -> Figure:
    """Observed rate against predicted probability on test rows, both axes logarithmic.

    Of the baseline, the first treatment, and the one that gains most: more lines than that hide each other.
    """
    treatments, baseline = result.arms.of_role("treatment"), result.arms.baseline.name
    gains = {arm.name: result.lifts.get(arm.name, baseline, Auc.name).difference for arm in treatments}
    best = max(treatments, key=lambda arm: gains[arm.name])
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, 3.6), layout="constrained")
        ax = figure.subplots()
        lowest = highest = None
        shown = {arm.name: arm for arm in (result.arms.baseline, treatments[0], best)}.values()
        for arm, colour in zip(shown, (COLOURS["baseline"], COLOURS["treatment"], "#009e73"), strict=False):
            points = [p for p in result.about["per_arm"][arm.name]["calibration"] if p["observed"] > 0]
            x, y = [p["predicted"] for p in points], [p["observed"] for p in points]
            ax.plot(x, y, "o-", color=colour, markersize=4.5, linewidth=1.2, label=arm.label)
            lowest, highest = min([*x, *y, lowest or 1.0]), max([*x, *y, highest or 0.0])
        if lowest and highest:
            ax.plot(
                [lowest, highest],
                [lowest, highest],
                color="#24292f",
                linewidth=0.9,
                linestyle=(0, (4, 3)),
                label="perfect",
            )
            ax.set_xscale("log")
            ax.set_yscale("log")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
            axis.set_minor_locator(mpl.ticker.NullLocator())
        ax.set_xlabel("Predicted probability (mean of a bin)")
        ax.set_ylabel("Observed rate")
        ax.legend(frameon=False, loc="upper left")
        return figure


def importance(result: AblationResult, arm: str, width: float = 7.6, top: int = 15) -> Figure:
    """Share of gain: by group of features on the left, of the first features on the right."""
    about = result.about["per_arm"][arm]
    sides = [
        ("By group", dict(about["importance_by_group"])),
        (f"First {top} features", dict(about["importance"][:top])),
    ]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, 0.8 + 0.21 * max(len(shares) for _, shares in sides)), layout="constrained")
        for ax, (title, shares) in zip(figure.subplots(1, 2), sides, strict=True):
            names = list(shares)[::-1]
            colours = [COLOURS["treatment"] if name.startswith("prior_") else COLOURS["baseline"] for name in names]
            ax.barh(names, [100 * shares[name] for name in names], color=colours, height=0.65)
            ax.grid(axis="y", visible=False)
            ax.tick_params(axis="y", labelsize=8)
            ax.set_title(title)
            ax.set_xlabel("% of gain")
        return figure


def short(label: str) -> str:
    """A label without what it adds in brackets, for a picture's margin.

    >>> short("+ placebo (LLM priors of other users)")
    '+ placebo'
    """
    return label.split("(")[0].strip()


def svg_uri(figure: Figure) -> str:
    """Figure as a ``data:`` address, so that several pictures in one page share no identifiers."""
    with mpl.rc_context(_STYLE):
        out = BytesIO()
        figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode()


def _level(result: AblationResult) -> str:
    return f"{100 * result.lifts[0].level:.0f} %" if result.lifts else "95 %"


def candidate_curve(curve: CandidateCurve, width: float = 7.6) -> Figure:
    """Gain in recall with its interval, and concentration of advertisers, against quota, on test requests.

    Parameters
    ----------
    curve : CandidateCurve
    width : float
        Inches.
    """
    palette = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c959f")
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, 3.2 + 0.2 * -(-len(curve.chosen) // 5)), layout="constrained")
        left, right = figure.subplots(1, 2)
        for i, (name, quota) in enumerate(curve.chosen.items()):
            rows = curve.table[(curve.table["predictor"] == name) & (curve.table["split"] == "test")]
            colour, x = palette[i % len(palette)], 100 * rows["quota"]
            dash = ("-", "--", ":")[i // len(palette) % 3]
            left.fill_between(x, rows["low"], rows["high"], color=colour, alpha=0.15, linewidth=0)
            left.plot(x, rows["gain"], f"o{dash}", color=colour, markersize=3.5, linewidth=1.4, label=name)
            right.plot(x, rows["hhi"], f"o{dash}", color=colour, markersize=3.5, linewidth=1.4, label=name)
            at = rows[rows["quota"] == quota]
            left.plot(100 * at["quota"], at["gain"], "o", color=colour, markersize=9, fillstyle="none")
        left.axhline(0, color="#24292f", linewidth=0.9)
        left.set_title(f"Change in recall@{curve.about['k']}")
        right.set_title("Concentration of advertisers (HHI)")
        for ax in (left, right):
            ax.set_xlabel("Quota: % of slots for predicted advertisers")
        handles, labels = left.get_legend_handles_labels()
        title = "Priors of (ring: quota chosen on validation)"
        figure.legend(
            handles, labels, title=title, loc="outside lower center", ncols=min(len(labels), 5), frameon=False
        )
        return figure


def effects(result: TwoByTwo, width: float = 7.6) -> Figure:
    """Effects of priors on conversions per slate, with intervals.

    Parameters
    ----------
    result : TwoByTwo
    width : float
        Inches.
    """
    slots = result.about["slots"]
    table = result.frame()
    rows = table[table["metric"] == f"conversions_{slots}"].iloc[::-1]
    low, high, middle = (rows[name].to_numpy(float) for name in ("low", "high", "difference"))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, 2.6), layout="constrained")
        ax = figure.subplots()
        ax.hlines(range(len(rows)), low, high, color=COLOURS["treatment"], linewidth=2.2)
        ax.plot(middle, range(len(rows)), "o", color=COLOURS["treatment"], markersize=6)
        ax.axvline(0, color="#24292f", linewidth=0.9)
        ax.set_yticks(range(len(rows)), list(rows["effect"]))
        ax.set_ylim(-0.6, len(rows) - 0.4)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel(f"Change in conversions per slate at {slots} of {result.about['k']} candidates, 95 % interval")
        return figure
