"""`advprior init`: a project folder of one's own."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=True))
def init(folder: Path) -> None:
    """Make a project in DIR: Feast repository, commented configs, a README with the next commands.

    Safe to run again: files that you edited are kept, the others follow the installed version.
    """
    from advprior.pipeline.project import lay_out

    done = lay_out(folder)
    for verb, names in (("wrote", done.written), ("updated", done.updated)):
        for name in names:
            click.echo(f"  {verb} {folder / name}")
    for name in done.kept:
        click.echo(f"  kept {folder / name}: it differs from the shipped file, so it is taken as yours")
    if not done.written and not done.updated:
        click.echo(f"init: nothing to do, {folder} is a project already")
    else:
        click.echo(f"init: {folder} is ready; its README.md has the next commands")
