"""What a replay measured: served scores beside offline ones, and what a reader must know to read the figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.contract import (
    AD_ID,
    IMPRESSION_ID,
    LABEL,
    SLATE_ID,
    TIMESTAMP,
    USER_ID,
    USER_PROFILE_VIEW,
    TimePlan,
)
from advprior.store.runs import write_json
from advprior.store.tables import write_parquet
from advprior.store.times import micros, moment_us
from ranking.candidates.inputs import snapshot_of
from ranking.evidence.metrics import Auc, LogLoss, Metric, Ndcg, Rows
from ranking.experiment.client import Answer
from ranking.experiment.past_requests import Slates, iso
from ranking.frame.read import FRAME_FILE
from ranking.frame.views import is_ours
from ranking.models.ranker import Ranker

FILE, SCORES_FILE = "replay.json", "scores.parquet"
_METRICS: tuple[Metric, ...] = (Auc(), Ndcg(10), LogLoss())


@dataclass
class Replay:
    """What a replay measured.

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
        for name, quality in a["quality"].items():
            metrics = ", ".join(f"{metric.name} {_number(quality[metric.name])}" for metric in _METRICS)
            lines.append(f"  {name}: {quality['rows']:,} ads, {quality['positives']:,} positive, {metrics}")
        if (parity := a["parity"]) is not None:
            worst = parity["max_difference"]
            lines.append(
                f"  offline: {parity['compared']:,} of {parity['in_frame']:,} scores are of features of the same time; "
                + (f"largest difference {worst:.2g}" if worst is not None else "none to compare")
            )
        return "\n".join([*lines, *(f"  note: {note}" for note in a["notes"])])


def scores_of(
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
        expected = [iso(moment_us(snapshots[newest] + plan.lag))] if newest >= 0 else None
        same = as_of is not None and all(_as_in_frame(view, times, expected) for view, times in as_of.items())
        # an ad that was shown twice is ranked once, with the context of the first
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
    scores = (pd.concat(parts) if parts else empty).astype(columns).set_index("row")
    sent = shown.loc[scores.index]
    keys = {name: sent[name] for name in (IMPRESSION_ID, SLATE_ID, LABEL)}
    return pd.DataFrame({**keys, "user": sent[USER_ID]}, index=scores.index).join(scores)


def _as_in_frame(view: str, times: Sequence[str], snapshot: Sequence[str] | None) -> bool:
    """Whether the rows behind an answer are those that the frame joined.

    Rows of ours are when they are of the newest snapshot. A profile is one row for ever. A user's own view has times of
    its own: the store keeps the newest row, so one that was available then is the one that the frame joined.
    """
    if view == USER_PROFILE_VIEW:
        return True
    return times == snapshot if is_ours(view) else bool(times)


def figures_of(scores: pd.DataFrame, slates: Slates, answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """Requests, errors, degraded answers, latency, and the quality of the served scores."""
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
    metrics = {metric.name: _finite(metric(rows)) for metric in _METRICS}
    return {"rows": len(part), "positives": int(part[LABEL].sum()), **metrics}


def parity_of(scores: pd.DataFrame, frame: Path, rankers: Mapping[str, Path]) -> dict[str, Any]:
    """Offline scores into ``scores``, and how far the served ones are from them."""
    wanted = scores[IMPRESSION_ID].tolist()
    table = pd.read_parquet(Path(frame) / FRAME_FILE, filters=[(IMPRESSION_ID, "in", wanted)]) if wanted else None
    scores["offline"] = np.nan
    if table is not None and len(table):
        place = pd.Index(table[IMPRESSION_ID]).get_indexer(pd.Index(scores[IMPRESSION_ID]))
        for digest, folder in rankers.items():
            ranked = ((scores["ranker"] == digest) & (place >= 0)).to_numpy()
            if ranked.any():
                scores.loc[ranked, "offline"] = Ranker.load(folder).predict(table.iloc[place[ranked]])
    both = scores["offline"].notna() & scores["score"].notna()
    scores["compared"] = both & scores["same_time"]
    compared = scores[scores["compared"]]
    gap = (compared["score"] - compared["offline"]).abs()
    return {
        "in_frame": int(both.sum()),
        "compared": len(compared),
        "max_difference": float(gap.max()) if len(gap) else None,
        "above_1e-6": int((gap > 1e-6).sum()),
        "offline": _quality(scores[both], scores.loc[both, "offline"]) if both.any() else None,
    }


def notes_of(about: Mapping[str, Any]) -> list[str]:
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


def _listed(counts: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{name} {count:,}' for name, count in sorted(counts.items()))})" if counts else ""


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4f}"
