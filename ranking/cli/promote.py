"""`advprior rank promote`: a new ranker into the place of the one that serves, or why not."""

from __future__ import annotations

from pathlib import Path

import click

_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("candidate", type=_FOLDER)
@click.option("--to", "place", type=_FOLDER, required=True, help="The ranker that serves (--ranker, or --fallback).")
@click.option("--frame", type=_FOLDER, required=True, help="A frame with days that neither ranker has seen.")
@click.option("--days", type=click.FloatRange(0, min_open=True), default=14, show_default=True, help="Newest days.")
@click.option(
    "--metric",
    type=click.Choice(["auc", "log_loss", "ndcg_10"]),
    default="auc",
    show_default=True,
    help="Which decides; the others must not be lost.",
)
@click.option(
    "--margin",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="How much worse it may be: 0 asks for a clear gain, more for no clear loss.",
)
@click.option("--replicates", type=click.IntRange(100), default=1000, show_default=True, help="Resamplings of users.")
@click.option("--dry-run", is_flag=True, help="Compare only: nothing is put in place, nothing written.")
def promote(
    candidate: Path,
    place: Path,
    frame: Path,
    days: float,
    metric: str,
    margin: float,
    replicates: int,
    dry_run: bool,
) -> None:
    """Put CANDIDATE in the place of the ranker that serves, if it is better on the newest days.

    Compared by paired intervals on impressions that neither was trained or tuned on. What loses or cannot be told is
    refused, with exit code 3. A running service takes the new one in by itself; `rank rollback --ranker` goes back.
    Both are written to promotions.jsonl.
    """
    from ranking.monitor.placing import log_decision, put_in_place
    from ranking.monitor.promotion import Rule, decide

    decision = decide(candidate, place, frame, Rule(metric, margin, days, replicates))
    facts = decision.facts
    if facts:
        click.echo(
            f"rank promote: {facts['rows']:,} impressions of {facts['users']:,} users, {facts['positives']:,} "
            f"positive, {facts['from'][:10]} to {facts['to'][:10]}"
        )
    if decision.promoted and not dry_run:
        put_in_place(candidate, place)
    if not dry_run:
        log_decision(place, candidate, decision)
    verdict = ("would be promoted" if dry_run else "promoted") if decision.promoted else "refused"
    click.echo(f"rank promote: {verdict}: {decision.reason}")
    if not decision.promoted:
        raise click.exceptions.Exit(3)
