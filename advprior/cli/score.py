"""``advprior score``: priors for every user and snapshot."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--tables", required=True, type=click.Path(path_type=Path), help="Canonical tables (advprior data).")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the priors.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
              help="auto: CUDA where a session really gets it, else the CPU.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), help="Threads of ONNX Runtime; default: real cores.")
@click.option("--shard-users", type=click.IntRange(1), default=32, show_default=True,
              help="Users a shard: what an interrupt may cost.")  # fmt: skip
@click.option("--force", is_flag=True, help="Score again even when nothing changed.")
def score(run: Path, tables: Path, out: Path, device: str, threads: int | None, shard_users: int, force: bool) -> None:
    """Score every user of TABLES at every snapshot with the exported predictor in RUN.

    An interrupted run goes on: finished shards are kept.
    """
    from advprior.scoring import score as work
    from feature_repo.runs import read_manifest

    if not work(run, tables, out, device=device, threads=threads, shard_users=shard_users, force=force):
        click.echo(f"score: unchanged, reused {out}")
        return
    manifest = read_manifest(out)
    facts = manifest["facts"]
    click.echo(
        f"score {facts['predictor']} on {facts['provider']}: {facts['users']} users x {facts['snapshots']} snapshots, "
        f"{manifest['seconds']:.0f} s -> {out}"
    )
    click.echo(
        f"  probabilities sum to 1 within {facts['max_sum_error']:.1e}; "
        f"priors equal those of histories cut at the snapshot within {facts['max_past_error']:.1e}"
    )
    click.echo(f"  next: advprior publish {out} --repo FEATURE_REPO")
