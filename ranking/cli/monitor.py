"""`advprior rank drift`: options in, one folder out. Heavy imports stay inside, after the reuse check."""

from __future__ import annotations

from pathlib import Path

import click

from advprior.store.runs import digest, is_current, manifest_digest, new_run, read_manifest, run_key, write_json

_FOLDER = click.Path(path_type=Path, file_okay=False)
DRIFT_VERSION = 1
DRIFT_FILE, PAGE_FILE = "drift.json", "drift.html"


@click.command()
@click.option("--frame", "frame_folder", type=_FOLDER, required=True, help="The frame that the ranker was trained on.")
@click.option("--recent", type=_FOLDER, help="A newer frame; its rows after training count. Default: the test rows.")
@click.option(
    "--exposures", type=_FOLDER, help="Or what a service logged with --log-features: what --ranker really read online."
)
@click.option("--days", type=click.FloatRange(0, min_open=True), help="Only the last so many days of the newer rows.")
@click.option("--ranker", type=_FOLDER, help="Only this ranker's features, with their share of its gain.")
@click.option("--repo", type=_FOLDER, help="Feature repository: compare its published priors by snapshot too.")
@click.option(
    "--fail-on",
    type=click.Choice(["moderate", "major", "never"]),
    default="major",
    show_default=True,
    help="From which severity on the exit code is 3.",
)
@click.option("--out", type=_FOLDER, required=True, help="Where drift.json and drift.html go.")
@click.option("--force", is_flag=True, help="Run even if nothing changed.")
def drift(
    frame_folder: Path,
    recent: Path | None,
    exposures: Path | None,
    days: float | None,
    ranker: Path | None,
    repo: Path | None,
    fail_on: str,
    out: Path,
    force: bool,
) -> None:
    """Drift of features and priors since training: population stability index, JSON and one HTML file.

    From 0.1 on a move is moderate, from 0.25 on major. Exit code 3 when one is as severe as --fail-on.
    """
    if exposures is not None and (recent is not None or ranker is None):
        raise click.UsageError("--exposures takes the place of --recent, and needs the --ranker that served")
    inputs = _inputs(frame_folder, recent, exposures, ranker, repo)
    config = {"days": days}
    key = run_key("rank drift", config, inputs, DRIFT_VERSION)
    if not force and is_current(out, key):
        click.echo(f"rank drift: unchanged, reused {out}")
    else:
        from ranking.monitor.drift import measure
        from ranking.monitor.page import render

        with new_run(out, "rank drift", config=config, inputs=inputs, key=key) as run:
            report = measure(frame_folder, recent=recent, exposures=exposures, days=days, ranker=ranker, repo=repo)
            write_json(run.path / DRIFT_FILE, report.to_json())
            (run.path / PAGE_FILE).write_text(render(report), encoding="utf-8")
            run.facts.update(
                worst=report.worst(),
                measured=len(report.drifts),
                moderate=len(report.of("moderate")),
                major=len(report.of("major")),
                largest=[f"{one.severity:<8} {one.psi:.3f} {one.name}" for one in report.drifts[:5]],
            )
    facts = read_manifest(out)["facts"]
    for line in facts["largest"]:
        click.echo(line)
    click.echo(
        f"rank drift: {facts['worst']}; of {facts['measured']}, {facts['moderate']} moderate, {facts['major']} major, "
        f"in {out / PAGE_FILE}"
    )
    from ranking.monitor.severity import at_least

    if at_least(facts["worst"], fail_on):
        raise click.exceptions.Exit(3)


def _inputs(
    frame: Path, recent: Path | None, exposures: Path | None, ranker: Path | None, repo: Path | None
) -> dict[str, str]:
    """Digests of what the drift is measured on; each folder is a finished run."""
    from advprior.store.contract import prior_view
    from ranking.frame.preflight import check_store, published_predictors
    from ranking.frame.views import view_folder

    step = "advprior rank frame --tables TABLES --repo FEATURE_REPO --out FRAME"
    inputs = {}
    for name, folder in (("frame", frame), ("recent", recent)):
        if folder is not None:
            read_manifest(folder, step="rank frame", fix=step)
            inputs[name] = manifest_digest(folder)
    if ranker is not None:
        inputs["ranker"] = manifest_digest(ranker)
    if exposures is not None:
        inputs["exposures"] = digest({file.name: file.stat().st_size for file in sorted(exposures.glob("*.jsonl"))})
    if repo is not None:
        check_store(repo)
        views = [prior_view(name) for name in published_predictors(repo, [])]
        inputs |= {view: manifest_digest(view_folder(repo, view)) for view in views}
    return inputs
