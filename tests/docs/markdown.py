"""What the tests read in Markdown: fenced blocks, headings and their anchors, links. Enough for our own pages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
_FENCE = re.compile(r"^```(.*)$")


@dataclass(frozen=True)
class Block:
    """A fenced block: its words after the fence (``bash redis``), its text, the line of the fence."""

    words: tuple[str, ...]
    text: str
    line: int

    @property
    def language(self) -> str:
        return self.words[0] if self.words else ""


def split(text: str) -> tuple[list[Block], str]:
    """The fenced blocks of a page, and its prose without them."""
    blocks, prose, inside, opened, at = [], [], None, (), 0
    for number, line in enumerate(text.splitlines(), 1):
        fence = _FENCE.match(line)
        if fence and inside is None:
            inside, opened, at = [], tuple(fence[1].split()), number
        elif fence:
            blocks.append(Block(opened, "\n".join(inside or []) + "\n", at))
            inside = None
        elif inside is not None:
            inside.append(line)
        else:
            prose.append(line)
    assert inside is None, f"a block opened in line {at} is not closed"
    return blocks, "\n".join(prose)


def headings(text: str) -> list[str]:
    return re.findall(r"^#{1,6} (.+?)\s*$", split(text)[1], flags=re.MULTILINE)


def anchors(text: str) -> set[str]:
    """As GitHub makes them: small letters, punctuation out, blanks to dashes, doubles numbered."""
    seen: dict[str, int] = {}
    names = set()
    for heading in headings(text):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = seen.get(name, 0)
        seen[name] = count + 1
        names.add(name if count == 0 else f"{name}-{count}")
    return names


def links(text: str) -> list[str]:
    """Targets of links and images outside of code."""
    prose = re.sub(r"`[^`\n]*`", "", split(text)[1])
    return re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", re.sub(r"\[`[^\]]*`\]", "[code]", prose))
