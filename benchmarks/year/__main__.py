"""Run the year: ``python -m benchmarks.year --days 365``; exit code 1 where a line of the table is missed."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from advprior.data.drawn import Size
from advprior.store.spent import cpu_seconds
from benchmarks.scale.rows import Rows
from benchmarks.serve_setup import about_machine, process, redis_server
from benchmarks.year import checks, experiment
from benchmarks.year.calendar import Calendar
from benchmarks.year.project import Project, serve_command
from benchmarks.year.serving import metrics_of
from benchmarks.year.traffic import Traffic, outcomes
from benchmarks.year.world import DAY, FIRST, WARM_WEEKS, Plan, World
from benchmarks.year.year import Running, Year
from tests.ports import free_port

_RELOADS = ("done", "refused")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--users", type=int, default=600)
    parser.add_argument("--advertisers", type=int, default=24)
    parser.add_argument("--requests", type=int, default=140, help="A day.")
    parser.add_argument("--nulls", type=int, default=200, help="Replays of the experiment with nothing planted.")
    parser.add_argument("--minutes", type=float, default=240, help="Stop the year after so many, and say so.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="Where to leave everything. Default: nowhere.")
    options = parser.parse_args()
    about_machine()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        with redis_server(folder) as redis_port:
            if redis_port is None:
                sys.exit("the year needs a redis-server")
            sys.exit(run(options, folder, redis_port))


def run(options: argparse.Namespace, folder: Path, redis_port: int) -> int:
    """Live through the year and print its table; the exit code."""
    begin = time.monotonic()
    rng = np.random.default_rng(options.seed)
    calendar = Calendar.of(options.days, rng)
    weeks = WARM_WEEKS + -(-options.days // 7) + 1
    world = World(
        folder, Size(options.users, options.advertisers, weeks, options.seed), calendar.schema, calendar.drift
    )
    project = Project(folder / "project", folder / "commands.log")
    first = FIRST + DAY / 24
    world.export(first, Plan(0, 0))
    project.lay_out(folder / "raw", redis_port)
    project.first_run(first)
    test, exposures = folder / "experiment.yaml", folder / "exposures"
    experiment.write_experiment(test, options.users)
    port = free_port()
    with process(serve_command(project, port, test, exposures), port, "/ready", folder / "service.log") as service:
        traffic = Traffic(world, port, rng)
        try:
            beside = Running(port, redis_port, service.pid, exposures)
            year = Year(world, project, calendar, beside, traffic, options.requests)
            year.live(options.minutes)
            metrics = metrics_of(port)
        finally:
            traffic.close()
    lived = year.record.lived
    print(
        f"{lived} days in {(time.monotonic() - begin) / 60:.1f} minutes; {world.late:.1%} of events late",
        flush=True,
    )
    year.record.reloads.update({name: metrics[f'advprior_ranker_reloads{{result="{name}"}}'] for name in _RELOADS})
    rows = Rows("year")
    rows.at_least("simulated days", lived, options.days)
    checks.check_requests(rows, traffic.answers, exposures)
    checks.check_faults(rows, year.record, calendar)
    checks.check_sizes(rows, year.record)
    checks.check_audit(rows, year.record, min(50_000, (options.requests - 1) * (lived - 2)))
    clicks = outcomes(traffic.answers, rng, experiment.LIFT, FIRST + calendar.lift * DAY)
    announced = experiment.read_out(project, clicks, exposures, test, calendar)
    looks = experiment.Looks.of(traffic.answers, lived, options.users)
    nulls = [looks.first_announced(rng) for _ in tqdm(range(options.nulls), desc="nulls", disable=None)]
    checks.check_experiment(rows, announced, calendar, nulls)
    checks.check_drift(rows, year.record, calendar)
    commands, served = year.record.cpu_a_day
    rows.note("CPU-seconds of a simulated day: commands and the bench itself", f"{commands:.2f}")
    rows.note("CPU-seconds of a simulated day: the service", f"{served:.2f}")
    for command, seconds in sorted(project.spent.items(), key=lambda one: -one[1])[:8]:
        rows.note(f"CPU-seconds of {command}, here", f"{seconds:.0f}")
    rows.note("CPU-seconds in all, of this process and those it waited for", f"{cpu_seconds():.0f}")
    return rows.exit_code


if __name__ == "__main__":
    main()
