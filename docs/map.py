"""Draw docs/map.svg, when a prior from texts pays, from the table of docs/results.md: `python docs/map.py`.

One panel a data set: nats a label that texts gain, against the users that everything is fitted on. The figures stand in
the table alone; a test draws the picture again and compares.
"""

from __future__ import annotations

import math
import re
from html import escape
from pathlib import Path

DOCS = Path(__file__).parent
TARGET = DOCS / "map.svg"
#: Heading of a column with a change of NLL, what the picture calls it, colour: they hold for colour-blind readers.
CURVES = (
    ("words − counts", "words alone (no model) over counts", "#0072b2"),
    ("with a model − counts", "with a language model over counts", "#d55e00"),
    ("with a model − best without", "with a language model over the best without", "#24292f"),
)
WIDTH, HEIGHT, TOP, BOTTOM, LEFT, GAP = 860, 330, 60, 250, 60, 34
_LIFT = re.compile(r"([+−]?\d+\.\d+) \[([+−]?\d+\.\d+), ([+−]?\d+\.\d+)\]")

Rows = dict[str, list[tuple[int, dict[str, tuple[float, float, float]]]]]


def rows_of(text: str) -> Rows:
    """By data set, users and the gains (difference, low, high) of each curve, from the page's table.

    Raises
    ------
    LookupError
        If no table has all the columns.
    """
    rows: Rows = {}
    heading: list[str] = []
    for line in text.splitlines():
        cells = [part.strip() for part in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells or not heading:
            heading = cells
        elif all(name in heading for name, _, _ in CURVES) and not set(cells[0]) <= set("-: "):
            gains = {name: _gain(cells[heading.index(name)]) for name, _, _ in CURVES}
            rows.setdefault(cells[0], []).append((int(cells[1].replace(",", "")), gains))
    if not rows:
        raise LookupError("no table of results.md has the columns of the map")
    return rows


def _gain(cell: str) -> tuple[float, float, float]:
    """A change of NLL as a gain: lower is better."""
    match = _LIFT.search(cell)
    if match is None:
        raise LookupError(f"no difference [low, high]: {cell!r}")
    middle, low, high = (-float(value.replace("−", "-")) for value in match.groups())
    return middle, high, low


def _text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}"{more}>{escape(words, quote=False)}</text>'


def _panel(
    data: str, rows: list[tuple[int, dict[str, tuple[float, float, float]]]], at: int, width: float
) -> list[str]:
    """The lines of one panel on an axis of its own."""
    left = LEFT + at * (width + GAP)
    logs = [math.log10(users) for users, _ in rows]
    ends = [end for _, gains in rows for _, low, high in gains.values() for end in (low, high)]
    lowest, highest = min(0.0, *ends), max(0.0, *ends)

    def x(users: int) -> float:
        return left + 8 + (math.log10(users) - logs[0]) / (logs[-1] - logs[0] or 1.0) * (width - 16)

    def y(gain: float) -> float:
        return BOTTOM - (gain - lowest) / (highest - lowest or 1.0) * (BOTTOM - TOP)

    lines = [
        _text(left, TOP - 14, data, ' font-weight="bold"'),
        f'<line x1="{left:.1f}" y1="{y(0):.1f}" x2="{left + width:.1f}" y2="{y(0):.1f}" stroke="#8c959f"/>',
        _text(left - 6, y(0) + 4, "0", ' font-size="11" text-anchor="end" fill="#57606a"'),
        _text(left - 6, y(highest) + 4, f"{highest:.2f}", ' font-size="11" text-anchor="end" fill="#57606a"'),
    ]
    lines += [
        _text(x(users), BOTTOM + 16, f"{users:,}", ' font-size="11" text-anchor="middle" fill="#57606a"')
        for users, _ in rows
    ]
    for place, (name, _, colour) in enumerate(CURVES):
        points = [(x(users) + 3 * (place - 1), gains[name]) for users, gains in rows]
        path = " ".join(f"{a:.1f},{y(gain[0]):.1f}" for a, gain in points)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for a, (middle, low, high) in points:
            lines += [
                f'<line x1="{a:.1f}" y1="{y(low):.1f}" x2="{a:.1f}" y2="{y(high):.1f}" stroke="{colour}"/>',
                f'<circle cx="{a:.1f}" cy="{y(middle):.1f}" r="3" fill="{colour}"/>',
            ]
    return lines


def draw(text: str) -> str:
    """The picture of a results page.

    Parameters
    ----------
    text : str
        Of docs/results.md.
    """
    by_data = rows_of(text)
    width = (WIDTH - LEFT - 16 - GAP * (len(by_data) - 1)) / len(by_data)
    lines = [line for at, (data, rows) in enumerate(by_data.items()) for line in _panel(data, rows, at, width)]
    for place, (_, called, colour) in enumerate(CURVES):
        left = 16 + place * 270
        lines += [f'<circle cx="{left + 4}" cy="{HEIGHT - 34}" r="4" fill="{colour}"/>']
        lines.append(_text(left + 14, HEIGHT - 30, called, ' font-size="12"'))
    caption = "Nats a label gained, 95 % interval, by users that everything is fitted on; three cut-offs pooled."
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img"'
            ' font-family="Helvetica, Arial, sans-serif" font-size="13" fill="#24292f">',
            "<title>When a prior from texts pays, by number of users</title>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
            *lines,
            _text(16, HEIGHT - 10, caption, ' fill="#57606a" font-size="12"'),
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    TARGET.write_text(draw((DOCS / "results.md").read_text()))
