"""``advprior score``: priors for every user and snapshot."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click

from advprior.cli.hints import next_step


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--tables", required=True, type=click.Path(path_type=Path), help="Canonical tables (advprior data).")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the priors.")
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda[:N[,N]]",
    help="auto: CUDA where a session really gets it, else the CPU; several GPUs: cuda:0,1.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="Threads of ONNX Runtime; default: real cores, on Spark 1 for each of its cores.",
)
@click.option(
    "--shard-users",
    type=click.IntRange(1),
    help="Users a shard, what an interrupt may cost; default: some seconds' worth.",
)
@click.option("--last", type=click.IntRange(1), help="Only the newest so many snapshots.")
@click.option(
    "--since",
    type=click.Path(path_type=Path),
    help="Earlier priors: score later snapshots only, forward only users whose input changed.",
)
@click.option(
    "--top-k",
    type=click.IntRange(1),
    help="Keep the K likeliest advertisers only; default: 100 for catalogs above 10,000.",
)
@click.option(
    "--keep-network/--no-keep-network",
    default=None,
    help="Keep what a later --since needs; default: for whole rows, not for top-K.",
)
@click.option(
    "--spark",
    envvar="ADVPRIOR_SPARK",
    show_envvar=True,
    metavar="MASTER|YAML",
    help="Forward on Spark: a master (local[4], yarn, …), or a YAML file with spark_conf.",
)
@click.option(
    "--new-advertisers",
    type=click.Choice(["refuse", "leave_out"]),
    default="refuse",
    show_default=True,
    help="Of a catalog that changed since the fit: what to do about those that the model does not know.",
)
@click.option("--force", is_flag=True, help="Score again even when nothing changed.")
def score(
    run: Path,
    tables: Path,
    out: Path,
    device: str,
    threads: int | None,
    shard_users: int | None,
    last: int | None,
    since: Path | None,
    top_k: int | None,
    keep_network: bool | None,
    spark: str | None,
    new_advertisers: Literal["refuse", "leave_out"],
    force: bool,
) -> None:
    """Score every user of TABLES at every snapshot with the exported predictor in RUN.

    An interrupted run goes on: finished shards are kept. With --since, OUT holds the new snapshots only, and
    the same priors as if everyone had been scored again.
    """
    from advprior.pipeline.score import ScoreOptions
    from advprior.pipeline.score import score as work
    from advprior.store.runs import read_manifest

    options = ScoreOptions(device, threads, shard_users, top_k, last, since, keep_network, new_advertisers)
    cluster = None
    if spark is not None:  # pyspark is imported for no one else
        from advprior.spark.cluster import open_cluster

        cluster = partial(open_cluster, spark, run, device, threads)
    if not work(run, tables, out, options, cluster=cluster, force=force):
        click.echo(f"score: unchanged, reused {out}")
        return
    manifest = read_manifest(out)
    facts = manifest["facts"]
    where = facts["provider"]
    if "spark" in facts:
        where = f"Spark ({facts['spark']['master']}, {facts['spark']['cores']} cores)"
    click.echo(
        f"score {facts['predictor']} on {where}: {facts['users']} users x {facts['snapshots']} snapshots, "
        f"{manifest['seconds']:.0f} s -> {out}"
    )
    click.echo(
        f"  probabilities sum to 1 within {facts['max_sum_error']:.1e}; "
        f"priors equal those of histories cut at the snapshot within {facts['max_past_error']:.1e}"
    )
    for line in _details(facts):
        click.echo(f"  {line}")
    next_step(f"advprior publish {out} --repo FEATURE_REPO")


def _details(facts: dict[str, Any]) -> Iterator[str]:
    """What else is worth knowing of the priors, a line each."""
    from advprior.predictors.llm.cut_prompts import cut_lines

    if facts.get("gate") and facts["gate"]["provider"] != facts["provider"]:
        yield f"what {facts['precision']} damages was measured on {facts['gate']['device']}, not on this device"
    if facts["advertisers_left_out"]:
        count = facts["advertisers_left_out"]
        yield f"{count} advertisers have no prior: the model does not know them (advprior catalog extend)"
    if facts["rows_before_user"]:
        yield f"{facts['rows_before_user']:,} rows left out: their users did not exist yet at the snapshot"
    if facts["prompts"] or facts["carried"]:
        yield (
            f"{facts['forwarded']} distinct prompts forwarded of {facts['prompts']}, "
            f"{facts['carried']} users carried over"
        )
    yield from cut_lines(facts)
    if facts["top_k"]:
        yield f"the {facts['top_k']} likeliest of {facts['catalog_size']} advertisers a row, the rest as one"
