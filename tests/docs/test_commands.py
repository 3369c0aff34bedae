"""Commands that prose names: each exists, with the options it is given. (Blocks of the guide are run.)"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from advprior.cli import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
INLINE = re.compile(r"`((?:advprior|make) [a-z][^`\n]*)`")


def named(page: Path) -> list[str]:
    return INLINE.findall(page.read_text())


def wrong(command: str) -> str:
    """What of a command does not exist; nothing when all does."""
    program, *words = shlex.split(command.replace("…", ""))
    if program == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
        goals = [word for word in words if "=" not in word]
        return next((f"target {goal}" for goal in goals if goal not in targets), "")
    at: click.Command = cli
    with click.Context(cli) as context:
        while words and isinstance(at, click.Group) and not words[0].startswith("-"):
            found = at.get_command(context, words[0])
            if found is None:
                return f"command {words[0]}"
            at, words = found, words[1:]
    known = {flag for parameter in at.params for flag in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    known |= {flag for parameter in cli.params for flag in parameter.opts}
    given = [word.partition("=")[0] for word in words if word.startswith("--")]
    return next((f"option {flag} of {at.name}" for flag in given if flag not in known), "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_the_prose_exists(page: Path) -> None:
    assert {command: wrong(command) for command in named(page) if wrong(command)} == {}


def test_a_wrong_one_would_be_seen() -> None:
    assert wrong("advprior rank nothing") == "command nothing"
    assert wrong("advprior finetune --tables T --no-such 3") == "option --no-such of finetune"
    assert wrong("make nothing") == "target nothing"
    assert wrong("advprior rank rollback --view prior_llm") == ""
    assert len(named(ROOT / "docs" / "runbook.md")) > 10
