"""`advprior rank replay` and `readout`: options in, figures out; heavy imports inside."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from advprior.store.errors import AdvpriorError
from advprior.store.runs import digest, manifest_digest, new_run, read_manifest, run_key
from advprior.store.tables import require_impressions
from ranking.cli.measure import _FOLDER, _FRAME_FIX, _TABLES_FIX, tables_option
from ranking.cli.service import _FILE, Moment

REPLAY_VERSION = 1


@click.command()
@tables_option
@click.option("--out", type=_FOLDER, required=True, help="Where the figures go.")
@click.option(
    "--url", default="http://127.0.0.1:8000", show_default=True, help="The service. ADVPRIOR_API_KEY is sent."
)
@click.option("--day", type=click.DateTime(["%Y-%m-%d"]), help="Day of UTC. Default: the last one with impressions.")
@click.option("--from", "start", type=Moment(), help="In place of a day: from here.")
@click.option("--to", "end", type=Moment(), help="Up to here, not with it.")
@click.option("--limit", type=click.IntRange(1), default=10_000, show_default=True, help="Requests at most.")
@click.option("--rate", type=click.FloatRange(0, min_open=True, max=10_000), help="Requests a second.")
@click.option("--speed", type=click.FloatRange(0, min_open=True), help="This many times as fast as it happened.")
@click.option("--connections", type=click.IntRange(1, 64), default=4, show_default=True, help="Requests at a time.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=30.0, show_default=True, help="At most.")
@click.option("--timeout-s", type=click.FloatRange(0, min_open=True), default=10.0, show_default=True)
@click.option("--frame", "frame_folder", type=_FOLDER, help="`rank frame` run: compare with offline scores.")
@click.option(
    "--ranker", "rankers", type=_FOLDER, multiple=True, help="Ranker folders served, for offline scores. Repeatable."
)
@click.option("--log-exposures", is_flag=True, help="Replay though the service logs exposures: its log is for this.")
def replay(
    tables: Path,
    out: Path,
    url: str,
    timeout_s: float,
    frame_folder: Path | None,
    rankers: tuple[Path, ...],
    log_exposures: bool,
    **window: Any,
) -> None:
    """Send a past day's impressions through the running service, slate by slate.

    Reports errors, degraded answers, latency, AUC and NDCG of the served scores, and how far they are from offline
    ones. Start the service with --clock request, so that each slate is ranked as of its own time. A replay measures
    something that runs: it is never reused.
    """
    _refuse_two(window, ("rate",), ("speed",))
    _refuse_two(window, ("day",), ("start", "end"))
    read_manifest(tables, fix=_TABLES_FIX)
    require_impressions(tables)
    inputs = {"tables": manifest_digest(tables)}
    if frame_folder is not None:
        read_manifest(frame_folder, step="rank frame", fix=_FRAME_FIX)
        inputs["frame"] = manifest_digest(frame_folder)
    inputs |= {f"ranker {i}": manifest_digest(folder) for i, folder in enumerate(rankers)}
    day: datetime | None = window["day"]
    config = {"url": url, **window, "day": day and f"{day:%Y-%m-%d}"}
    from ranking.experiment.client import Service
    from ranking.experiment.past_requests import Pace
    from ranking.experiment.replay import STEP, ReplayOptions
    from ranking.experiment.replay import replay as send
    from ranking.service.settings import KEY_VARIABLE

    key = run_key(STEP, digest(config), inputs, REPLAY_VERSION)
    with new_run(out, STEP, config=config, inputs=inputs, key=key) as run:
        options = ReplayOptions(
            day=day and day.replace(tzinfo=UTC),
            start=window["start"],
            end=window["end"],
            limit=window["limit"],
            pace=Pace(window["rate"], window["speed"], window["connections"], window["minutes"]),
            frame=frame_folder,
            rankers=rankers,
            log_exposures=log_exposures,
        )
        result = send(tables, Service(url, os.environ.get(KEY_VARIABLE), timeout_s), options)
        result.save(run.path)
        run.facts.update(result.about)
    click.echo(f"rank replay: {result.text()}")
    click.echo(f"rank replay: in {out}")


#: How the options are called on the command line, where the parameter has another name.
_OPTION = {"start": "--from", "end": "--to"}


def _refuse_two(values: dict[str, Any], first: tuple[str, ...], second: tuple[str, ...]) -> None:
    """Refuse options that exclude each other."""
    if any(values[name] for name in first) and any(values[name] for name in second):
        raise AdvpriorError(
            "CFG001",
            "two options exclude each other",
            where=", ".join(_OPTION.get(name, f"--{name}") for name in (*first, *second)),
            actual="both",
            expected="one of them",
        )


@click.command()
@click.option("--exposures", type=_FOLDER, required=True, help="What `rank serve --exposures` wrote.")
@click.option("--outcomes", type=_FILE, required=True, help="Parquet: user_id, timestamp, and perhaps value.")
@click.option("--experiment", type=_FILE, required=True, help="The experiment that was served.")
@click.option("--control", help="Arm to compare with. Default: the first without priors.")
@click.option(
    "--pre-days",
    type=click.FloatRange(0),
    default=28.0,
    show_default=True,
    help="Days of outcomes before the first exposure, for CUPED; 0: without.",
)
@click.option("--until", type=Moment(), help="As of then: only exposures and outcomes before it count.")
@click.option("--json", "json_file", type=_FILE, help="Write the figures there too.")
def readout(
    exposures: Path,
    outcomes: Path,
    experiment: Path,
    control: str | None,
    pre_days: float,
    until: datetime | None,
    json_file: Path | None,
) -> None:
    """Lift of each arm over the control, with interval, CUPED and a sample-ratio check.

    Exit code 3 when the sample ratio is not as configured: then the figures must not be trusted.
    """
    from advprior.store.runs import write_json
    from advprior.store.tables import read_parquet
    from ranking.experiment.assignment import load_experiment
    from ranking.experiment.exposures import read_exposures
    from ranking.experiment.readout import read_out

    result = read_out(
        read_exposures(exposures),
        read_parquet(outcomes, columns=_columns_of(outcomes)),
        load_experiment(experiment),
        control=control,
        pre_days=pre_days,
        until=until,
    )
    if json_file is not None:
        write_json(json_file, result.to_json())
    click.echo(result.text())
    if not result.trusted:
        raise click.exceptions.Exit(3)


def _columns_of(outcomes: Path) -> list[str] | None:
    """Of outcomes what is read; all where something is lacking, which is then said."""
    import pyarrow.parquet as pq

    from advprior.store.contract import TIMESTAMP, USER_ID, VALUE

    try:
        names = pq.read_schema(outcomes).names
    except (OSError, ValueError):  # said by who reads it
        return None
    return [name for name in (USER_ID, TIMESTAMP, VALUE) if name in names] if {USER_ID, TIMESTAMP} <= {*names} else None
