"""The drift report as one HTML file to mail: no script, no link, nothing to fetch."""

from __future__ import annotations

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from ranking.evidence.plots import STYLE, svg_uri
from ranking.monitor.findings import Drift, DriftReport
from ranking.monitor.severity import MAJOR, MODERATE

_COLOURS = {"stable": "#57606a", "moderate": "#9a6700", "major": "#b42318"}
#: Features in the first picture, and those whose distributions are drawn.
_TOP, _DRAWN = 25, 8


def render(report: DriftReport) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("ranking"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = [one for one in report.drifts if one.psi > 0][:_DRAWN]
    return environment.get_template("drift.html.j2").render(
        report=report,
        worst=report.worst(),
        findings=report.findings(),
        bars=svg_uri(bars(report.drifts[:_TOP])),
        top=_TOP,
        moderate=MODERATE,
        major=MAJOR,
        drawn=[(one, svg_uri(shares(one))) for one in drawn],
    )


def bars(drifts: list[Drift], width: float = 7.6) -> Figure:
    """The index of each feature, with the thresholds."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, 0.9 + 0.22 * max(1, len(drifts))), layout="constrained")
        ax = figure.subplots()
        shown = drifts[::-1]
        ax.barh(
            [one.name for one in shown],
            [one.psi for one in shown],
            color=[_COLOURS[one.severity] for one in shown],
            height=0.65,
        )
        ax.plot([one.expected for one in shown], range(len(shown)), "|", color="#24292f", markersize=8)
        ax.set_xlim(0, 1.05 * max(MAJOR, *(one.psi for one in shown), 0.0))
        for threshold in (MODERATE, MAJOR):
            ax.axvline(threshold, color="#24292f", linewidth=0.9, linestyle=(0, (4, 3)))
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", labelsize=8)
        ax.set_xlabel("Population stability index (dashed: thresholds; tick: what chance and its own pace explain)")
        return figure


def shares(drift: Drift, width: float = 7.6) -> Figure:
    """Share of rows by bin, in training and now."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, 2.3), layout="constrained")
        ax = figure.subplots()
        at = range(len(drift.labels))
        for counts, shift, colour, label in (
            (drift.reference, -0.2, "#8c959f", "training"),
            (drift.current, 0.2, _COLOURS[drift.severity], "now"),
        ):
            whole = sum(counts)
            ax.bar([i + shift for i in at], [100 * count / whole for count in counts], 0.4, color=colour, label=label)
        ax.set_xticks(list(at), [label.replace("$", r"\$") for label in drift.labels], rotation=35, ha="right")
        ax.tick_params(axis="x", labelsize=8)
        ax.grid(axis="x", visible=False)
        ax.set_ylabel("% of rows")
        ax.legend(frameon=False)
        return figure
