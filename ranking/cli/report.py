"""`advprior rank report`: one page to mail, and what to type after it."""

from __future__ import annotations

from pathlib import Path

import click

from advprior.store.runs import is_current, manifest_digest, new_run, read_manifest, run_key
from ranking.cli.measure import _ABLATE_FIX, _FOLDER, force_option

REPORT_VERSION = 4  # 4: every claim with its control and placebo


@click.command()
@click.argument("ablation", type=_FOLDER)
@click.option("--out", type=_FOLDER, required=True, help="Where report.html goes.")
@click.option(
    "--predictor-run",
    "predictor_runs",
    type=_FOLDER,
    multiple=True,
    help="A finetune, export or score folder, whose facts belong in the report. Repeatable.",
)
@click.option("--candidates", type=_FOLDER, help="What `rank candidates` wrote, for a section on retrieval.")
@click.option("--two-by-two", type=_FOLDER, help="What `rank two-by-two` wrote, for its table.")
@force_option
def report(
    ablation: Path,
    out: Path,
    predictor_runs: tuple[Path, ...],
    candidates: Path | None,
    two_by_two: Path | None,
    force: bool,
) -> None:
    """One HTML file to mail: verdict, arms, segments, calibration, importance, provenance."""
    read_manifest(ablation, step="rank ablate", fix=_ABLATE_FIX)
    more = [folder for folder in (candidates, two_by_two) if folder is not None]
    inputs = {"ablation": manifest_digest(ablation), **{str(p): manifest_digest(p) for p in (*predictor_runs, *more)}}
    key = run_key("rank report", {}, inputs, REPORT_VERSION)
    if not force and is_current(out, key):
        click.echo(f"rank report: unchanged, reused {out}")
        sentence = str(read_manifest(out)["facts"]["verdict"])
    else:
        from ranking.candidates.section import retrieval_section
        from ranking.evidence.report import REPORT_FILE, write_report

        with new_run(out, "rank report", config={}, inputs=inputs, key=key) as run:
            retrieval = retrieval_section(candidates, two_by_two)
            sentence = write_report(ablation, run.path / REPORT_FILE, predictor_runs, retrieval)
            run.facts.update(verdict=sentence, others=read_manifest(ablation)["facts"].get("others", []))
    click.echo(f"verdict: {sentence}")
    facts = read_manifest(ablation)["facts"]
    for other in facts.get("others", []):
        click.echo(f"also:    {other}")
    if facts.get("note"):
        click.echo(f"data:    {facts['note']}")
    click.echo(f"report:  {out / 'report.html'}")
    click.echo(f"next:    {_next_command(ablation)}")


def _next_command(ablation: Path) -> str:
    """What to try after this report: a ranker to serve, more seeds, what is missing beside it, or more users."""
    facts = read_manifest(ablation)["facts"]
    ablate_again = f"advprior rank ablate --frame {facts['frame']} --out {ablation}"
    if facts.get("one_seed"):
        return f"{ablate_again} --seeds 3   (of one seed, nothing is clear)"
    if facts.get("worth"):
        out = ablation.parent / "ranker"
        return f"advprior rank train --frame {facts['frame']} --arm {facts['arm']} --out {out}"
    if facts["kind"] == "untrusted":
        return f"{ablate_again} --seeds 5   (less noise of training)"
    if facts["kind"] == "controls":
        return "advprior finetune, score, publish a prior to put on trial, then rank frame and rank ablate again"
    if facts["kind"] == "gain":
        return "measure what the verdict says is missing beside it; only then train a ranker on it"
    example = facts.get("note")  # what public or made-up data say of themselves
    more = "more users, or more weeks of them, shorten the intervals"
    return more + ("; for your own data: advprior init DIR" if example else "")
