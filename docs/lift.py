"""Draw docs/lift.svg, README's picture, from the tables of docs/results.md: `python docs/lift.py`.

The figures stand in one place, the tables; a test draws the picture again and compares. Plain SVG with text as text: a
few kilobytes, and a change of one figure is a change of one line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from pathlib import Path

DOCS = Path(__file__).parent
TARGET = DOCS / "lift.svg"
#: As in the report: they tell roles apart and hold for colour-blind readers.
COLOURS = {"prior": "#d55e00", "control": "#0072b2", "placebo": "#8c959f"}
WIDTH, LEFT, RIGHT, ROW, TOP = 860, 300, 640, 24, 44
_LIFT = re.compile(r"([+−]?\d+\.\d+) \[([+−]?\d+\.\d+), ([+−]?\d+\.\d+)\]")


@dataclass(frozen=True)
class Panel:
    """A group of rows on one axis.

    Parameters
    ----------
    title : str
    column : str
        Heading of the column that holds ``difference [low, high]``.
    rows : tuple of (str, str, str)
        First cell of the table's row, what the picture calls it, its role (a key of `COLOURS`).
    """

    title: str
    column: str
    rows: tuple[tuple[str, str, str], ...]


ROWS = (
    ("**LLM text prior by category**", "LLM text prior by category", "prior"),
    ("MiniLM text prior by category", "MiniLM text prior by category", "prior"),
    ("Words alone by category", "Words alone (lexical control)", "control"),
    ("Text prior by category, random-weight control", "Random-weight control", "control"),
    ("Neighbours by category", "Neighbours by category", "control"),
    ("*Placebo* of the LLM text prior by category", "Placebo of the LLM text prior", "placebo"),
)
PANELS = (
    Panel("Conversions per slate, candidates and ranking together", "both", ROWS),
    Panel("AUC of the ranker by itself", "lift [95 %]", ROWS),
)


def cell(text: str, row: str, column: str) -> tuple[float, float, float]:
    """Difference, low and high of a table's row.

    Parameters
    ----------
    text : str
        A Markdown page with tables.
    row, column : str
        The first cell of the row; the heading of the column.

    Raises
    ------
    LookupError
        If no table has both, or the cell is no ``difference [low, high]``.
    """
    heading: list[str] = []
    for line in text.splitlines():
        cells = [part.strip() for part in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            heading = []
        elif not heading:
            heading = cells
        elif cells[0] == row and column in heading:
            match = _LIFT.search(cells[heading.index(column)])
            if match:
                low, middle, high = sorted(float(value.replace("−", "-")) for value in match.groups())
                return middle, low, high
    raise LookupError(f"no table of results.md has a row {row!r} with {column!r}")


def _number(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−") if round(value, 4) else "0.0000"


def _text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}"{more}>{escape(words, quote=False)}</text>'


def _panel(panel: Panel, text: str, top: float) -> tuple[list[str], float]:
    """The lines of one panel, and where it ends."""
    values = [cell(text, row, panel.column) for row, _, _ in panel.rows]
    lowest, highest = min(low for _, low, _ in values), max(high for _, _, high in values)

    def x(value: float) -> float:
        return LEFT + (value - lowest) / (highest - lowest) * (RIGHT - LEFT)

    bottom = top + ROW * len(panel.rows)
    lines = [
        _text(16, top - 14, panel.title, ' font-weight="bold"'),
        f'<line x1="{x(0):.1f}" y1="{top - 6:.0f}" x2="{x(0):.1f}" y2="{bottom:.0f}" stroke="#24292f"/>',
        _text(x(0), bottom + 13, "0", ' font-size="11" text-anchor="middle" fill="#57606a"'),
    ]
    for number, ((_, label, role), (middle, low, high)) in enumerate(zip(panel.rows, values, strict=True)):
        y, colour = top + ROW * number + 10, COLOURS[role]
        lines += [
            _text(16, y + 4, label),
            f'<line x1="{x(low):.1f}" y1="{y:.0f}" x2="{x(high):.1f}" y2="{y:.0f}"'
            f' stroke="{colour}" stroke-width="3"/>',
            f'<circle cx="{x(middle):.1f}" cy="{y:.0f}" r="4.5" fill="{colour}"/>',
            _text(RIGHT + 16, y + 4, f"{_number(middle)} [{_number(low)}, {_number(high)}]"),
        ]
    return lines, bottom


def draw(text: str) -> str:
    """The picture of a results page.

    Parameters
    ----------
    text : str
        Of docs/results.md.
    """
    lines: list[str] = []
    top = float(TOP)
    for panel in PANELS:
        drawn, bottom = _panel(panel, text, top)
        lines += drawn
        top = bottom + 56
    height = top - 8
    caption = "Difference from the history baseline, 95 % interval. 801 households of the demo's data, three cut-offs."
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" role="img"'
            ' font-family="Helvetica, Arial, sans-serif" font-size="13" fill="#24292f">',
            "<title>Gain of each prior over the history baseline</title>",
            f'<rect width="{WIDTH}" height="{height:.0f}" fill="#ffffff"/>',
            *lines,
            _text(16, height - 14, caption, ' fill="#57606a" font-size="12"'),
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    TARGET.write_text(draw((DOCS / "results.md").read_text()))
