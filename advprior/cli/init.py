"""`advprior init`: a project folder of one's own."""

from __future__ import annotations

from pathlib import Path

import click

from advprior.store.errors import AdvpriorError


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=True))
@click.option(
    "--example",
    metavar="NAME",
    help="Start with an example's data: complete_journey or clicks. Without: your own tables.",
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a key of advprior.yaml: tables.households=all, priors=full, origins=3. Repeatable.",
)
def init(folder: Path, example: str | None, changes: tuple[str, ...]) -> None:
    """Make a project in DIR: advprior.yaml, a Feast repository, commented configs.

    Safe to run again: files that you edited are kept, the others follow the installed version.
    """
    from advprior.pipeline.project import MAPPING, lay_out
    from advprior.store.project_files import PROJECT_FILE

    done = lay_out(folder, example)
    for verb, names in (("wrote", done.written), ("updated", done.updated)):
        for name in names:
            click.echo(f"  {verb} {folder / name}")
    for name in done.kept:
        click.echo(f"  kept {folder / name}: it differs from the shipped file, so it is taken as yours")
    if changes:
        from advprior.pipeline.edit import set_keys
        from advprior.pipeline.settings import read_project

        path = folder / PROJECT_FILE
        before = path.read_bytes()
        try:
            set_keys(path, changes)
            read_project(folder)  # refused now, not at the run
        except AdvpriorError:
            path.write_bytes(before)
            raise
    if not done.written and not done.updated and not changes:
        click.echo(f"init: nothing to do, {folder} is a project already")
    elif example is not None or not (folder / MAPPING).is_file():
        click.echo(f"init: {folder} is ready; next: advprior run {folder}")
    else:
        click.echo(
            f"init: {folder} is ready; next: name your files and columns in {folder / MAPPING}, then: "
            f"advprior data check {folder}"
        )
