"""Live requests of a simulated day, what was answered, and the outcomes that users then make.

Who asks and which ads may be shown follow the market. Outcomes follow from the user alone, so that both arms are equal,
until from a day on users of the treatment make more: that is the lift that is planted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.year.world import World

SLOTS = 4
#: Ads that a request offers; the slots are filled from them.
_OFFERED = 8


@dataclass
class Answers:
    """All that was answered in the year, in small.

    Attributes
    ----------
    rows : list of tuples
        Of each answer that is one: exposure id, user, arm, ranker, time, publication, catalog and snapshot or None.
    failed : list of str
    mixed : list of str
        Answers whose publication, catalog and snapshot do not belong together.
    degraded : Counter
        By reason; ``asked`` answers in all.
    """

    rows: list[tuple[Any, ...]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    unlogged: int = 0
    asked: int = 0
    degraded: Counter[str] = field(default_factory=Counter)
    ms: list[float] = field(default_factory=list)

    def take(self, answers: Sequence[dict[str, Any]], times: Sequence[str]) -> None:
        """Take in what came back of some requests."""
        for one, time in zip(answers, times, strict=True):
            self.asked += 1
            self.ms.append(one["ms"])
            if one["status"] != 200:
                self.failed.append(f"{time}: {one['status']} {str(one['answer'])[:300]}")
                continue
            answer = one["answer"]
            self.degraded.update(answer["degraded"])
            if not (answer["exposure"] or {}).get("logged"):
                self.unlogged += 1
                continue
            used = answer["prior"] or {}
            prior = tuple(used.get(name) for name in ("publication", "catalog_version", "snapshot"))
            key = (answer["exposure"]["id"], answer["user_id"], answer["arm"], answer["ranker"], time)
            self.rows.append((*key, *prior))

    def judge(self, publications: dict[str, tuple[str, set[str]]], since: int) -> None:
        """Hold the answers from a row on to what was published so far."""
        for row in self.rows[since:]:
            publication, catalog, snapshot = row[5:8]
            if publication is None:
                continue
            version, snapshots = publications.get(publication, ("", set()))
            if catalog != version or snapshot not in snapshots:
                self.mixed.append(str(row))


class Traffic:
    """The client process and what it is given to send.

    Parameters
    ----------
    world : World
    port : int
        Of the service.
    rng : numpy.random.Generator
    """

    def __init__(self, world: World, port: int, rng: np.random.Generator) -> None:
        self._world, self._port, self._rng = world, port, rng
        client = Path(__file__).with_name("client.py")
        self._process = subprocess.Popen(
            [sys.executable, str(client)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._times: list[str] = []
        self.answers = Answers()

    def begin(self, start: datetime, length: timedelta, count: int, *, seconds: float = 0.0) -> None:
        """Let requests of a span of simulated time go out; `end` waits for them.

        Parameters
        ----------
        seconds : float
            Real ones, that they are spread over.
        """
        users, ads = self._world.users_at(start), self._world.ads_at(start)
        requests: list[dict[str, Any]] = []
        for offset in np.sort(self._rng.random(count)):
            offered = self._rng.choice(ads, min(_OFFERED, len(ads)), replace=False).tolist()
            context = {"context_placement": self._world.placement(start, self._rng)}
            body = {"user_id": str(self._rng.choice(users)), "slots": SLOTS, "candidates": offered, "context": context}
            requests.append({"time": (start + float(offset) * length).isoformat(), "body": body})
        self._times = [request["time"] for request in requests]
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"port": self._port, "seconds": seconds, "requests": requests}) + "\n")
        self._process.stdin.flush()

    def end(self) -> int:
        """Take the answers in; how many."""
        assert self._process.stdout is not None
        answers = json.loads(self._process.stdout.readline())["answers"]
        self.answers.take(answers, self._times)
        return len(answers)

    def close(self) -> None:
        """End the client."""
        self._process.kill()
        self._process.wait()


def rate_of(user: str) -> float:
    """Outcomes that a user makes of one exposure, on average: from nearly none to nearly one."""
    return 0.1 + 0.5 * (hash_of(user) % 1000) / 1000


def hash_of(user: str) -> int:
    """A number that belongs to a user, and is no part of the arm's hash."""
    return int(pd.util.hash_array(np.array([f"rate of {user}"], object))[0])


def outcomes(answers: Answers, rng: np.random.Generator, lift: float, since: datetime | None) -> pd.DataFrame:
    """Outcomes of the year's exposures: user_id, timestamp.

    Parameters
    ----------
    lift : float
        By which the treatment makes more, from ``since`` on.
    """
    frame = pd.DataFrame([(row[1], row[2], row[4]) for row in answers.rows], columns=["user_id", "arm", "timestamp"])
    frame["timestamp"] = pd.to_datetime(frame["timestamp"], utc=True, format="ISO8601") + timedelta(minutes=1)
    chance = frame["user_id"].map({user: rate_of(user) for user in frame["user_id"].unique()}).to_numpy(np.float64)
    if since is not None:
        lifted = (frame["arm"] == "treatment").to_numpy() & (frame["timestamp"] >= since).to_numpy()
        chance = np.where(lifted, chance * (1 + lift), chance)
    happened = rng.random(len(frame)) < chance
    return frame.loc[happened, ["user_id", "timestamp"]].reset_index(drop=True)
