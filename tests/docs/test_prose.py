"""How pages and messages read: README fits two screens, lines show in a diff, words are those of the glossary."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import pytest

from tests.docs.markdown import DOCS, PAGES, ROOT, split

LONGEST = 120
README_LINES = 150
#: What we called things among ourselves, and the word that a reader knows.
PRIVATE = {
    r"mend(s|ed|ing)?": "fix",
    r"by lot": "at random",
    r"twins?": "random-weight control",
    r"pair priors?": "advertiser × category prior",
    r"priors over pairs": "advertiser × category priors",
    r"by pair": "by category",
    r"what came of": "result",
    r"(as|were|is|are) dealt": "assigned",
    r"straw m[ae]n": "weak control",
    r"the price of (a|the|its) prior": "the cost of …",
}
_PRIVATE = re.compile(rf"(?<![.\w])({'|'.join(PRIVATE)})\b", flags=re.IGNORECASE)
#: Where old names are explained: the glossary's brackets, and the entry of the changelog that says they changed.
_EXPLAINED = re.compile(r"\(old name: [^)]*\)|\*random-weight control\* for twin|prior\* for pair\s+prior")


def prose(text: str) -> str:
    """A page without blocks, code spans and links' targets."""
    return re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "``", split(text)[1]))


def private_words(text: str) -> list[str]:
    return [match[0] for match in _PRIVATE.finditer(_EXPLAINED.sub("", text))]


def messages(source: str) -> list[str]:
    """Strings that a user may read: docstrings, messages, options' help; not keys, names and code in backticks."""
    parsed = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return [re.sub(r"`+[^`]*`+", "``", value) for value in parsed if isinstance(value, str) and " " in value.strip()]


def test_readme_fits_two_screens() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_of_prose_fit(page: Path) -> None:
    lines = enumerate(split(page.read_text())[1].splitlines(), 1)
    assert [f"{n}: {line}" for n, line in lines if len(line) > LONGEST and not line.startswith("|")] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_use_the_glossarys_words(page: Path) -> None:
    assert private_words(prose(page.read_text())) == []


def test_messages_use_the_glossarys_words() -> None:
    wrong = []
    for package in ("advprior", "ranking"):
        for path in sorted((ROOT / package).rglob("*")):
            if path.suffix == ".py":
                texts = messages(path.read_text())
            elif path.suffix in (".j2", ".yaml", ".md", ".sh"):
                texts = [re.sub(r"\S*\b(twin\w*|\w*_pair\w*)[:=]\S*|`[^`]*`|name: \w+|\{%.*?%\}", "", path.read_text())]
            else:
                continue
            wrong += [f"{path.relative_to(ROOT)}: {word}" for text in texts for word in private_words(text)]
    assert wrong == []


def test_a_private_word_would_be_seen() -> None:
    assert private_words("Its twin gains; who mends it?") == ["twin", "mends"]
    assert private_words("the random-weight control (old name: twin; in configs ``)") == []
    assert messages('fail("drawn by lot", key="twin", fix="set `twin: true`")') == ["drawn by lot", "set ``"]
    assert private_words(prose("`twin: true` makes [one](twin.md)")) == []


@pytest.mark.parametrize("name", ["lift", "map"])
def test_the_picture_is_drawn_from_the_tables(name: str) -> None:
    draw = runpy.run_path(str(DOCS / f"{name}.py"))["draw"]
    assert (DOCS / f"{name}.svg").read_text() == draw((DOCS / "results.md").read_text())
