"""A past day's impressions through the running service: does it answer, how fast, and as the offline scores say?

One request per slate, with the slate's ads as candidates, in the order of time. A service started with
``--clock request`` ranks each as of its own time, from rows that were available then; any other ranks as of its own
now, with features that may have seen the outcome: then speed and faults are measured, and quality is not.

A score is compared with the offline one where the rows behind both are of the same time: the store keeps one row a
user, so only requests of the days after its snapshot can be.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.contract import (
    AD_ID,
    CONTEXT_PREFIX,
    IMPRESSION_ID,
    LABEL,
    SLATE_ID,
    TIMESTAMP,
    USER_ID,
    USER_PROFILE_VIEW,
    TimePlan,
)
from advprior.store.errors import AdvpriorError
from advprior.store.runs import manifest_digest, write_json
from advprior.store.tables import load_tables, load_time_plan, write_parquet
from ranking.candidates.inputs import snapshot_of
from ranking.evidence.metrics import Auc, LogLoss, Metric, Ndcg, Rows
from ranking.experiment.client import SERVE_FIX, Answer, Ask, Service
from ranking.frame.counts import Ints, micros, moment_us
from ranking.frame.read import FRAME_FILE
from ranking.frame.rows import split_of
from ranking.models.ranker import Ranker

STEP = "rank replay"
FILE, SCORES_FILE = "replay.json", "scores.parquet"
TIME_HEADER = "X-Advprior-Time"
_METRICS: tuple[Metric, ...] = (Auc(), Ndcg(10), LogLoss())
_WARM_UP_S = 10.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Pace:
    """How fast: requests a second, or so many times as fast as it happened; neither: one after another."""

    rate: float | None = None
    speed: float | None = None
    connections: int = 4
    minutes: float = 30.0
    timeout_s: float = 10.0

    @property
    def given(self) -> bool:
        return self.rate is not None or self.speed is not None

    def due(self, times: Ints) -> list[float]:
        """Seconds after the first at which requests of these moments (microseconds, rising) are sent."""
        if self.rate is not None:
            return [i / self.rate for i in range(len(times))]
        if self.speed is not None:
            return ((times - times[0]) / 1e6 / self.speed).tolist() if len(times) else []
        return [0.0] * len(times)


@dataclass
class Replay:
    """What a replay found.

    Parameters
    ----------
    scores : DataFrame
        One row per impression that was sent: label, served score (missing where it was not returned), offline score
        and whether both may be compared.
    about : dict
        Requests, errors, degradations, latency, quality, parity, notes.
    """

    scores: pd.DataFrame
    about: dict[str, Any] = field(default_factory=dict)

    def frame(self) -> pd.DataFrame:
        """One row per impression that was sent."""
        return self.scores

    def save(self, folder: Path) -> None:
        """Write ``replay.json`` and ``scores.parquet``."""
        write_json(Path(folder) / FILE, self.about)
        write_parquet(self.scores, Path(folder) / SCORES_FILE)

    def text(self) -> str:
        """A few lines to read."""
        a = self.about
        latency, failed = a["latency_ms"], sum(a["errors"].values())
        window = f"{a['window']['from']} to {a['window']['to']}"
        lines = [
            f"{a['requests']:,} requests of {window}, {a['rows']:,} ads, ranked as of "
            f"{'their own time' if a['clock'] == 'request' else 'the service’s now'}",
            f"  {failed:,} errors{_listed(a['errors'])}, {a['degraded_requests']:,} degraded{_listed(a['degraded'])}",
        ]
        if latency:
            lines.append(
                f"  p50 {latency['p50']:.2f} ms, p99 {latency['p99']:.2f} ms, {a['per_second']:,.0f} answers a second"
            )
        for name, found in a["quality"].items():
            said = ", ".join(f"{metric} {_number(found[metric])}" for metric in [m.name for m in _METRICS])
            lines.append(f"  {name}: {found['rows']:,} ads, {found['positives']:,} positive, {said}")
        if (parity := a["parity"]) is not None:
            worst = parity["max_difference"]
            lines.append(
                f"  offline: {parity['compared']:,} of {parity['in_frame']:,} scores are of features of the same time; "
                + (f"largest difference {worst:.2g}" if worst is not None else "none to compare")
            )
        return "\n".join([*lines, *(f"  note: {note}" for note in a["notes"])])


def window_of(
    impressions: pd.DataFrame, day: datetime | None, start: datetime | None, end: datetime | None
) -> tuple[datetime, datetime]:
    """From and to (not with it): a day of UTC, what was asked for, or the last day that has impressions.

    Raises
    ------
    AdvpriorError
        ``RNK041`` when nothing was shown then.
    """
    times = impressions[TIMESTAMP]
    if day is None and start is None and end is None:
        day = times.max().to_pydatetime()
    if day is not None:
        start = day.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        end = start + timedelta(days=1)
    start = start or times.min().to_pydatetime()
    end = end or times.max().to_pydatetime() + timedelta(microseconds=1)
    if not ((times >= start) & (times < end)).any():
        raise AdvpriorError(
            "RNK041",
            "nothing to replay",
            where=f"{start.isoformat()} to {end.isoformat()}",
            actual="no impression",
            expected=f"a time from {times.min().isoformat()} to {times.max().isoformat()}",
            fix="name another --day, or --from and --to",
        )
    return start, end


@dataclass(frozen=True)
class Limits:
    """What the service takes, read off its OpenAPI.

    Attributes
    ----------
    contexts : dict of name to whether it is text
    """

    candidates: int
    slots: int
    contexts: dict[str, bool]

    @classmethod
    def of(cls, service: Service) -> Limits:
        """Ask.

        Raises
        ------
        AdvpriorError
            ``RNK042`` when it is another kind of service.
        """
        _, openapi = service.get("/openapi.json")
        try:
            schemas = openapi["components"]["schemas"]
            request = schemas["RankRequest"]["properties"]
            lists = [one for one in request["candidates"]["anyOf"] if one.get("type") == "array"]
            names = schemas.get("Context", {}).get("properties", {})
            text = {n: any(one.get("type") == "string" for one in about["anyOf"]) for n, about in names.items()}
            return cls(int(lists[0]["maxItems"]), int(request["slots"]["maximum"]), text)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise AdvpriorError(
                "RNK042",
                "no ranking service answers",
                where=f"{service.url}/openapi.json",
                actual=f"another OpenAPI: no {error}",
                expected="advprior rank serve",
                fix=SERVE_FIX,
            ) from error


@dataclass(frozen=True)
class Slates:
    """Requests to send, with the rows of the impressions that they stand for."""

    asks: list[Ask]
    rows: list[Ints]
    times: Ints
    too_large: int


def requests_of(shown: pd.DataFrame, limits: Limits, pace: Pace, limit: int, *, timed: bool) -> Slates:
    """One request per slate, by time; a slate that the service would refuse is left out and counted.

    Parameters
    ----------
    shown : DataFrame
        Impressions, in the order of a range index.
    limit : int
        Slates at most.
    timed : bool
        Say as of when each is to be ranked: the slate's first impression.
    """
    moments = micros(shown[TIMESTAMP])
    codes, _ = pd.factorize(shown[SLATE_ID])
    order = np.argsort(codes, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
    first = np.array([moments[rows].min() for rows in groups])
    groups = [groups[i] for i in np.argsort(first, kind="stable")]
    fits = [rows for rows in groups if shown[AD_ID].iloc[rows].nunique() <= limits.candidates][:limit]
    too_large = sum(shown[AD_ID].iloc[rows].nunique() > limits.candidates for rows in groups)
    times = np.array([moments[rows].min() for rows in fits], dtype=np.int64)
    contexts = _contexts(shown, limits.contexts)
    ads, users = shown[AD_ID].astype(str).tolist(), shown[USER_ID].astype(str).tolist()
    asks = []
    for rows, moment, due in zip(fits, times.tolist(), pace.due(times), strict=True):
        named = [ads[i] if not contexts[i] else {"ad_id": ads[i], "context": contexts[i]} for i in rows]
        body = {
            "user_id": users[rows[0]],
            "slots": min(len({ads[i] for i in rows}), limits.slots),
            "candidates": named,
        }
        asks.append(Ask(json.dumps(body).encode(), {TIME_HEADER: _iso(moment)} if timed else {}, due))
    return Slates(asks, fits, times, too_large)


def _contexts(shown: pd.DataFrame, known: Mapping[str, bool]) -> list[dict[str, Any]]:
    """What the service takes of each impression's context."""
    found: list[dict[str, Any]] = [{} for _ in range(len(shown))]
    for name, text in known.items():
        if not name.startswith(CONTEXT_PREFIX) or name not in shown:
            continue
        for i, (there, value) in enumerate(zip(shown[name].notna(), shown[name], strict=True)):
            if there:
                found[i][name] = str(value) if text else float(value)
    return found


def replay(
    tables: Path,
    service: Service,
    *,
    day: datetime | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    limit: int = 10_000,
    pace: Pace | None = None,
    frame: Path | None = None,
    rankers: Sequence[Path] = (),
    log_exposures: bool = False,
) -> Replay:
    """Send what was shown in a window through a service.

    Parameters
    ----------
    tables : Path
        Canonical tables, with impressions.
    service : Service
    day, start, end : datetime, optional
        See `window_of`.
    limit : int
        Requests at most.
    pace : Pace, optional
    frame : Path, optional
        ``rank frame`` run, for the offline scores of the same impressions by ``rankers``, the ranker folders served.
    log_exposures : bool
        Go on though the service logs what it answers as shown.

    Raises
    ------
    AdvpriorError
        ``RNK041`` nothing to replay, ``RNK042`` no service there, ``RNK043`` it logs exposures, ``RNK044`` the rankers
        are not those served.
    """
    from tqdm.auto import tqdm

    pace = pace or Pace()
    plan, impressions = load_time_plan(tables), load_tables(tables, "impressions")["impressions"]
    start, end = window_of(impressions, day, start, end)
    ready = _ready(service, log_exposures)
    offline = _offline(rankers, ready) if frame is not None else {}
    shown = impressions[(impressions[TIMESTAMP] >= start) & (impressions[TIMESTAMP] < end)].reset_index(drop=True)
    timed = ready["clock"] == "request"
    slates = requests_of(shown, Limits.of(service), pace, limit, timed=timed)
    if slates.asks and not ready["exposures"]:
        _warm_up(service, slates.asks[0])
    begin = time.perf_counter()
    with tqdm(total=len(slates.asks), desc="replay", unit="request", disable=None) as bar:
        answers = service.ask(
            slates.asks, connections=pace.connections, paced=pace.given, seconds=60 * pace.minutes, bar=bar
        )
    seconds = time.perf_counter() - begin
    scores = _scores(shown, slates, answers, plan, timed)
    about = _about(scores, slates, answers, seconds)
    about |= {
        "url": service.url,
        "clock": ready["clock"],
        "rankers": ready["rankers"],
        "experiment": ready["experiment"],
        "window": {"from": start.isoformat(), "to": end.isoformat()},
        "pace": {"rate": pace.rate, "speed": pace.speed},
        "splits": dict(Counter(split_of(shown[TIMESTAMP].iloc[scores.index], plan).tolist())),
        "parity": _parity(scores, frame, offline) if frame is not None else None,
    }
    about["notes"] = _notes(about)
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
            "the service logs what it answers as shown: a replay would go into its experiment",
            where=service.url,
            actual="exposures are logged",
            expected="a service without --exposures",
            fix="serve beside it without --exposures, or say --log-exposures if the log is for this replay",
        )
    return ready


def _warm_up(service: Service, ask: Ask) -> None:
    """Ask once before it counts, and wait until the service has worked out what this time's priors need."""
    from tqdm.auto import tqdm

    end = time.monotonic() + _WARM_UP_S
    while time.monotonic() < end:
        with tqdm(disable=True) as bar:
            found = service.ask([ask], connections=1, paced=False, seconds=60.0, bar=bar)
        if not found or found[0].status != 200 or "prior_catalog_unknown" not in found[0].body["degraded"]:
            return
        time.sleep(0.2)


def _scores(
    shown: pd.DataFrame, slates: Slates, answers: Sequence[Answer], plan: TimePlan, timed: bool
) -> pd.DataFrame:
    """Served scores, row by row; indexed by the row of ``shown``."""
    moments, ads = micros(shown[TIMESTAMP]), shown[AD_ID].astype(str).to_numpy()
    snapshots = plan.feature_snapshots()
    at = snapshot_of(slates.times, plan)
    parts = []
    for rows, moment, newest, answer in zip(slates.rows, slates.times, at, answers, strict=False):
        ok = answer.status == 200
        served = {slot["ad_id"]: slot["score"] for slot in answer.body["slots"]} if ok else {}
        as_of = answer.body.get("as_of") if ok and timed else None
        expected = [_iso(moment_us(snapshots[newest] + plan.lag))] if newest >= 0 else None
        same = as_of is not None and all(v == expected for view, v in as_of.items() if view != USER_PROFILE_VIEW)
        # an ad that is there twice is ranked once, with the context of the first
        once = ~pd.Series(ads[rows]).duplicated().to_numpy()
        parts.append(
            pd.DataFrame(
                {
                    "row": rows,
                    "score": [served.get(ad, np.nan) for ad in ads[rows]],
                    "service": answer.body["service"] if ok else None,
                    "ranker": answer.body["ranker"] if ok else None,
                    "same_time": same & once & (moments[rows] == moment),
                }
            )
        )
    columns = {"row": np.int64, "score": np.float64, "service": object, "ranker": object, "same_time": bool}
    empty = pd.DataFrame({name: np.empty(0, dtype=kind) for name, kind in columns.items()})
    found = (pd.concat(parts) if parts else empty).astype(columns).set_index("row")
    mine = shown.loc[found.index]
    keys = {name: mine[name] for name in (IMPRESSION_ID, SLATE_ID, LABEL)}
    return pd.DataFrame({**keys, "user": mine[USER_ID]}, index=found.index).join(found)


def _about(scores: pd.DataFrame, slates: Slates, answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    good = [a for a in answers if a.status == 200]
    errors = Counter(_error(a) for a in answers if a.status != 200)
    degraded = Counter(reason for a in good for reason in a.body["degraded"])
    times = np.array([a.seconds for a in good]) * 1e3
    latency = {}
    if len(times):
        cuts = {"p50": 50, "p90": 90, "p99": 99, "max": 100}
        latency = {name: float(np.percentile(times, cut)) for name, cut in cuts.items()}
    quality = {}
    scored = scores[scores["score"].notna()]
    services = [(str(name), part) for name, part in scored.groupby("service")]
    for name, part in [("all", scored), *(services if len(services) > 1 else [])]:
        if len(part):
            quality[name] = _quality(part, part["score"])
    return {
        "requests": len(answers),
        "not_sent": len(slates.asks) - len(answers),
        "too_large": slates.too_large,
        "errors": dict(errors),
        "degraded": dict(degraded),
        "degraded_requests": sum(bool(a.body["degraded"]) for a in good),
        "latency_ms": latency,
        "seconds": seconds,
        "per_second": len(good) / seconds if seconds else 0.0,
        "rows": len(scores),
        "not_returned": int(len(scores) - len(scored)),
        "unknown_ads": sum(len(a.body["unknown_ads"]) for a in good),
        "quality": quality,
    }


def _quality(part: pd.DataFrame, score: pd.Series[float]) -> dict[str, Any]:
    user, slate = (pd.factorize(part[name])[0] for name in ("user", SLATE_ID))
    rows = Rows.of(part[LABEL], score, user=user, slate=slate)
    found = {metric.name: _finite(metric(rows)) for metric in _METRICS}
    return {"rows": len(part), "positives": int(part[LABEL].sum()), **found}


def _offline(rankers: Sequence[Path], ready: Mapping[str, Any]) -> dict[str, Path]:
    """Ranker folders by digest, all of them served."""
    found = {manifest_digest(folder): folder for folder in rankers}
    served = set(ready["rankers"].values())
    if not found or not set(found) <= served:
        raise AdvpriorError(
            "RNK044",
            "offline scores must be of the rankers that are served",
            where="--ranker",
            actual=", ".join(sorted(found)) or "none",
            expected=", ".join(sorted(served)),
            fix="give the folders that the service was started with: --ranker RANKER --ranker FALLBACK",
        )
    return found


def _parity(scores: pd.DataFrame, frame: Path, rankers: Mapping[str, Path]) -> dict[str, Any]:
    """Offline scores into ``scores``, and how far the served ones are from them."""
    wanted = scores[IMPRESSION_ID].tolist()
    table = pd.read_parquet(Path(frame) / FRAME_FILE, filters=[(IMPRESSION_ID, "in", wanted)]) if wanted else None
    scores["offline"] = np.nan
    if table is not None and len(table):
        place = pd.Index(table[IMPRESSION_ID]).get_indexer(pd.Index(scores[IMPRESSION_ID]))
        for digest, folder in rankers.items():
            mine = ((scores["ranker"] == digest) & (place >= 0)).to_numpy()
            if mine.any():
                scores.loc[mine, "offline"] = Ranker.load(folder).predict(table.iloc[place[mine]])
    both = scores["offline"].notna() & scores["score"].notna()
    scores["compared"] = both & scores["same_time"]
    kept = scores[scores["compared"]]
    gap = (kept["score"] - kept["offline"]).abs()
    return {
        "in_frame": int(both.sum()),
        "compared": len(kept),
        "max_difference": float(gap.max()) if len(gap) else None,
        "above_1e-6": int((gap > 1e-6).sum()),
        "offline": _quality(scores[both], scores.loc[both, "offline"]) if both.any() else None,
    }


def _notes(about: Mapping[str, Any]) -> list[str]:
    """What a reader must know to read the figures."""
    notes = []
    if about["clock"] != "request":
        notes.append(
            "the service ranked as of its own now: its features may have seen these labels, so quality means nothing "
            "here, and no score can be compared; start it with --clock request"
        )
    early = sum(count for reason, count in about["degraded"].items() if reason.endswith("_early"))
    if early:
        notes.append(
            "rows of the store are of after the replayed time and were left out: in a copy of the repository, "
            f"feast materialize until {about['window']['from']}"
        )
    seen = sum(about["splits"].get(name, 0) for name in ("train", "valid"))
    if seen:
        notes.append(
            f"{seen:,} of {about['rows']:,} ads are of the ranker's training or validation: it knows their labels"
        )
    if about["not_returned"]:
        notes.append(
            f"{about['not_returned']:,} ads have no score: slates longer than the service's --max-slots, or errors"
        )
    if about["too_large"]:
        notes.append(f"{about['too_large']:,} slates have more ads than the service's --max-candidates")
    if about["not_sent"]:
        notes.append(f"{about['not_sent']:,} requests were not sent: the time was up")
    return notes


def _error(answer: Answer) -> str:
    """An answer that is none, in a word: status and code."""
    if not answer.status:
        return str(answer.body["error"])
    problems = answer.body.get("problems") if isinstance(answer.body, dict) else None
    return f"{answer.status} {problems[0]['code']}" if problems else str(answer.status)


def _iso(us: int) -> str:
    """As the service writes a moment."""
    return (_EPOCH + timedelta(microseconds=us)).isoformat()


def _listed(counts: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{name} {count:,}' for name, count in sorted(counts.items()))})" if counts else ""


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4f}"
