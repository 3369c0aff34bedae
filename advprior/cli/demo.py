"""`advprior demo`: the whole chain on real data."""

from __future__ import annotations

from pathlib import Path

import click


def _count(_context: click.Context, _option: click.Parameter, value: str) -> str:
    if value == "all" or (value.isdigit() and int(value) > 0):
        return value
    raise click.BadParameter(f"{value!r} is neither a positive number nor 'all'")


@click.command()
@click.option(
    "--households",
    default="200",
    show_default=True,
    callback=_count,
    metavar="N|all",
    help="How many households of the public data; 'all' is the full run.",
)
@click.option(
    "--workspace",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    metavar="DIR",
    help="Where everything goes.  [default: runs/demo, or runs/demo-all with --households all]",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of every random choice.")
@click.option(
    "--origins",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Cut-offs in time: everything is refitted and measured at each, then pooled.",
)
@click.option(
    "--arms",
    type=click.Choice(["few", "full"]),
    default="few",
    show_default=True,
    help="Priors compared; full: also last advertiser, hybrid, its twin, text, ranking stage, old and partial priors.",
)
@click.option("--force", is_flag=True, help="Do every step again, also where nothing changed.")
def demo(households: str, workspace: Path | None, seed: int, origins: int, arms: str, force: bool) -> None:
    """Run the whole chain on real data: tables, priors, store, rankers, report.

    Each step is printed as the command it is, so that you can run it alone. A second run reuses what did
    not change.
    """
    from advprior.pipeline.demo import run_demo, run_rolling

    if workspace is None:
        name = "rolling" if origins > 1 else "demo"
        workspace = Path(f"runs/{name}" if households != "all" else f"runs/{name}-all")
    if origins > 1:
        done = run_rolling(workspace, households, seed, origins, force=force, arms=arms)
    else:
        done = run_demo(workspace, households, seed, force=force, arms=arms)
    minutes, seconds = divmod(round(done["seconds"]), 60)
    click.echo(click.style("\n" + done["verdict"], bold=True))
    if done["note"]:
        click.echo(f"data:    {done['note']}")
    click.echo(f"report:  {done['report']}")
    memory = f"at most {done['peak_memory_mb'] / 1024:.1f} GB in one step"
    click.echo(f"cost:    {minutes} min {seconds} s, {memory}; each step is in {workspace / 'demo.json'}")
    following = "advprior demo --households all" if households != "all" else "advprior init my-project"
    click.echo(f"next:    {following}")
