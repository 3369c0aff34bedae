"""Commands that pages name, in prose or in a block: each exists, with its options. (Blocks of the guide are run.)"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from advprior.cli import cli
from tests.docs.markdown import DOCS, PAGES, ROOT, split

#: Pages of today; the changelog and the log of experiments may name what is gone.
CURRENT = [page for page in PAGES if page.parent in (ROOT, DOCS) and page.name != "CHANGELOG.md"]
INLINE = re.compile(r"`((?:advprior|make) [a-z][^`\n]*)`")
IN_BLOCK = re.compile(r"^(?:\s*)((?:advprior|make) [a-z].*?)(?:\s+#.*)?$", flags=re.MULTILINE)


def named(page: Path) -> list[str]:
    """Commands of a page; a line of a block that goes on in the next one is one command."""
    text = page.read_text()
    blocks = [block.text.replace("\\\n", " ") for block in split(text)[0] if block.language == "bash"]
    commands = [re.split(r" [|;&>]", line)[0] for block in blocks for line in IN_BLOCK.findall(block)]
    return [*INLINE.findall(text), *commands]


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
            command_or_group = at.get_command(context, words[0])
            if command_or_group is None:
                return f"command {words[0]}"
            at, words = command_or_group, words[1:]
    options = {flag for parameter in at.params for flag in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    options |= {flag for parameter in cli.params for flag in parameter.opts}
    used = [word.partition("=")[0] for word in words if word.startswith("--")]
    return next((f"option {flag} of {at.name}" for flag in used if flag not in options), "")


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_every_command_of_a_page_exists(page: Path) -> None:
    assert {command: wrong(command) for command in named(page) if wrong(command)} == {}


def test_a_wrong_one_would_be_seen() -> None:
    assert wrong("advprior rank nothing") == "command nothing"
    assert wrong("advprior finetune --tables T --no-such 3") == "option --no-such of finetune"
    assert wrong("make nothing") == "target nothing"
    assert wrong("advprior rank rollback --view prior_llm") == ""
    assert len(named(DOCS / "runbook.md")) > 10
    assert "make demo" in named(ROOT / "README.md"), "blocks are read, too"
