"""``advprior evaluate``: the ladder of predictors on canonical tables."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click


class Moment(click.ParamType):  # type: ignore[type-arg]
    """An ISO date or time, UTC where it names no zone."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is no ISO date or time, e.g. 2022-01-01", param, ctx)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


class Span(click.ParamType):  # type: ignore[type-arg]
    """A whole number of hours, days or weeks."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        found = re.fullmatch(r"0*([1-9][0-9]{0,4})([hdw])", str(value))
        if not found:
            self.fail(f"{value!r} is no span, e.g. 365d, 8w or 12h", param, ctx)
        return int(found[1]) * {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(days=7)}[found[2]]


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...", type=click.Path(path_type=Path))
@click.option("--tables", required=True, type=click.Path(path_type=Path), help="Canonical tables (advprior data).")
@click.option("--cutoff", required=True, type=Moment(), help="History lies before, labels from here on: 2022-01-01.")
@click.option("--horizon", type=Span(), default="365d", show_default=True, help="How far labels are looked for.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.json", help="Where to write.")
@click.option(
    "--earlier",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Once for each RUN: the same predictor, fitted before the labels that weigh it in the blend.",
)
@click.option("--replicates", type=click.IntRange(10), default=1000, show_default=True, help="Of the bootstrap.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the bootstrap and of ALS.")
@click.option("--users", type=click.IntRange(1), help="Ask about so many users only, drawn by --seed: for costly arms.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
              help="auto: CUDA where a session really gets it, else the CPU.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), help="Threads of ONNX Runtime; default: real cores.")
@click.option("--force", is_flag=True, help="Evaluate again even when nothing changed.")
def evaluate(
    runs: tuple[Path, ...], tables: Path, cutoff: datetime, horizon: timedelta, out: Path | None,
    earlier: tuple[Path, ...], replicates: int, seed: int, users: int | None, device: str, threads: int | None,
    force: bool,
) -> None:  # fmt: skip
    """Who names a user's next advertiser best? Each exported RUN against the controls that need none.

    Asks about every user of TABLES with an event before the cut-off and one within the horizon after it. Intervals are
    paired bootstraps by user.
    """
    from advprior.evaluation.ladder import evaluate as work

    result, fresh = work(
        runs, tables, cutoff, horizon=horizon, earlier=earlier, out=out, replicates=replicates, seed=seed, users=users,
        device=device, threads=threads, force=force,
    )  # fmt: skip
    if not fresh:
        click.echo(f"evaluate: unchanged, reused {out}")
    for line in lines(result):
        click.echo(line)
    if out is not None and fresh:
        click.echo(f"evaluate: {result['about']['seconds']:.0f} s -> {out}")


def lines(result: dict[str, Any]) -> list[str]:
    """The tables of arms and of overall Recall@5 differences, as text."""
    about = result["about"]
    width = max(len(row["name"]) for row in result["arms"])
    found = [
        f"{about['users']} users, {about['advertisers']} advertisers, "
        f"labels from {about['config']['cutoff']}; settings and blends fitted at {about['fitted_at']}",
        f"{'arm':<{width}}  recall@1  recall@5  recall@20     mrr     nll",
    ]
    found += [
        f"{r['name']:<{width}}  {r['recall@1']:8.4f}  {r['recall@5']:8.4f}  {r['recall@20']:9.4f}"
        f"  {r['mrr']:6.4f}  {r['nll']:6.3f}"
        for r in result["arms"]
    ]
    found.append("recall@5, arm - baseline [95 %]")
    for c in result["comparisons"]:
        if c["metric"] == "recall@5" and c["segment"] == "overall":
            relative = "" if c["relative"] is None else f"  ({c['relative']:+.1%})"
            found.append(
                f"  {c['arm']} - {c['baseline']}: {c['difference']:+.4f} [{c['low']:+.4f}, {c['high']:+.4f}]{relative}"
            )
    found += [f"left out: {arm} ({why})" for arm, why in about["left_out"].items()]
    found += [
        f"note: {name} saw the labels that weigh it in the blend, which overstates it there; --earlier mends that"
        for name in about["saw_the_blend_labels"]
    ]
    return found
