"""The daily refresh: new rows of the tables -> checked tables -> priors -> feature store -> online store.

Safe to run again at any time: what is unchanged is reused, a refresh that was stopped goes on, and a step that fails
leaves what is served as it was. What was published stays: new snapshots join it, late rows change none.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from advprior.pipeline.chain import CLUSTERED, PAIRS, tables_folder
from advprior.pipeline.refresh_priors import Priors, refresh_priors
from advprior.pipeline.refresh_store import apply_if_changed, materialize
from advprior.pipeline.settings import HIDDEN, Project
from advprior.store.contract import prior_view
from advprior.store.errors import AdvpriorError
from advprior.store.progress import duration
from advprior.store.runs import read_manifest, write_json
from advprior.store.tables import load_time_plan

LOCK_FILE = f"{HIDDEN}/refresh.lock"
RECORD_FILE = f"{HIDDEN}/refresh.json"
REPO = Path("feature_repo")
BUSY = 75  # sysexits.h: try again later
#: Exit code of `rank check` where all that is wrong is that the data are of another time than the clock.
_OF_ANOTHER_TIME = 3

#: Runs a command of `advprior` here and gives its exit code: `ranking`'s commands are not ours to import.
Command = Callable[[Sequence[str]], int]
Say = Callable[[str], None]


@dataclass(frozen=True)
class RefreshOptions:
    """How one refresh is done.

    Parameters
    ----------
    now : datetime, optional
        The time that it counts as; by default the clock's. Nothing later goes online, and the preflight is of then.
    threads : int, optional
        Of ONNX Runtime; real cores by default.
    check : bool
        End with the service's preflight.
    """

    now: datetime | None = None
    threads: int | None = None
    check: bool = True

    def moment(self) -> datetime:
        """The time it is, or counts as."""
        return self.now or datetime.now(UTC)


@dataclass
class Refreshed:
    """What a refresh did, for its record."""

    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def refresh(project: Project, options: RefreshOptions, command: Command, say: Say) -> Refreshed:
    """Bring a project's store up to date.

    Parameters
    ----------
    project : Project
        After `advprior run`: with tables, a fitted and exported model of the served prior, and rankers.
    options : RefreshOptions
    command : callable
        Runs an `advprior` command in the project folder.
    say : callable
        Takes each line for the user.

    Raises
    ------
    AdvpriorError
        ``RUN014`` while another refresh runs (exit code 75), ``RUN015`` where the export fails, and what the steps
        raise.
    """
    with _alone(project.folder), chdir(project.folder):
        begun = options.moment()
        done = Refreshed()
        tables = _tables(project, command, done)
        read = tables
        if project.config.served.by == "advertiser_category":
            _step(command, "data", "pairs", "--tables", tables, "--out", PAIRS)
            read = PAIRS
        step = partial(_step, command)
        served = project.config.served.name
        priors = refresh_priors(Priors(served, Path(read), REPO, project.config.refresh, step, options.threads), say)
        done.facts |= priors
        counted = tables
        if project.config.clusters is not None:
            counted = CLUSTERED
            step("data", "clusters", "--tables", tables, *project.config.cluster_options, "--out", counted, "--keep")
        step("rank", "features", "--tables", counted, "--repo", str(REPO))
        apply_if_changed(REPO, Path(HIDDEN), say)
        plan, newest = load_time_plan(Path(tables)), datetime.fromisoformat(priors["last_snapshot"])
        done.notes += wait_until_due(newest + plan.lag, plan.lag, options, say)
        rows = materialize(REPO, options.moment(), plan)
        say(f"refresh: {rows} views are online as of {options.moment():%Y-%m-%d %H:%M} UTC")
        done.notes += _lateness(Path(tables), priors, options.moment()) + moving_plan(Path(tables))
        if options.check:
            done.notes += _preflight(project, options, command)
        _remove_old(Path("refresh") / served, project.config.refresh.keep_runs)
        done.facts |= {"began": begun.isoformat(), "ended": options.moment().isoformat()}
        write_json(Path(RECORD_FILE), done.facts)
        for note in done.notes:
            say(f"refresh: {note}")
        say(f"refresh: done, {priors['snapshots']} snapshots published, the newest of {priors['last_snapshot'][:16]}")
        return done


def wait_until_due(
    due: datetime, lag: timedelta, options: RefreshOptions, say: Say, sleep: Callable[[float], None] = time.sleep
) -> list[str]:
    """Wait until the newest snapshot's rows are available, as the time plan's lag says; notes where that is not done.

    Rows from the future are not put online: whoever ended before the lag was over served yesterday's until tomorrow.

    Parameters
    ----------
    due : datetime
        Of the newest snapshot and its lag.
    lag : timedelta
        As long as this, at most, is waited.
    options : RefreshOptions
        A refresh that counts as of another time waits for nothing.
    say : callable
    sleep : callable
        Takes seconds.
    """
    left = due - options.moment()
    if left <= timedelta(0):
        return []
    if options.now is not None or left > lag:
        return [
            f"the newest snapshot is available from {due:%Y-%m-%d %H:%M} UTC on, by the time plan's lag: its rows go "
            "online with a refresh from then on"
        ]
    say(f"refresh: waits {duration(left.total_seconds())}: the newest snapshot is available at {due:%H:%M} UTC")
    sleep(left.total_seconds())
    return []


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One refresh at a time: two would publish over each other. The lock ends with the process, however it ends."""
    path = folder / LOCK_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o640)  # never removed: a lock is of the file, not of its path
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            error = AdvpriorError(
                "RUN014",
                "another refresh of this project is running",
                where=str(folder),
                actual=f"{path} is locked",
                expected="one at a time",
                fix="wait for it; the next refresh takes in all that is new",
            )
            error.exit_code = BUSY
            raise error from None
        yield
    finally:
        os.close(lock)


def _tables(project: Project, command: Command, done: Refreshed) -> str:
    """The user's export, then checked tables; the folder. All problems at once, and yesterday's tables stay."""
    export, mapping = project.config.refresh.export, project.config.tables.mapping
    if export:
        code = subprocess.run(["bash", "-c", export], check=False).returncode
        if code:
            raise AdvpriorError(
                "RUN015",
                "the export of the refresh failed",
                where=f"refresh.export of advprior.yaml: {export}",
                actual=f"exit code {code}",
                expected="0",
                fix="run it by itself; what is served is as it was",
            )
    tables = tables_folder(project)
    if mapping is not None:
        _step(command, "data", "check", "--mapping", mapping, "--out", tables, "--late")
    facts = read_manifest(Path(tables))["facts"]
    done.facts |= {"tables": facts.get("rows"), "late_rows": facts.get("late_rows", 0)}
    return tables


def _step(command: Command, *words: str) -> None:
    """One command; what it says stands for itself."""
    code = command(words)
    if code:
        raise AdvpriorError(
            "RUN010",
            f"`advprior {shlex.join(words[:2])}` failed",
            where="advprior refresh",
            actual=f"exit code {code}",
            expected="0",
            fix=f"advprior {shlex.join(words)}",
        )


def _lateness(tables: Path, priors: dict[str, Any], now: datetime) -> list[str]:
    """Whether what came online now was promised for earlier: a frame would believe the promise."""
    if not priors["added"]:
        return []
    plan = load_time_plan(tables)
    late = now - datetime.fromisoformat(priors["last_snapshot"]) - plan.lag
    if not timedelta(0) < late < plan.snapshot_every:
        return []
    hours = (late + plan.lag) / timedelta(hours=1)
    return [
        f"the newest snapshot came online {duration(late.total_seconds())} later than the time plan's lag says, which "
        f"frames believe: set `lag: {-(-hours // 1):.0f}h` in time_plan of the mapping, or refresh earlier"
    ]


def moving_plan(tables: Path) -> list[str]:
    """What to write where nobody has stated a time plan: one that is proposed moves with the data at each refresh."""
    if not read_manifest(tables)["facts"].get("time_plan_proposed"):
        return []
    plan = load_time_plan(tables)
    moments = {name: getattr(plan, name) for name in ("start", "finetune_end", "train_end", "valid_end")}
    stated = ", ".join(f"{name}: {moment.isoformat()}" for name, moment in moments.items())
    return [
        "no time plan is stated, and one that is proposed moves with the data: its snapshots lie elsewhere each time, "
        f"and all is counted anew. Keep this one, in the mapping: `time_plan: {{{stated}}}`"
    ]


def _preflight(project: Project, options: RefreshOptions, command: Command) -> list[str]:
    """Does what is in the online store now serve? Nothing is undone where not: the steps before were sound."""
    words = ["rank", "check", "--repo", str(REPO), "--ranker", "ranker", "--fallback", "ranker_baseline"]
    words += shlex.split(project.config.refresh.check)
    if options.now is not None and "--clock-start" not in words:
        words += ["--clock-start", options.now.isoformat()]
    code = command(words)
    if code == _OF_ANOTHER_TIME:
        return ["what is online is current for these data, which end before today: see the fix above"]
    if code:
        raise AdvpriorError(
            "RUN016",
            "what is online now would not be served well",
            where="the preflight of the refresh",
            actual=f"exit code {code} of advprior {shlex.join(words)}",
            expected="0",
            fix="the fixes above; to serve what was served before: advprior rank rollback --repo feature_repo --view "
            f"{prior_view(project.config.served.name)}",
        )
    return []


def _remove_old(runs: Path, keep: int) -> None:
    """Scored runs of earlier days: what is published was copied, and the newest is what the next one starts from."""
    for old in sorted(runs.glob("2*"))[:-keep]:
        shutil.rmtree(old)
