"""`advprior rank report`: one page to mail, and what to type after it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from advprior.store.runs import is_current, manifest_digest, new_run, read_manifest, run_key
from ranking.cli.measure import _ABLATE_FIX, _FOLDER, force_option

_PRICE = click.FloatRange(0, min_open=True)
REPORT_VERSION = 5  # 5: both steps first, then what they are worth


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
@click.option("--cpu-hour", type=_PRICE, help="Price of a CPU-hour. Default: price.cpu_hour of the project.")
@click.option("--gpu-hour", type=_PRICE, help="Price of a GPU-hour. Default: price.gpu_hour of the project.")
@click.option("--currency", help="Of both. Default: price.currency of the project, else USD.")
@force_option
def report(
    ablation: Path,
    out: Path,
    predictor_runs: tuple[Path, ...],
    candidates: Path | None,
    two_by_two: Path | None,
    force: bool,
    **price: Any,
) -> None:
    """One HTML file to mail: verdict, arms, segments, calibration, importance, provenance.

    It leads with conversions per slate over both steps, then each step, then what conversions cost in computing.
    """
    from ranking.cli.defaults import price_of

    read_manifest(ablation, step="rank ablate", fix=_ABLATE_FIX)
    more = [folder for folder in (candidates, two_by_two) if folder is not None]
    inputs = {"ablation": manifest_digest(ablation), **{str(p): manifest_digest(p) for p in (*predictor_runs, *more)}}
    own = price_of(price, ablation, out)
    config = {"price": own} if own else {}
    key = run_key("rank report", config, inputs, REPORT_VERSION)
    if not force and is_current(out, key):
        click.echo(f"rank report: unchanged, reused {out}")
    else:
        from ranking.candidates.section import retrieval_section
        from ranking.evidence.report import REPORT_FILE, write_report
        from ranking.evidence.worth import Price

        with new_run(out, "rank report", config=config, inputs=inputs, key=key) as run:
            retrieval = retrieval_section(candidates, two_by_two)
            paid = Price(**own) if "cpu_hour" in own or "gpu_hour" in own else None
            verdict = write_report(ablation, run.path / REPORT_FILE, predictor_runs, retrieval, paid)
            run.facts.update(verdict=verdict.sentence, others=verdict.sentences[1:], kind=verdict.kind)
            run.facts.update(one_seed=verdict.one_seed)
    facts = read_manifest(out)["facts"]
    click.echo(f"verdict: {facts['verdict']}")
    for other in facts["others"]:
        click.echo(f"also:    {other}")
    note = read_manifest(ablation)["facts"].get("note")
    if note:
        click.echo(f"data:    {note}")
    click.echo(f"report:  {out / 'report.html'}")
    click.echo(f"next:    {_next_command(ablation, facts)}")


def _next_command(ablation: Path, verdict: Mapping[str, Any]) -> str:
    """What to try after this report: a ranker to serve, more seeds, what is missing beside it, or more users."""
    facts = {**read_manifest(ablation)["facts"], "kind": verdict["kind"], "one_seed": verdict["one_seed"]}
    facts["worth"] = verdict["kind"] == "win" or facts.get("worth")
    frame = facts.get("frame", "FRAME")  # a result that was saved from Python does not say
    ablate_again = f"advprior rank ablate --frame {frame} --out {ablation}"
    if facts.get("one_seed"):
        return f"{ablate_again} --seeds 3   (of one seed, nothing is clear)"
    if facts.get("worth"):
        out = ablation.parent / "ranker"
        return f"advprior rank train --frame {frame} --arm {facts['arm']} --out {out}"
    if facts["kind"] == "untrusted":
        return f"{ablate_again} --seeds 5   (less noise of training)"
    if facts["kind"] == "controls":
        return "advprior finetune, score, publish a prior to put on trial, then rank frame and rank ablate again"
    if facts["kind"] == "gain":
        return "measure what the verdict says is missing beside it; only then train a ranker on it"
    example = facts.get("note")  # what public or made-up data say of themselves
    more = "more users, or more weeks of them, shorten the intervals"
    return more + ("; for your own data: advprior init DIR" if example else "")
