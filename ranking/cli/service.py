"""`advprior rank serve`, `check` and `rollback`: options in, heavy imports inside."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from advprior.store.errors import AdvpriorError

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)


class Moment(click.ParamType):  # type: ignore[type-arg]
    """A time with a zone, ISO 8601."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no ISO 8601 time", param, ctx)
        if moment.tzinfo is None:
            self.fail(f"{value!r} has no zone: add Z or +00:00", param, ctx)
        return moment


_OPTIONS = [
    click.option("--repo", type=_FOLDER, required=True, help="Feature repository, published and applied."),
    click.option("--ranker", type=_FOLDER, required=True, help="Ranker with priors (`rank train`)."),
    click.option("--fallback", type=_FOLDER, required=True, help="Ranker without priors, for when there are none."),
    click.option("--experiment", type=_FILE, help="Experiment YAML: name, salt, arms. Default: priors for everybody."),
    click.option("--exposures", type=_FOLDER, help="Where exposures are logged. Default: nowhere."),
    click.option(
        "--fsync",
        type=click.Choice(["always", "interval", "never"]),
        default="interval",
        show_default=True,
        help="When exposures are forced to the disk. A killed process loses none either way.",
    ),
    click.option(
        "--log-features",
        type=click.FloatRange(0, 1),
        default=0.0,
        show_default=True,
        help="Share of exposures that are logged with their features, for `rank drift --exposures`.",
    ),
    click.option(
        "--no-api-key",
        "api_key",
        is_flag=True,
        flag_value=False,
        default=True,
        help="Serve without the key that ADVPRIOR_API_KEY holds.",
    ),
    click.option("--max-prior-age-days", type=float, help="Older priors are not used. Default: the view's TTL."),
    click.option("--max-candidates", type=click.IntRange(1), default=1000, show_default=True),
    click.option("--max-slots", type=click.IntRange(1), default=100, show_default=True),
    click.option(
        "--max-body",
        type=click.IntRange(1024),
        default=262_144,
        show_default=True,
        help="Largest request body, in bytes.",
    ),
    click.option(
        "--refresh-s",
        type=float,
        default=60.0,
        show_default=True,
        help="How often ads, catalogs and rankers are looked at.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Requests that one worker ranks at a time.",
    ),
    click.option(
        "--max-waiting",
        type=click.IntRange(0),
        default=32,
        show_default=True,
        help="Requests of one burst that may wait for one worker; more are answered 429 at once, and under overload "
        "nearly all that would wait.",
    ),
    click.option(
        "--page",
        is_flag=True,
        help="Show at / a user's profile, history, priors and both slates. Browsers give the API key as password.",
    ),
    click.option(
        "--traces",
        is_flag=True,
        help="Trace ranked requests by OpenTelemetry, to where its OTEL_* variables say (extra [otel]).",
    ),
    click.option(
        "--no-compile", "compile", is_flag=True, flag_value=False, default=True, help="Score with LightGBM itself."
    ),
    click.option(
        "--towers",
        type=_FOLDER,
        help="`rank towers` run: retrieves for requests that bring no candidates. Default: the ads shown most often.",
    ),
    click.option(
        "--candidates",
        type=_FOLDER,
        help="`rank candidates` run on these towers: its quota of slots goes to predicted advertisers' ads.",
    ),
    click.option(
        "--default-candidates",
        type=click.IntRange(1),
        help="Ads ranked for a request that brings none. Default: what the quota was chosen for; else 500.",
    ),
    click.option(
        "--exact-up-to",
        type=click.IntRange(0),
        default=50_000,
        show_default=True,
        help="Ads up to which retrieval is exact; an index beyond it (faiss).",
    ),
    click.option(
        "--clock",
        "clock_source",
        type=click.Choice(["system", "request"]),
        default="system",
        show_default=True,
        help="request: `rank replay` says as of when each request is ranked. On loopback only.",
    ),
    click.option("--clock-start", type=Moment(), help="Start the service's clock there: to replay a past day."),
]

#: Seconds without a sign of life after which a worker is killed and started anew. uvicorn's 5 are less than a worker
#: needs to import what it serves with where many processes share a core: it would be killed each time before it is up.
WORKER_SILENT_S = 60


def _served(command: Any) -> Any:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _settings(values: dict[str, Any]) -> Any:
    if values["candidates"] is not None and values["towers"] is None:
        raise AdvpriorError(
            "CFG001",
            "a quota of slots needs towers that fill the rest",
            where="--candidates",
            actual="no --towers",
            expected="the towers that `rank candidates` was run on",
            fix="add --towers TOWERS",
        )
    try:
        from ranking.service.settings import ServeSettings

        return ServeSettings(**values)
    except ImportError as error:
        raise _lacking(error) from error


def _lacking(error: ImportError) -> AdvpriorError:
    return AdvpriorError(
        "SRV006",
        "the service's packages are not installed",
        actual=str(error),
        expected="the extra [serve]",
        fix="pip install 'advprior[serve]' (and 'advprior[redis]' for Redis)",
    )


@click.command()
@_served
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 for every interface.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Worker processes.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
@click.option(
    "--drain-s", type=click.IntRange(1), default=10, show_default=True, help="Seconds to finish running requests."
)
def serve(host: str, port: int, workers: int, log_level: str, drain_s: int, **values: Any) -> None:
    """Serve POST /rank over HTTP.

    Reads exactly the features of both rankers, and refuses to start when their feature services lack one. SIGTERM
    stops it once running requests are answered.
    """
    settings = _settings(values)
    if values["clock_source"] == "request" and not _loopback(host):
        raise AdvpriorError(
            "SRV013",
            "requests may set the clock on this machine only",
            where="--clock request",
            actual=f"--host {host}",
            expected="a loopback address, as 127.0.0.1",
            fix="leave --clock out, or replay on this machine",
        )
    from ranking.cli.metrics_folder import metrics_folder

    with metrics_folder(workers):  # before anything imports prometheus_client
        _serve(settings, host, port, workers, log_level, drain_s)


def _serve(settings: Any, host: str, port: int, workers: int, log_level: str, drain_s: int) -> None:
    """Serve until a signal ends it."""
    from ranking.service.memory import settle

    settle()  # before anything imports Arrow, in this process and in its workers
    try:
        import uvicorn

        from ranking.service.logs import log_config
        from ranking.service.settings import SETTINGS_VARIABLE
    except ImportError as error:
        raise _lacking(error) from error
    options: dict[str, Any] = {
        "host": host,
        "port": port,
        "log_config": log_config(log_level),
        "access_log": False,
        "server_header": False,
        "timeout_graceful_shutdown": drain_s,
        "backlog": 2048,
    }
    click.echo(
        f"rank serve: http://{host}:{port}, openapi at /openapi.json, API key {'on' if settings.api_key else 'OFF'}"
    )
    if settings.page:
        click.echo(f"rank serve: to look at a user, open http://{host}:{port}/")
    if workers == 1:
        uvicorn.run(_app(settings), **options)
        return
    os.environ[SETTINGS_VARIABLE] = settings.model_dump_json()
    _try_start(os.environ[SETTINGS_VARIABLE])
    options["timeout_worker_healthcheck"] = WORKER_SILENT_S
    uvicorn.run("ranking.service.app:app_from_environment", factory=True, workers=workers, **options)


def _app(settings: Any) -> Any:
    """The application, where this process is the only one that serves."""
    try:
        from ranking.models.lightgbm_library import light_lightgbm_import
        from ranking.service.app import create_app
    except ImportError as error:
        raise _lacking(error) from error
    light_lightgbm_import()
    return create_app(settings)


def _try_start(settings_json: str) -> None:
    """Refuse once what every worker would, in a process that ends: this one stays small beside its workers."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
            apart.submit(_try_here, settings_json).result()
    except ImportError as error:
        raise _lacking(error) from error


def _try_here(settings_json: str) -> None:
    from ranking.service.app import try_start

    try_start(settings_json)


def _loopback(host: str) -> bool:
    """Whether an address is reached from this machine only.

    >>> [_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.1", "example.org")]
    [True, True, True, False, False, False]
    """
    from ipaddress import ip_address

    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


@click.command()
@_served
def check(**values: Any) -> None:
    """Preflight of `rank serve`: what would refuse to start, or serve badly.

    Exit code 2 on a problem; 3 where the only one is that the data are of another time than the clock.
    """
    settings = _settings(values)
    try:
        from ranking.service.check import run_checks
    except ImportError as error:
        raise _lacking(error) from error
    problems = []
    for note in run_checks(settings):
        mark = {True: "ok     ", None: "warning", False: "PROBLEM"}[note.ok]
        click.echo(f"{mark} {note.text}" + (f"\n        fix: {note.fix}" if note.fix and not note.ok else ""))
        problems += [note] if note.ok is False else []
    if problems:
        raise click.exceptions.Exit(3 if all(note.of_another_time for note in problems) else 2)
    click.echo("rank check: ready to serve")


@click.command()
@click.option("--repo", type=_FOLDER, help="Feature repository, with --view.")
@click.option("--view", "views", multiple=True, help="View to take back, such as prior_llm. Repeatable.")
@click.option("--ranker", type=_FOLDER, help="In their place: the ranker that `rank promote` put there.")
@click.option("--snapshot", type=Moment(), help="Of the current publication. Default: what was published before it.")
@click.option("--now", type=Moment(), help="Leave out what becomes available later. Default: the time it is.")
def rollback(
    repo: Path | None, views: tuple[str, ...], ranker: Path | None, snapshot: datetime | None, now: datetime | None
) -> None:
    """Serve the previous publication's newest rows again, or the previous ranker, without an outage.

    The next publish and materialize go on from there.
    """
    from datetime import UTC

    if ranker is not None:
        if repo is not None or views or snapshot is not None or now is not None:
            raise click.UsageError("--ranker takes the place of --repo and --view")
        from ranking.monitor.placing import log_line, take_back

        gone, back = take_back(ranker)
        log_line(ranker, "rolled back", {"current": back, "candidate": gone})
        click.echo(f"rank rollback: {ranker} is ranker {back} again, in place of {gone}")
        return
    if repo is None or not views:
        raise click.UsageError("give --repo and --view, or --ranker")

    from ranking.frame.preflight import check_store
    from ranking.service.rollback import roll_back

    check_store(repo)
    for view in views:
        done = roll_back(repo, view, now or datetime.now(UTC), snapshot)
        where = f"{done.version}, now current" if done.swapped else done.version
        click.echo(f"rank rollback: {view} serves {done.rows:,} rows of {done.snapshot.isoformat()} ({where})")
