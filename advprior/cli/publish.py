"""``advprior publish``: priors into the feature repository."""

from __future__ import annotations

from pathlib import Path

import click

from advprior.cli.hints import next_step


@click.command()
@click.argument("priors", type=click.Path(path_type=Path))
@click.option("--repo", required=True, type=click.Path(path_type=Path), help="Feature repository (advprior init).")
@click.option(
    "--as",
    "name",
    help="Publish under this name, the predictor's by default; `placebo` and `placebo_NAME` shuffle users.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the placebo's shuffle.")
@click.option("--offline", is_flag=True, help="For what is measured only: never materialized, never served.")
@click.option("--force", is_flag=True, help="Publish again even when nothing changed.")
def publish(priors: Path, repo: Path, name: str | None, seed: int, offline: bool, force: bool) -> None:
    """Validate PRIORS and make them the current ones in the feature repository, atomically."""
    from advprior.pipeline.publish import publish as work

    view = work(priors, repo, name=name, seed=seed, online=not offline, force=force)
    if view is None:
        click.echo(f"publish: unchanged, reused {repo}/data")
        return
    click.echo(f"publish: {view} -> {repo / 'data' / view}")
    next_step(f"feast -c {repo} apply")
