"""What to type next: said by a command that a person runs, kept quiet where `advprior run` goes on by itself."""

from __future__ import annotations

import os

import click

#: Set by `advprior run` for its steps.
WITHIN_RUN = "ADVPRIOR_WITHIN_RUN"


def next_step(command: str) -> None:
    """Print the command that usually follows, unless `advprior run` does."""
    if os.environ.get(WITHIN_RUN) != "1":
        click.echo(f"  next: {command}")
