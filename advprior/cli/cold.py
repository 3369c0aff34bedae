"""``advprior cold``: how well runs rank advertisers that they were fitted without."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click

from advprior.cli.device import device_option
from advprior.cli.evaluate import Moment, Span


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option("--tables", required=True, type=click.Path(path_type=Path), help="Canonical tables (advprior data).")
@click.option("--cutoff", required=True, type=Moment(), help="History lies before, labels from here on: 2022-01-01.")
@click.option("--horizon", type=Span(), default="365d", show_default=True, help="How far labels are looked for.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.json", help="Where to write.")
@click.option("--replicates", type=click.IntRange(10), default=1000, show_default=True, help="Of the bootstrap.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the bootstrap.")
@device_option
@click.option("--threads", type=click.IntRange(1), help="Threads of ONNX Runtime; default: real cores.")
def cold(
    runs: tuple[Path, ...],
    tables: Path,
    cutoff: datetime,
    horizon: timedelta,
    out: Path | None,
    replicates: int,
    seed: int,
    device: str | None,
    threads: int | None,
) -> None:
    """Who ranks advertisers best that nobody has turned to yet?

    RUNs are exported fits with the same advertisers withheld (`advprior finetune --withhold 0.2 --seed S`). Their
    events are hidden from every arm, their users' later labels are kept; all advertisers of TABLES are ranked.

    Two intervals stand beside each difference: of other users, and of other advertisers. Believe the wider one. One
    draw of advertisers can still mislead: read several S.
    """
    from advprior.evaluation.cold import evaluate_cold
    from advprior.evaluation.options import Options
    from advprior.store.device import device_setting
    from advprior.store.runs import write_json

    place = device_setting(device, tables, out)
    options = Options(horizon=horizon, replicates=replicates, seed=seed, device=place, threads=threads)
    result = evaluate_cold(runs, tables, cutoff, options)
    for line in lines(result):
        click.echo(line)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, result)
        click.echo(f"cold: -> {out}")


def lines(result: dict[str, Any]) -> list[str]:
    """Recall by segment and the differences on withheld advertisers, as text."""
    about = result["about"]
    by = {(r["arm"], r["segment"]): r for r in result["segments"]}
    width = max(len(row["name"]) for row in result["arms"])
    rows = [
        f"{len(about['withheld'])} of {about['advertisers']} advertisers withheld; {about['withheld_labels']} of "
        f"{about['labels']} labels from {about['cutoff']} are theirs, {about['young_labels']} of young ones "
        f"(1 to 10 events before), {about['users']} users",
        f"{'arm':<{width}}  withheld: r@5    r@20    nll | name only: r@5 | young: r@5    nll | others: r@5 | "
        "all: r@5     nll",
    ]

    def number(arm: str, segment: str, metric: str, digits: int = 4) -> str:
        value = by[arm, segment][metric]
        return "-" if value is None else f"{value:.{digits}f}"

    def difference(row: dict[str, Any], digits: int) -> str:
        other = row["by_advertiser"]
        return (
            f"{row['difference']:+.{digits}f} [{row['low']:+.{digits}f}, {row['high']:+.{digits}f}], "
            f"by advertisers [{other['low']:+.{digits}f}, {other['high']:+.{digits}f}]"
        )

    for row in result["arms"]:
        arm = row["name"]
        rows.append(
            f"{arm:<{width}}  {number(arm, 'withheld', 'recall@5'):>13}  {number(arm, 'withheld', 'recall@20'):>6} "
            f"{number(arm, 'withheld', 'nll', 3):>6} | {number(arm, 'withheld, name only', 'recall@5'):>14} | "
            f"{number(arm, 'young', 'recall@5'):>10} {number(arm, 'young', 'nll', 3):>6} | "
            f"{number(arm, 'others', 'recall@5'):>11} | {number(arm, 'overall', 'recall@5'):>8} "
            f"{number(arm, 'overall', 'nll', 3):>7}"
        )
    rows.append(
        "arm - baseline [95 % by users], by advertisers [95 %]: recall@5 of withheld advertisers (times the "
        "baseline's); nll of withheld ones"
    )
    differences = {
        (c["arm"], c["baseline"], c["metric"]): c for c in result["comparisons"] if c["segment"] == "withheld"
    }
    for (arm, baseline, metric), c in differences.items():
        if metric == "recall@5":
            times = "" if c["relative"] is None else f" ({c['relative'] + 1:.2f}×)"
            nll = difference(differences[arm, baseline, "nll"], 3)
            rows.append(f"  {arm} - {baseline}: {difference(c, 4)}{times}; nll {nll}")
    return rows + [f"left out: {arm} ({why})" for arm, why in about["left_out"].items()]
