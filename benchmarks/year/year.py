"""The days of the year, one after the other: export, refresh, requests, and what is due now and then."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from advprior.store.errors import AdvpriorError
from advprior.store.runs import manifest_digest, write_json
from advprior.store.spent import cpu_seconds
from benchmarks.serve_setup import memory_mb
from benchmarks.year import faults
from benchmarks.year.calendar import Calendar
from benchmarks.year.project import Project, Ran, megabytes
from benchmarks.year.serving import cpu_seconds_of, until_ads_are_read, used_memory_mb
from benchmarks.year.traffic import Traffic
from benchmarks.year.world import DAY, FIRST, Plan, World

#: A refresh begins so long after midnight: the lag of the time plan.
_REFRESH = timedelta(hours=1)
#: Of the simulated day, what passes while the refresh is under way, and the requests that come meanwhile.
_DURING, _REQUESTS_DURING = timedelta(minutes=10), 3


@dataclass
class Record:
    """What happened, for the checks.

    Attributes
    ----------
    recovered : dict of day to sentence
        Kills, and where they struck; a sentence that begins with NOT where the next run did not recover.
    refused, promoted : list of str
        Rankers offered, with the reason.
    drifts : dict of day to names
        What the weekly drift report called major: features, and priors with all of their columns.
    audits : list of dict
        As ``audit.json`` has them.
    sizes : list of dict
        Of each week: megabytes of the store, the log, the exposures, Redis, and of the service's memory.
    cpu_a_day : (float, float)
        CPU-seconds of a simulated day on average: of all commands and of the bench itself, and of the service.
    """

    kills: dict[int, str] = field(default_factory=dict)
    failed_refreshes: dict[int, str] = field(default_factory=dict)
    failed_steps: list[str] = field(default_factory=list)
    not_recovered: list[str] = field(default_factory=list)
    damaged: str = ""
    bad: dict[str, Ran] = field(default_factory=dict)
    offered: dict[int, Ran] = field(default_factory=dict)
    drifts: dict[int, dict[str, float]] = field(default_factory=dict)
    audits: list[dict[str, Any]] = field(default_factory=list)
    sizes: list[dict[str, float]] = field(default_factory=list)
    refits: list[int] = field(default_factory=list)
    catalogs: set[str] = field(default_factory=set)
    late_rows: int = 0
    lived: int = 0
    reloads: dict[str, float] = field(default_factory=dict)
    cpu_a_day: tuple[float, ...] = ()


@dataclass(frozen=True)
class Running:
    """What runs beside the days.

    Parameters
    ----------
    port, redis_port, pid : int
        Of the service; its process.
    """

    port: int
    redis_port: int
    pid: int
    exposures: Path


class Year:
    """Lives through the days.

    Parameters
    ----------
    world : World
    project : Project
        After its first run.
    calendar : Calendar
    running : Running
    traffic : Traffic
    requests : int
        A day.
    """

    def __init__(
        self, world: World, project: Project, calendar: Calendar, running: Running, traffic: Traffic, requests: int
    ) -> None:
        self.world, self.project, self.calendar, self.running, self.traffic = world, project, calendar, running, traffic
        self.requests = requests
        self.record = Record()
        self.plan = Plan(0, 0)
        self._rng = np.random.default_rng(7)
        self._publications: dict[str, tuple[str, set[str]]] = {}
        self._frames = {"ranker": "frames/first", "ranker_baseline": "frames/first"}
        self._audited = FIRST
        self._audited_rows = 0
        self._judged = 0
        self._length = 6.0  # of a refresh in a process of its own; measured on the first day

    def live(self, minutes: float) -> None:
        """All days, or as many as there is time for."""
        self._note_publication()
        before = cpu_seconds(), cpu_seconds_of(self.running.pid)
        end = monotonic() + 60 * minutes
        for day in tqdm(range(1, self.calendar.days), desc="year", unit="day", disable=None):
            if monotonic() > end:
                break
            self._day(day)
            self.record.lived = day + 1
        self._try(self.record.lived, self._report_last)
        self._try(self.record.lived, self._audit)
        self.traffic.answers.judge(self._publications, self._judged)
        after = cpu_seconds(), cpu_seconds_of(self.running.pid)
        self.record.cpu_a_day = tuple(
            (b - a) / max(1, self.record.lived - 1) for a, b in zip(before, after, strict=True)
        )

    def _day(self, day: int) -> None:
        moment = FIRST + day * DAY + _REFRESH
        if self.calendar.refits(day):
            self._try(day, self._audit)  # before the plan moves: the tables still reach back to the last one
        trains = self.calendar.trains(day)
        self.plan = Plan(day if self.calendar.refits(day) else self.plan.predictor, day if trains else self.plan.ranker)
        self.world.export(moment, self.plan)
        self.traffic.begin(moment, _DURING, _REQUESTS_DURING, seconds=0.5)
        try:
            self._refresh(day, moment)
        except SystemExit as error:
            self.record.failed_refreshes[day] = str(error)[-1500:]
        self.traffic.end()
        self._note_publication()
        until_ads_are_read(self.running.port)
        self.traffic.begin(moment + _DURING, DAY - _DURING - timedelta(minutes=1), self.requests - _REQUESTS_DURING)
        if trains:
            self._try(day, self._weekly)
        if self.calendar.refits(day):
            self._try(day, self._refit)
        self.traffic.end()
        self.traffic.answers.judge(self._publications, self._judged)
        self._judged = len(self.traffic.answers.rows)
        if day == self.calendar.corrupt:
            self.record.damaged = faults.damage_publication(self.project, self._rng)
        if trains:
            self._measure(day)

    def _try(self, day: int, step: Callable[[int], None]) -> None:
        """One step of a day: what fails is a figure of the table, and the year goes on."""
        try:
            step(day)
        except SystemExit as error:
            self.record.failed_steps.append(f"day {day}, {step.__name__.strip('_')}: {str(error)[-600:]}")

    # -- the refresh -----------------------------------------------------------------------------------------------

    def _refresh(self, day: int, moment: datetime) -> None:
        """Today's refresh: killed on some days; the day after a kill it has to recover by itself."""
        if day == 1:
            self._length = faults.length_of_refresh(self.project, moment)
            return
        if day in self.calendar.kills:
            after = float(self._rng.uniform(0.3, 0.95)) * self._length
            self.record.kills[day] = f"after {after:.1f} s: {faults.killed_refresh(self.project, moment, after)}"
            return
        ran = self.project.refresh(moment)
        if ran.code and day == self.calendar.corrupt + 1:
            self._put_right(day, moment, ran)
        elif ran.code:
            self.record.failed_refreshes[day] = ran.output[-1500:]
        if day - 1 in self.calendar.kills and (ran.code or not self._is_complete(moment)):
            what = f"ended with {ran.code}" if ran.code else "left a snapshot out"
            self.record.not_recovered.append(f"day {day - 1}: the refresh of day {day} {what}")

    def _put_right(self, day: int, moment: datetime, refused: Ran) -> None:
        """What the runbook says to do about a damaged publication: go back, and refresh again."""
        self.record.damaged += f": {_error_of(refused)}"
        view = self.project.published.name
        self.project.must("rank", "rollback", "--repo", "feature_repo", "--view", view, "--now", moment.isoformat())
        again = self.project.refresh(moment)
        if again.code or not self._is_complete(moment):
            self.record.failed_refreshes[day] = again.output[-1500:]

    def _is_complete(self, moment: datetime) -> bool:
        """Whether every day's snapshot up to this midnight is published."""
        snapshots = sorted(datetime.fromisoformat(one) for one in self.project.publication()[2])
        return snapshots[-1] == moment - _REFRESH and snapshots[-1] - snapshots[0] == (len(snapshots) - 1) * DAY

    def _note_publication(self) -> None:
        with suppress(AdvpriorError):  # damaged: nothing new is published, and the refresh has said so
            name, catalog, snapshots = self.project.publication()
            self._publications[name] = (catalog, snapshots)
            self.record.catalogs.add(catalog)

    # -- rankers, predictors ---------------------------------------------------------------------------------------

    def _weekly(self, day: int) -> None:
        """A new ranker is trained and offered, and drift since the training of the one that serves is reported."""
        project, frame = self.project, self.project.frame(f"day{day}")
        self._report_drift(day, frame)
        names = ["ranker", "ranker_baseline"] if self.calendar.refits(day) else ["ranker"]
        for name, inverted in zip(("shuffled", "inverted"), (False, True), strict=True):
            if self.calendar.bad_rankers[inverted] == day:
                faults.bad_ranker(project, frame, f"offered/{name}", inverted=inverted, rng=self._rng)
                self.record.bad[name] = self._offer(f"offered/{name}", "ranker", frame)
        for name in names:
            out = f"offered/day{day}_{name}"
            project.train(frame, out, seed=day)
            ran = self._offer(out, name, frame)
            self.record.offered[day] = ran
            if ran.code == 0:
                self._frames[name] = frame
        used = {*self._frames.values(), frame}
        for old in (project.folder / "frames").iterdir():
            if f"frames/{old.name}" not in used:
                shutil.rmtree(old)

    def _offer(self, candidate: str, place: str, frame: str) -> Ran:
        ran = self.project.run("rank", "promote", candidate, "--to", place, "--frame", frame, "--margin", 0.1)
        if ran.code not in (0, 3):
            raise SystemExit(f"rank promote ended with {ran.code}: {ran.output[-2000:]}")
        return ran

    def _refit(self, day: int) -> None:
        self.project.refit(other=day == self.calendar.other_prior)
        self.record.refits.append(day)

    def _report_last(self, day: int) -> None:
        self._report_drift(day, self.project.frame("last"))

    def _report_drift(self, day: int, frame: str) -> None:
        out = "drift"
        words: list[object] = [
            "--frame",
            self._frames["ranker"],
            "--recent",
            frame,
            "--ranker",
            "ranker",
            "--repo",
            "feature_repo",
        ]
        words += ["--days", max(7, self.calendar.week), "--out", out, "--fail-on", "never"]
        self.project.must("rank", "drift", *words)
        findings = json.loads((self.project.folder / out / "drift.json").read_text())["findings"]
        self.record.drifts[day] = {one["name"]: one["psi"] for one in findings if one["severity"] == "major"}

    # -- looking on ------------------------------------------------------------------------------------------------

    def _audit(self, day: int) -> None:
        """Every exposure since the last audit against the frame of today, whichever ranker it was ranked by."""
        rows = self.traffic.answers.rows[self._audited_rows :]
        served = {row[3] for row in rows}
        folders = [path.parent for path in sorted(self.project.folder.glob("offered/*/manifest.json"))]
        rankers = {manifest_digest(folder): folder for folder in folders}
        if gone := served - set(rankers):
            raise SystemExit(f"no folder of the rankers {sorted(gone)}, which served")
        words = [word for digest in sorted(served) for word in ("--ranker", rankers[digest])]
        words += ["--from", self._audited.isoformat(), "--out", "audit", "--fail-on", "never"]
        self.project.must(
            "rank",
            "audit",
            "--tables",
            "tables",
            "--repo",
            "feature_repo",
            "--exposures",
            self.running.exposures,
            *words,
        )
        self.record.audits += json.loads((self.project.folder / "audit" / "audit.json").read_text())
        self._audited, self._audited_rows = FIRST + day * DAY + _REFRESH, len(self.traffic.answers.rows)
        serving = {row[3] for row in rows[-2 * self.requests :]}
        for digest, folder in rankers.items():
            if digest not in serving | {manifest_digest(self.project.folder / name) for name in self._frames}:
                shutil.rmtree(folder)

    def _measure(self, day: int) -> None:
        folder = self.project.folder
        kept = [folder / name for name in ("feature_repo", "refresh", "priors", "models", ".versions", ".advprior")]
        self.record.sizes.append(
            {
                "day": day,
                "store": megabytes(*kept),
                "tables": megabytes(folder / "tables"),
                "exposures": megabytes(self.running.exposures),
                "redis": used_memory_mb(self.running.redis_port),
                "service": memory_mb(self.running.pid),
                "elapsed": monotonic(),
            }
        )
        answers = self.traffic.answers
        counts = {"asked": answers.asked, "failed": answers.failed, "mixed": answers.mixed}
        write_json(folder.parent / "record.json", {**asdict(self.record), "answers": counts})


def _error_of(ran: Ran) -> str:
    """The code of a refusal and its first words."""
    match = re.search(r"error ([A-Z]{3}\d{3}[^\n]*)", ran.output)
    return match.group(1) if match else ran.output.strip()[-200:]
