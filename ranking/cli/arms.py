"""`advprior rank arms`: an arms file, checked and listed, without a frame."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option(
    "--arms",
    "arms_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Arms and ranker settings. Default: the project's, else the package's.",
)
@click.option("--quiet", is_flag=True, help="Check only.")
def arms(arms_file: Path | None, quiet: bool) -> None:
    """Check an arms file and list its arms: role, what each adds to the baseline, what ranks."""
    from ranking.cli.defaults import arms_of, check_rankers

    if quiet:
        from ranking.models.arms import load_arms

        check_rankers(load_arms(arms_file), arms_file)
        return
    checked = arms_of(arms_file)
    width = max(len(arm.name) for arm in checked.arms)
    for arm in checked.arms:
        adds = ", ".join(arm.adds) or "nothing"
        more = f", ranked by {arm.ranker}" if arm.ranker else ""
        more += f" ({', '.join(f'{name} {value}' for name, value in arm.params.items())})" if arm.params else ""
        optional = " (optional)" if arm.optional else ""
        click.echo(f"{arm.name:<{width}}  {arm.role:<9}  adds {adds}{more}{optional}")
    settings = ", ".join(f"{name} {value}" for name, value in checked.ranker.model_dump(exclude_defaults=True).items())
    click.echo(f"ranker: {settings or 'the defaults'}")
