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
@click.option("--append", is_flag=True, help="Add snapshots later than those published; what is published stays.")
@click.option(
    "--keep-snapshots", type=click.IntRange(1), help="With --append: so many stay published, the newest. Default: all."
)
@click.option("--force", is_flag=True, help="Publish again even when nothing changed.")
def publish(
    priors: Path,
    repo: Path,
    name: str | None,
    seed: int,
    offline: bool,
    append: bool,
    keep_snapshots: int | None,
    force: bool,
) -> None:
    """Validate PRIORS and make them the current ones in the feature repository, atomically.

    With --append they join the current ones, as far as they are later.
    """
    if keep_snapshots is not None and not append:
        raise click.UsageError("--keep-snapshots goes with --append")
    if append:
        if offline or force or seed:
            raise click.UsageError("--append goes with --as and --keep-snapshots alone")
        _append(priors, repo, name, keep_snapshots)
        return
    from advprior.pipeline.publish import publish as work

    view = work(priors, repo, name=name, seed=seed, online=not offline, force=force)
    if view is None:
        click.echo(f"publish: unchanged, reused {repo}/data")
        return
    click.echo(f"publish: {view} -> {repo / 'data' / view}")
    next_step(f"feast -c {repo} apply")


def _append(priors: Path, repo: Path, name: str | None, keep: int | None) -> None:
    from advprior.pipeline.append import append

    done = append(priors, repo, name=name, keep=keep)
    if done is None:
        click.echo(f"publish: nothing later than what is published in {repo}/data")
        return
    dropped = f", {done.dropped} too old" if done.dropped else ""
    click.echo(
        f"publish: {done.rows:,} rows of {done.added} snapshots -> {repo / 'data' / done.view}, which has "
        f"{done.snapshots}{dropped}"
    )
    next_step(f"feast -c {repo} apply")
