"""`advprior run` and `advprior status`: a project's whole chain, what of it is stale, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from advprior.store.errors import AdvpriorError
from advprior.store.project_files import ARMS_FILE, PROJECT_FILE

if TYPE_CHECKING:
    from advprior.pipeline.settings import Project

_PROJECT = click.argument(
    "folder", metavar="[DIR]", type=click.Path(path_type=Path, file_okay=False), default=Path(), required=False
)


@click.command()
@_PROJECT
@click.option("--until", metavar="STEP", help="Stop after this step; `first`: after the first answer, without an LLM.")
@click.option("--dry-run", is_flag=True, help="Print the commands that would run, and their forecast.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Steps at a time.")
@click.option("--force", is_flag=True, help="Do every step again, also where nothing changed.")
def run(folder: Path, until: str | None, dry_run: bool, jobs: int, force: bool) -> None:
    """Run the project in DIR: tables, priors, store, rankers, report; only what is stale.

    Each step is printed as the command it is, to be typed in DIR. A run that was stopped goes on where it was.
    """
    from advprior.pipeline import outlook
    from advprior.pipeline.runner import RunOptions
    from advprior.pipeline.runner import run as work
    from advprior.pipeline.settings import read_project

    project = read_project(folder)
    outlook.check_project(project)
    _check_arms(project)
    for line in outlook.remarks(project):
        click.echo(line)
    if dry_run:
        for line in outlook.dry_run(project, until, force=force):
            click.echo(line)
        return
    if folder != Path():
        click.echo(f"in {folder}:")
    outcome = work(project, RunOptions(until, jobs, force))
    for line in outlook.summary(project, outcome, until):
        click.echo(line)


def _check_arms(project: Project) -> None:
    """Arms and the ranker's settings are `ranking`'s to read: refused now by its command, not after the long steps."""
    from advprior.cli import cli
    from advprior.pipeline.plan import make_plan

    plan = make_plan(project)
    commands = [step.command for step in plan.steps if "--arms" in step.command]
    for name in dict.fromkeys(command[command.index("--arms") + 1] for command in commands):
        path = project.folder / name
        generated = name in plan.files
        if generated:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(plan.files[name])
        try:
            cli.main(["rank", "arms", "--quiet", "--arms", str(path)], prog_name="advprior", standalone_mode=False)
        except AdvpriorError as error:
            where = f"{project.folder / ARMS_FILE}, and arms in {project.folder / PROJECT_FILE}"
            raise AdvpriorError(
                error.code,
                error.what,
                where=where if generated else error.where,
                actual=error.actual,
                expected=error.expected,
                fix=error.fix,
            ) from error


@click.command()
@_PROJECT
@click.option(
    "--serve", "url", metavar="URL", help="A running service in place of a project, as http://localhost:8000."
)
@click.option("--every", type=click.FloatRange(0.1), metavar="S", help="With --serve: look again every S seconds.")
def status(folder: Path, url: str | None, every: float | None) -> None:
    """What of the project in DIR is current, stale (and why) or missing, and what each step cost.

    With --serve: a running service's version, rates, queue, priors' age, last refresh and alerts. Exit code 3 where it
    is not ready.
    """
    if url is not None:
        _service_status(url, every)
        return
    if every is not None:
        raise click.UsageError("--every needs --serve")
    from advprior.pipeline import outlook
    from advprior.pipeline.settings import read_project

    project = read_project(folder)
    for line in outlook.status_lines(project):
        click.echo(line)


def _service_status(url: str, every: float | None) -> None:
    """Look once, or again and again in place until Ctrl-C."""
    import sys
    import time

    from advprior.pipeline.service_status import Between, Look

    before: Look | None = None
    while True:
        now = Look.at_service(url)
        if every is not None and sys.stdout.isatty():
            click.clear()
        click.echo("\n".join(Between(now, before).lines(url)))
        if every is None:
            raise click.exceptions.Exit(0 if now.ready.get("ready") else 3)
        before = now
        time.sleep(every)
