"""`advprior rank origin`, `advprior rank pool`: the same measurement at several cut-offs in time, and one answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from advprior.store.errors import AdvpriorError
from advprior.store.runs import is_current, manifest_digest, new_run, read_manifest, run_key
from ranking.cli.measure import _ABLATE_FIX, _FOLDER, _TABLES_FIX, force_option, tables_option

POOL_VERSION = 3
_TWO_BY_TWO = "rank two-by-two"


@click.command()
@tables_option
@click.option("--number", type=click.IntRange(1), required=True, help="Number of the cut-off, from 1.")
@click.option(
    "--of", "count", type=click.IntRange(1), default=3, show_default=True, help="How many cut-offs there are."
)
@click.option("--out", type=_FOLDER, required=True, help="Where the tables go.")
@force_option
def origin(tables: Path, number: int, count: int, out: Path, force: bool) -> None:
    """The same tables with every cut of the time plan moved to a later origin.

    Their test windows divide the original one. Refit the predictor on each, then: advprior rank pool.
    """
    from ranking.evidence.rolling import origin_config, write_origin

    read_manifest(tables, fix=_TABLES_FIX)
    if number > count:
        raise AdvpriorError("CFG002", "no such cut-off", where="--number", actual=str(number), expected=f"1 to {count}")
    config, inputs = origin_config(tables, number, count), {"tables": manifest_digest(tables)}
    key = run_key("data", config, inputs)
    if not force and is_current(out, key):
        click.echo(f"rank origin: unchanged, reused {out}")
        return
    with new_run(out, "data", config=config, inputs=inputs, key=key) as run:
        write_origin(tables, run, config)
    plan = config["time_plan"]
    click.echo(
        f"rank origin {number} of {count}: priors from {plan['finetune_end']}, test {plan['valid_end']} on, in {out}"
    )


@click.command()
@click.argument("runs", type=_FOLDER, nargs=-1, required=True)
@click.option("--out", type=_FOLDER, required=True, help="Where the pooled run goes.")
@click.option("--replicates", type=click.IntRange(20), default=1000, show_default=True, help="Resamplings of users.")
@force_option
def pool(runs: tuple[Path, ...], out: Path, replicates: int, force: bool) -> None:
    """Pool the ablations, or the two-by-twos, of several cut-offs: lifts over seeds x cut-offs, one verdict.

    Name the folders in time order. What it writes is a run as any other of its kind: advprior rank report takes it.
    """
    both_steps = all(read_manifest(folder, fix=_ABLATE_FIX).get("step") == _TWO_BY_TWO for folder in runs)
    if not both_steps:
        for folder in runs:
            read_manifest(folder, step="rank ablate", fix=_ABLATE_FIX)
    inputs = {str(folder): manifest_digest(folder) for folder in runs}
    config = {"replicates": replicates}
    key = run_key("rank pool two-by-two" if both_steps else "rank pool", config, inputs, POOL_VERSION)
    if not force and is_current(out, key):
        click.echo(f"rank pool: unchanged, reused {out}")
        return
    with new_run(out, _TWO_BY_TWO if both_steps else "rank ablate", config=config, inputs=inputs, key=key) as run:
        lines, facts = (_pool_both_steps if both_steps else _pool_ablations)(runs, run.path, replicates)
        run.facts.update(facts, cutoffs=len(runs))
    click.echo("\n".join([*lines, f"rank pool: {len(runs)} cut-offs, in {out}"]))


def _pool_ablations(runs: Sequence[Path], out: Path, replicates: int) -> tuple[list[str], dict[str, Any]]:
    from ranking.evidence.claims import JOINT_NOTE
    from ranking.evidence.pooled_shares import pool_user_shares
    from ranking.evidence.result import AblationResult
    from ranking.evidence.rolling import pool as pool_ablations

    result = pool_ablations(runs, replicates=replicates)
    result.write(out)
    lines = [
        f"cut-off {place}, test {one['test']}: {one['verdict']}"
        for place, one in enumerate(result.about["cutoffs"], start=1)
    ]
    seeds = f"{len(runs)} cut-offs x {result.about['settings']['seeds']} seeds"
    arms = AblationResult.load(runs[0]).arms
    lines += pool_user_shares(runs, out, arms, slots=result.slots, replicates=replicates)
    return [*result.verdict.sentences, *lines, seeds, JOINT_NOTE], read_manifest(runs[-1])["facts"] | result.facts()


def _pool_both_steps(runs: Sequence[Path], out: Path, replicates: int) -> tuple[list[str], dict[str, Any]]:
    from ranking.candidates.pooling import pool as pool_both_steps

    result = pool_both_steps(runs, replicates=replicates)
    result.save(out)
    return repr(result).splitlines(), {"effects": [*result.sentences(), *result.others()]}
