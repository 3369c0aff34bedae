"""What to type next: said by a command that a person runs, kept quiet where `advprior run` goes on by itself."""

from __future__ import annotations

import os

import click

#: Set by `advprior run` for its steps.
WITHIN_RUN = "ADVPRIOR_WITHIN_RUN"


def within_run() -> bool:
    """Whether `advprior run` started this command."""
    return os.environ.get(WITHIN_RUN) == "1"


def next_step(command: str) -> None:
    """Print the command that usually follows, unless `advprior run` does."""
    if not within_run():
        click.echo(f"  next: {command}")
