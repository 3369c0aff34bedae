"""Every code that the packages can raise has its section, and no section speaks of a code that is gone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml

from tests.docs.markdown import DOCS, ROOT, headings

_CODE = re.compile(r"[A-Z]{3}\d{3}")


def codes_of(source: str) -> set[str]:
    """Codes that stand alone as string literals: arguments of errors, keys of tables of problems; not prose."""
    strings = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    return {value for value in strings if isinstance(value, str) and _CODE.fullmatch(value)}


def emitted() -> set[str]:
    codes: set[str] = set()
    for package in ("advprior", "ranking"):
        for path in (ROOT / package).rglob("*.py"):
            codes |= codes_of(path.read_text())
    return codes | answers()


def answers() -> set[str]:
    """``SRV<status>``: made from the statuses that the OpenAPI announces."""
    pytest.importorskip("fastapi")
    from ranking.service.messages import ERRORS

    return {f"SRV{status}" for status in ERRORS}


def documented(pages: Iterable[Path]) -> list[str]:
    return [heading for page in pages for heading in headings(page.read_text()) if _CODE.fullmatch(heading)]


def test_codes_and_sections_are_the_same() -> None:
    sections = documented([DOCS / "checks.md", DOCS / "runbook.md"])
    assert len(sections) == len(set(sections)), "a code has two sections"
    assert sorted(emitted() - set(sections)) == [], "codes without a section"
    assert sorted(set(sections) - emitted()) == [], "sections of codes that nothing raises"


def test_a_new_code_would_be_seen_and_prose_would_not() -> None:
    source = 'def f():\n    """``XYZ001`` in prose."""\n    raise AdvpriorError("XYZ002", "what", fix="see XYZ003")\n'
    assert codes_of(source) == {"XYZ002"}


def test_every_alert_has_its_section() -> None:
    rules = yaml.safe_load((ROOT / "ranking" / "monitor" / "alerts.yaml").read_text())["groups"]
    alerts = {rule["alert"] for group in rules for rule in group["rules"]}
    sections = {heading for heading in headings((DOCS / "runbook.md").read_text()) if heading.startswith("Advprior")}
    assert sections == alerts


def reasons() -> set[str]:
    """What the service may put into `degraded`, read from its source."""
    names: set[str] = set()
    for path in (ROOT / "ranking" / "service").glob("*.py"):
        if path.name == "check.py":  # its reasons are of `rank check`
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            value = node.value if isinstance(node, ast.Constant) else None
            if isinstance(value, str) and re.fullmatch(
                r"(prior|history)_(missing|stale|early|corrupt|catalog_unknown)|(store|towers)_unavailable|ads_unread"
                r"|exposure_not_logged",
                value,
            ):
                names.add(value)
    return names


def test_every_degraded_reason_is_explained() -> None:
    explained = set(
        re.findall(r"`([a-z_]+)`", (DOCS / "checks.md").read_text().partition("### What `degraded` says")[2])
    )
    assert len(reasons()) >= 8
    assert reasons() <= explained


def test_words_of_the_glossary_are_sorted_and_said_once() -> None:
    words = re.findall(r"^\| \*\*(.+?)\*\*", (DOCS / "glossary.md").read_text(), flags=re.MULTILINE)
    assert words == sorted(set(words), key=lambda word: (word.lower(), word))
    assert len(words) > 40
