"""`advprior rank drift`: options in, one folder out. Heavy imports stay inside, after the reuse check."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from advprior.store.runs import digest, is_current, manifest_digest, new_run, read_manifest, run_key, write_json
from ranking.cli.service import Moment

_FOLDER = click.Path(path_type=Path, file_okay=False)
DRIFT_VERSION = 4
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

    From 0.1 on a move is moderate, from 0.25 on major. All columns of one prior are one finding: it moves with all of
    them. Exit code 3 when one is as severe as --fail-on.
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
            findings = report.findings()
            write_json(run.path / DRIFT_FILE, report.to_json())
            (run.path / PAGE_FILE).write_text(render(report), encoding="utf-8")
            run.facts.update(
                worst=report.worst(),
                measured=len(report.drifts),
                moderate=sum(one.severity == "moderate" for one in findings),
                major=sum(one.severity == "major" for one in findings),
                largest=[one.text() for one in findings[:5]]
                or [f"{one.severity:<8} {one.psi:.3f} {one.name}" for one in report.drifts[:5]],
                compared=compared_lines(report.about),
            )
    facts = read_manifest(out)["facts"]
    for line in (*facts["compared"], *facts["largest"]):
        click.echo(line)
    click.echo(
        f"rank drift: {facts['worst']}; {facts['measured']} columns measured; {facts['moderate']} moderate and "
        f"{facts['major']} major moves, a prior counted once, in {out / PAGE_FILE}"
    )
    from ranking.monitor.severity import at_least

    if at_least(facts["worst"], fail_on):
        raise click.exceptions.Exit(3)


def compared_lines(about: Mapping[str, Any]) -> list[str]:
    """What was compared with what, so that nobody reads "stable" off a comparison that was none."""
    sides = [
        f"{about[side]['what']} of {about[side]['from'][:10]} to {about[side]['to'][:10]}"
        for side in ("reference", "current")
    ]
    return [
        f"{sides[0]} against {sides[1]}",
        *(
            f"prior {name}: {one['reference_snapshots']} snapshots of the time of training against {one['newest'][:10]}"
            for name, one in about["priors"].items()
        ),
    ]


AUDIT_FILE = "audit.json"


@click.command()
@click.option("--tables", type=_FOLDER, required=True, help="Canonical tables that a frame would be built of.")
@click.option("--repo", type=_FOLDER, required=True, help="Feature repository.")
@click.option("--exposures", type=_FOLDER, required=True, help="Log of a service that runs with --log-features.")
@click.option("--ranker", "rankers", type=_FOLDER, multiple=True, required=True, help="Whose exposures. Repeatable.")
@click.option(
    "--frame", type=_FOLDER, help="What the rankers were trained on: drift since then, online and in the frame."
)
@click.option("--from", "start", type=Moment(), help="Only exposures from then on: those since the last audit.")
@click.option("--to", "end", type=Moment(), help="Up to then, not with it.")
@click.option("--limit", type=click.IntRange(1), help="Only so many exposures of each, the newest.")
@click.option(
    "--fail-on",
    type=click.Choice(["skew", "any", "never"]),
    default="skew",
    show_default=True,
    help="Exit code 3: for other values at the same time, for any difference, or never.",
)
@click.option("--out", type=_FOLDER, default=Path("audit"), show_default=True, help="Where audit.json goes.")
def audit(
    tables: Path,
    repo: Path,
    exposures: Path,
    rankers: tuple[Path, ...],
    frame: Path | None,
    start: datetime | None,
    end: datetime | None,
    limit: int | None,
    fail_on: str,
    out: Path,
) -> None:
    """Is the frame what was served? Each feature that was logged online, against the frame of the same rows.

    What differs is named, by column and cause: a refresh that was under way, a degraded answer, or a skew.
    """
    from ranking.experiment.shown_rows import Window
    from ranking.monitor.audit import audits

    window = Window(start, end, limit)
    config = {"limit": limit, "from": start and start.isoformat(), "to": end and end.isoformat()}
    inputs = {"tables": manifest_digest(tables)} | {str(folder): manifest_digest(folder) for folder in rankers}
    failed = False
    with new_run(out, "rank audit", config=config, inputs=inputs, key=run_key("rank audit", config, inputs)) as run:
        done = audits(tables, repo, exposures, rankers, window=window, frame=frame)
        write_json(run.path / AUDIT_FILE, [one.to_json() for one in done])
        for one in done:
            for line in one.text():
                click.echo(line)
            failed |= bool(one.unexplained) if fail_on == "skew" else bool(one.unequal)
        run.facts.update(exposures=sum(one.exposures for one in done), unequal=sum(one.unequal for one in done))
    click.echo(f"rank audit: {out / AUDIT_FILE}")
    if failed and fail_on != "never":
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
