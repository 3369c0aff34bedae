"""``advprior card``: the model card of a fitted predictor."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--evaluation",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="What advprior evaluate --out wrote, with RUN among its runs.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="CARD.md",
    help="Where to write; printed without it.",
)
def card(run: Path, evaluation: Path | None, out: Path | None) -> None:
    """Write the model card of the exported predictor in RUN, in Hugging Face form.

    Base and licence, training window, catalog, settings, the ladder of an evaluation, parity of the export, limits and
    code that runs: all from the run's own records.
    """
    from advprior.pipeline.card import card as work
    from advprior.pipeline.card import write_card

    measured = None
    if evaluation is not None:
        from advprior.evaluation.of_run import measured as read_measured

        measured = read_measured(evaluation, run)
    if out is None:
        click.echo(work(run, measured=measured), nl=False)
        return
    write_card(run, out, measured=measured)
    click.echo(
        f"card: {run} -> {out}" + ("" if evaluation else "  (no --evaluation: it says that nothing was measured)")
    )
