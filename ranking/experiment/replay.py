"""A past day's impressions through the running service: does it answer, how fast, and as the offline scores say?

One request per slate, with the slate's ads as candidates, in the order of time. A service started with
``--clock request`` ranks each as of its own time, from rows that were available then; any other ranks as of its own
now, with features that may have seen the outcome: then speed and faults are measured, and quality is not.

A score is compared with the offline one where the rows behind both are of the same time: the store keeps one row a
user, so only requests of the days after its snapshot can be.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from advprior.store.contract import TIMESTAMP
from advprior.store.errors import AdvpriorError
from advprior.store.progress import Progress
from advprior.store.runs import manifest_digest
from advprior.store.tables import load_tables, load_time_plan
from advprior.store.times import micros
from ranking.experiment.client import SERVE_FIX, Ask, Service
from ranking.experiment.past_requests import Limits, Pace, requests_of, window_of
from ranking.experiment.replay_result import Replay, figures_of, notes_of, parity_of, scores_of
from ranking.frame.rows import split_of

STEP = "rank replay"
_WARM_UP_S = 10.0


@dataclass(frozen=True)
class ReplayOptions:
    """What is replayed, how fast, and what its scores are compared with.

    Attributes
    ----------
    day, start, end : datetime, optional
        See `window_of`.
    limit : int
        Requests at most.
    pace : Pace
    frame : Path, optional
        ``rank frame`` run, for the offline scores of the same impressions by ``rankers``, the ranker folders served.
    log_exposures : bool
        Go on though the service logs what it answers as shown.
    """

    day: datetime | None = None
    start: datetime | None = None
    end: datetime | None = None
    limit: int = 10_000
    pace: Pace = field(default_factory=Pace)
    frame: Path | None = None
    rankers: Sequence[Path] = ()
    log_exposures: bool = False


def replay(tables: Path, service: Service, options: ReplayOptions | None = None) -> Replay:
    """Send what was shown in a window through a service.

    Parameters
    ----------
    tables : Path
        Canonical tables, with impressions.
    service : Service
    options : ReplayOptions, optional
        Default: the last day with impressions.

    Raises
    ------
    AdvpriorError
        ``RNK041`` nothing to replay, ``RNK042`` no service there, ``RNK043`` it logs exposures, ``RNK044`` the rankers
        are not those served.
    """
    options = options or ReplayOptions()
    plan, impressions = load_time_plan(tables), load_tables(tables, "impressions")["impressions"]
    start, end = window_of(impressions, options.day, options.start, options.end)
    ready = _ready(service, options.log_exposures)
    offline = _offline(options.rankers, ready) if options.frame is not None else {}
    shown = impressions[(impressions[TIMESTAMP] >= start) & (impressions[TIMESTAMP] < end)].reset_index(drop=True)
    timed, pace = ready["clock"] == "request", options.pace
    slates = requests_of(shown, Limits.of(service), pace, options.limit, timed=timed)
    if slates.asks and not ready["exposures"]:
        _warm_up(service, slates.asks[0])
    begin = time.perf_counter()
    with Progress(len(slates.asks), "replay", "request") as bar:
        answers = service.ask(
            slates.asks, connections=pace.connections, paced=pace.given, seconds=60 * pace.minutes, bar=bar
        )
    seconds = time.perf_counter() - begin
    scores = scores_of(shown, slates, answers, plan, timed)
    about = figures_of(scores, slates, answers, seconds)
    about |= {
        "url": service.url,
        "clock": ready["clock"],
        "rankers": ready["rankers"],
        "experiment": ready["experiment"],
        "window": {"from": start.isoformat(), "to": end.isoformat()},
        "pace": {"rate": pace.rate, "speed": pace.speed},
        "splits": dict(Counter(split_of(micros(shown[TIMESTAMP].iloc[scores.index]), plan).tolist())),
        "parity": parity_of(scores, options.frame, offline) if options.frame is not None else None,
    }
    about["notes"] = notes_of(about)
    return Replay(scores.drop(columns=["same_time", "ranker", "user"]).reset_index(drop=True), about)


def _ready(service: Service, log_exposures: bool) -> dict[str, Any]:
    _, ready = service.get("/ready")
    if not isinstance(ready, dict) or not {"rankers", "clock", "exposures"} <= set(ready):
        raise AdvpriorError(
            "RNK042",
            "no ranking service answers",
            where=f"{service.url}/ready",
            actual=str(ready)[:200],
            expected="advprior rank serve",
            fix=SERVE_FIX,
        )
    if ready["exposures"] and not log_exposures:
        raise AdvpriorError(
            "RNK043",
            "the service logs exposures: a replay would count in its experiment",
            where=service.url,
            actual="exposures are logged",
            expected="a service without --exposures",
            fix="serve beside it without --exposures, or add --log-exposures if the log is for this replay",
        )
    return ready


def _warm_up(service: Service, ask: Ask) -> None:
    """Ask once before it counts, and wait until the service has worked out what this time's priors need."""
    end = time.monotonic() + _WARM_UP_S
    while time.monotonic() < end:
        with Progress(1, "warm-up", "request", shown=False) as bar:
            answers = service.ask([ask], connections=1, paced=False, seconds=60.0, bar=bar)
        if not answers or answers[0].status != 200 or "prior_catalog_unknown" not in answers[0].body["degraded"]:
            return
        time.sleep(0.2)


def _offline(rankers: Sequence[Path], ready: Mapping[str, Any]) -> dict[str, Path]:
    """Ranker folders by digest, all of them served."""
    by_digest = {manifest_digest(folder): folder for folder in rankers}
    served = set(ready["rankers"].values())
    if not by_digest or not set(by_digest) <= served:
        raise AdvpriorError(
            "RNK044",
            "offline scores must be of the rankers that are served",
            where="--ranker",
            actual=", ".join(sorted(by_digest)) or "none",
            expected=", ".join(sorted(served)),
            fix="give the folders that the service was started with: --ranker RANKER --ranker FALLBACK",
        )
    return by_digest
