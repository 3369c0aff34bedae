"""The experiment of the year, looked at every day: the planted lift, and the same exposures with nothing planted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from advprior.store.tables import write_parquet
from benchmarks.year.calendar import Calendar
from benchmarks.year.project import Project
from benchmarks.year.traffic import Answers, rate_of
from benchmarks.year.world import DAY, FIRST
from ranking.experiment.effects import effect
from ranking.experiment.readout import per_exposure

LIFT = 0.35


def write_experiment(path: Path, planned_users: int) -> None:
    """Half of the users without priors, half with them."""
    arms = [{"name": "control", "share": 0.5, "priors": False}, {"name": "treatment", "share": 0.5, "priors": True}]
    plan = {"name": "year", "salt": "y", "planned_users": planned_users, "per": "exposure", "arms": arms}
    path.write_text(yaml.safe_dump(plan))


@dataclass
class Looks:
    """Exposures of the year in arrays: of each, its user, its day, and the chance of an outcome.

    Parameters
    ----------
    user : int64 [exposures]
    day : int64 [exposures]
    chance : float64 [exposures]
        Without a lift.
    treated : bool [users]
    days : int
    planned : (float, float)
        Users planned of either arm.
    """

    user: np.ndarray
    day: np.ndarray
    chance: np.ndarray
    treated: np.ndarray
    days: int
    planned: tuple[float, float]

    @classmethod
    def of(cls, answers: Answers, days: int, planned_users: int) -> Looks:
        """Of all exposures that were acknowledged."""
        frame = pd.DataFrame([(row[1], row[2], row[4]) for row in answers.rows], columns=["user", "arm", "time"])
        at = pd.to_datetime(frame["time"], utc=True, format="ISO8601")
        users, index = np.unique(frame["user"].to_numpy(), return_inverse=True)
        arm = frame.groupby("user")["arm"].first().reindex(users)
        rates = np.array([rate_of(user) for user in users])
        day = ((at - FIRST) // DAY).to_numpy(np.int64)
        treated = (arm == "treatment").to_numpy()
        return cls(index, day, rates[index], treated, days, (planned_users / 2, planned_users / 2))

    def first_announced(self, rng: np.random.Generator, lift: float = 0.0, since: int = 0) -> int | None:
        """The first day on which the interval for any look excludes no lift; None where it never does."""
        lifted = self.treated[self.user] & (self.day >= since)
        happened = rng.random(len(self.user)) < np.where(lifted, self.chance * (1 + lift), self.chance)
        total, shown = np.zeros(len(self.treated)), np.zeros(len(self.treated))
        order = np.argsort(self.day, kind="stable")
        edges = np.searchsorted(self.day[order], np.arange(self.days + 1))
        for day in range(self.days):
            rows = order[edges[day] : edges[day + 1]]
            np.add.at(total, self.user[rows], happened[rows])
            np.add.at(shown, self.user[rows], 1.0)
            seen = shown > 0
            treated = self.treated[seen]
            if min(treated.sum(), (~treated).sum()) < 2:
                continue
            values = per_exposure(total[seen], shown[seen], treated)
            result = effect(values[treated], values[~treated], self.planned)
            interval = result.lift or result.difference
            if interval.anytime_low > 0 or interval.anytime_high < 0:
                return day
        return None


@dataclass(frozen=True)
class Announced:
    """What the command said on the days that it was asked."""

    before: bool
    day: int | None
    text: str


def read_out(
    project: Project, outcomes: pd.DataFrame, exposures: Path, experiment: Path, calendar: Calendar
) -> Announced:
    """`rank readout` as of some days before and after the lift begins: does it announce, and when first?

    Parameters
    ----------
    outcomes : DataFrame
        With the lift, from the calendar's day on.
    """
    path = project.folder / "outcomes.parquet"
    write_parquet(outcomes, path)
    json_file = project.folder / "readout.json"
    step = max(1, (calendar.days - calendar.lift) // 12)
    looks = [max(2, calendar.lift // 2), calendar.lift, *range(calendar.lift + step, calendar.days + 1, step)]
    before, text = False, ""
    for day in looks:
        until: datetime = FIRST + day * DAY + timedelta(hours=1)
        words = ["--exposures", exposures, "--outcomes", path, "--experiment", experiment, "--until", until.isoformat()]
        words += ["--json", json_file, "--pre-days", 0]
        text = project.must("rank", "readout", *words)
        one = json.loads(json_file.read_text())["effects"]["treatment"]
        interval = one["lift"] or one["difference"]
        if interval["anytime_low"] > 0 or interval["anytime_high"] < 0:
            if day > calendar.lift:
                return Announced(before, day, text)
            before = True
    return Announced(before, None, text)
