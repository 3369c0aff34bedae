"""``advprior compare``: scored priors against what users then turned to."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import click

from advprior.cli.evaluate import Span

_ALL, _NEW = "all", "new to the user"


@click.command()
@click.argument("priors", nargs=-1, required=True, metavar="PRIORS...", type=click.Path(path_type=Path))
@click.option(
    "--tables",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="What the priors were scored on; once for each cut-off, in time order.",
)
@click.option(
    "--start",
    "starts",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Of this exported LLM, SASRec or hybrid what its network is added to, as the arm `habit and drift`; once for "
    "each cut-off.",
)
@click.option(
    "--window",
    type=click.Choice(["test", "valid"]),
    default="test",
    show_default=True,
    help="Of the time plan: which snapshots.",
)
@click.option("--horizon", type=Span(), default="7d", show_default=True, help="How far labels are looked for.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.json", help="Where to write.")
@click.option("--replicates", type=click.IntRange(10), default=1000, show_default=True, help="Of the bootstrap.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the bootstrap.")
def compare(
    priors: tuple[Path, ...],
    tables: tuple[Path, ...],
    starts: tuple[Path, ...],
    window: Literal["test", "valid"],
    horizon: timedelta,
    out: Path | None,
    replicates: int,
    seed: int,
) -> None:
    """Which scored priors say best what users turn to, at every snapshot of a window?

    PRIORS are outputs of `advprior score` of one project; those of one folder name are one arm, which needs one for
    each of --tables. Everything that a user turns to within the horizon after a snapshot is a target. Where there are
    several cut-offs, they are pooled, and users are drawn again over all of them.
    """
    from advprior.evaluation.points import ScoredOptions
    from advprior.evaluation.scored import measure_scored
    from advprior.store.runs import write_json

    options = ScoredOptions(window, horizon, starts, replicates, seed)
    result = measure_scored(priors, tables, options)
    for line in lines(result):
        click.echo(line)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, result)
        click.echo(f"compare: -> {out}")


def lines(result: dict[str, Any]) -> list[str]:
    """Every arm pooled, and the differences, pooled with their intervals and at each cut-off."""
    about, pooled = result["about"], [row for row in result["arms"] if row["cutoff"] is None]
    by = {(row["arm"], row["segment"]): row for row in pooled}
    arms = list(dict.fromkeys(row["arm"] for row in pooled))
    width = max(map(len, arms))
    days = about["horizon_s"] / 86400
    text = [
        f"{about['points']:,} points of {about['users']:,} users at {len(about['cutoffs'])} cut-offs "
        f"({', '.join(name[:10] for name in about['cutoffs'])}), {about['targets']:,} targets in {days:g} days after a "
        f"snapshot, {about['new_targets']:,} of them new to the user"
    ]
    if about["points_without_a_prior"]:
        text.append(f"left out: {about['points_without_a_prior']:,} points of users who have no prior by some arm")
    text.append(f"{'arm':<{width}}     nll  recall@5  recall@20 | new: nll  recall@5  recall@20")
    for arm in arms:
        every, new = by[arm, _ALL], by[arm, _NEW]
        text.append(
            f"{arm:<{width}}  {_figure(every['nll'], 6, 3)}  {_figure(every['recall@5'], 8, 4)}  "
            f"{_figure(every['recall@20'], 9, 4)} |   {_figure(new['nll'], 6, 3)}  {_figure(new['recall@5'], 8, 4)}  "
            f"{_figure(new['recall@20'], 9, 4)}"
        )
    for metric, segment in (("nll", _ALL), ("recall@5", _ALL), ("recall@20", _ALL), ("nll", _NEW), ("recall@20", _NEW)):
        text.append(f"{metric}, {segment}: arm - baseline [95 %] · at each cut-off")
        text += _differences(result, metric, segment)
    return text


def _differences(result: dict[str, Any], metric: str, segment: str) -> list[str]:
    rows = [row for row in result["comparisons"] if (row["metric"], row["segment"]) == (metric, segment)]
    by_cutoff = {(row["arm"], row["baseline"], row["cutoff"]): row["difference"] for row in rows}
    return [
        f"  {row['arm']} - {row['baseline']}: {_signed(row['difference'])} [{_signed(row['low'])}, "
        f"{_signed(row['high'])}] · "
        + ", ".join(_signed(by_cutoff[row["arm"], row["baseline"], name]) for name in result["about"]["cutoffs"])
        for row in rows
        if row["cutoff"] is None
    ]


def _figure(value: float | None, width: int, digits: int) -> str:
    return f"{'-' if value is None else format(value, f'.{digits}f'):>{width}}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"
