"""`advprior refresh`: the daily refresh of a project, in one command."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import click

from advprior.store.errors import AdvpriorError


@click.command()
@click.argument(
    "folder", metavar="[DIR]", type=click.Path(path_type=Path, file_okay=False), default=Path(), required=False
)
@click.option("--threads", type=click.IntRange(1), help="Threads of ONNX Runtime; default: real cores.")
@click.option("--now", metavar="TIME", help="The time it counts as, with a zone; default: the clock's. For past data.")
@click.option("--no-check", "check", is_flag=True, flag_value=False, default=True, help="Leave the preflight out.")
def refresh(folder: Path, threads: int | None, now: str | None, check: bool) -> None:
    """Refresh the project in DIR: check tables, score what is new, publish, put online, check the service.

    Safe to run again at any time. Published snapshots never change: new ones are appended. A second refresh at the same
    time ends with exit code 75.
    """
    from advprior.pipeline.refresh import RefreshOptions
    from advprior.pipeline.refresh import refresh as work
    from advprior.pipeline.settings import read_project

    work(read_project(folder), RefreshOptions(_moment(now), threads, check), _command, click.echo)


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError("no zone")
        return moment
    except ValueError as error:
        raise AdvpriorError(
            "CFG001", "this is no time with a zone", where="--now", actual=text, expected="2026-01-31T06:00:00Z"
        ) from error


def _command(words: Sequence[str]) -> int:
    """Run another command here; its exit code."""
    from advprior.cli import cli

    hints = os.environ.get("ADVPRIOR_WITHIN_RUN")
    os.environ["ADVPRIOR_WITHIN_RUN"] = "1"
    try:
        code = cli.main(list(words), prog_name="advprior", standalone_mode=False)
    except click.exceptions.Exit as leave:
        return leave.exit_code
    finally:
        if hints is None:
            del os.environ["ADVPRIOR_WITHIN_RUN"]
        else:
            os.environ["ADVPRIOR_WITHIN_RUN"] = hints
    return code if isinstance(code, int) else 0
