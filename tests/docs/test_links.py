"""Links between our pages lead somewhere, and what cannot be run is at least well-formed."""

from __future__ import annotations

import configparser
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.docs.markdown import PAGES, ROOT, anchors, links, split


def broken(page: Path, text: str) -> list[str]:
    wrong = []
    for target in links(text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = page if not name else (page.parent / name)
        resolves = linked.exists() and (not anchor or anchor in anchors(linked.read_text()))
        if not resolves:
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_and_anchors_resolve(page: Path) -> None:
    assert broken(page, page.read_text()) == []


def test_a_broken_link_would_be_seen() -> None:
    page = ROOT / "docs" / "checks.md"
    text = "[a](checks.md#rnk001) [b](nowhere.md) [c](#no-such) [d](checks.md#rnk999) [e](https://x.org) `[f](g)`"
    assert broken(page, text) == ["nowhere.md", "#no-such", "checks.md#rnk999"]


def test_an_anchor_is_what_github_makes_of_a_heading() -> None:
    assert anchors("# What `degraded` says\n## Ads, and more\n## Ads, and more\n```\n# no heading\n```\n") == {
        "what-degraded-says",
        "ads-and-more",
        "ads-and-more-1",
    }


def blocks_of(language: str) -> list[tuple[str, str]]:
    return [
        (f"{page.name}:{block.line}", block.text)
        for page in PAGES
        for block in split(page.read_text())[0]
        if block.language == language
    ]


def test_only_languages_that_are_checked() -> None:
    """A command in a block of another kind would escape: every block but `text` is run or parsed."""
    languages = {"bash", "ini", "yaml", "cron", "python", "text"}
    wrong = [
        f"{page.name}:{block.line} {block.language!r}"
        for page in PAGES
        for block in split(page.read_text())[0]
        if block.language not in languages
    ]
    assert wrong == []


@pytest.mark.parametrize(("where", "text"), blocks_of("ini"), ids=lambda value: value[:30].split("\n")[0])
def test_units_parse_and_start_our_commands(where: str, text: str) -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(text)
    assert set(unit.sections()) <= {"Unit", "Service", "Timer", "Install"}, where
    assert "Service" in unit or "Timer" in unit
    if "Service" in unit:
        assert unit["Service"]["ExecStart"].startswith("/")


@pytest.mark.parametrize(("where", "text"), blocks_of("yaml"), ids=lambda value: value[:30].split("\n")[0])
def test_yaml_parses(where: str, text: str) -> None:
    assert isinstance(yaml.safe_load(text), dict), where


@pytest.mark.parametrize(("where", "text"), blocks_of("cron"), ids=lambda value: value[:30].split("\n")[0])
def test_cron_lines_have_five_fields_and_a_command(where: str, text: str) -> None:
    for line in text.splitlines():
        if not line.startswith("#"):
            fields = line.split(None, 5)
            assert len(fields) == 6, where
            assert all(re.fullmatch(r"[\d*/,-]+", field) for field in fields[:5]), where
            subprocess.run(["bash", "-n", "-c", fields[5]], check=True)
