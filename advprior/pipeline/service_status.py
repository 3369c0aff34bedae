"""`advprior status --serve`: how one running service is, for a person at a terminal: what `/ready` and `/metrics` say.

Rates and percentiles are of the time between two looks; of the first one, since the service began. What is said of an
alert is whether its condition holds now: the rules of `ranking/monitor/alerts.yaml` also ask for how long.
"""

from __future__ import annotations

import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from advprior.store.errors import AdvpriorError

_TIMEOUT_S = 5.0
Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


@dataclass(frozen=True)
class Look:
    """What a service said at one moment.

    Attributes
    ----------
    ready : dict
        Of ``/ready``.
    samples : mapping of (name, labels) to float
        Of ``/metrics``.
    at : float
        Seconds of a monotonic clock.
    """

    ready: Mapping[str, Any]
    samples: Samples
    at: float

    @classmethod
    def at_service(cls, url: str) -> Look:
        """Ask a service.

        Raises
        ------
        AdvpriorError
            ``SRV006`` without the package that reads metrics, ``SRV023`` when no service answers there.
        """
        try:
            from prometheus_client.parser import text_string_to_metric_families
        except ImportError as error:
            raise AdvpriorError(
                "SRV006",
                "the service's packages are not installed",
                actual=str(error),
                fix="pip install 'advprior[serve]'",
            ) from error
        try:
            ready = json.loads(_get(f"{url.rstrip('/')}/ready"))
            text = _get(f"{url.rstrip('/')}/metrics").decode()
            families = [one for family in text_string_to_metric_families(text) for one in family.samples]
            samples = {(one.name, tuple(sorted(one.labels.items()))): float(one.value) for one in families}
            return cls(dict(ready), samples, time.monotonic())
        except (OSError, ValueError, TypeError) as error:
            raise AdvpriorError(
                "SRV023",
                "no service of advprior answers there",
                where=url,
                actual=f"{type(error).__name__}: {error}",
                expected="/ready and /metrics of advprior rank serve",
                fix="name its address, as http://localhost:8000",
            ) from error


def _get(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:
            return bytes(response.read())
    except urllib.error.HTTPError as error:
        if error.code == 503:  # not ready, and says why
            return error.read()
        raise


@dataclass(frozen=True)
class Between:
    """What happened between two looks; since the service began where there is only one."""

    now: Look
    before: Look | None = None
    seconds: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seconds", math.nan if self.before is None else self.now.at - self.before.at)

    def count(self, name: str, **labels: str) -> float:
        """How far counters of a name, and of these labels, went on. One that is smaller began anew."""
        total = 0.0
        for (other, own), value in self.now.samples.items():
            if other == name and labels.items() <= dict(own).items():
                past = 0.0 if self.before is None else self.before.samples.get((other, own), 0.0)
                total += value - past if value >= past else value
        return total

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """Counters of a name, and of these labels, by one other label: those that went on."""
        values = {dict(own)[label] for other, own in self.now.samples if other == name and label in dict(own)}
        counts = {value: self.count(name, **{label: value}, **labels) for value in sorted(values)}
        return {value: count for value, count in counts.items() if count > 0}

    def gauge(self, name: str, **labels: str) -> float:
        """The largest value of a name now; NaN without one."""
        values = [
            v for (other, own), v in self.now.samples.items() if other == name and labels.items() <= dict(own).items()
        ]
        return max(values, default=math.nan)

    def quantile(self, share: float, name: str, **labels: str) -> float:
        """As Prometheus' ``histogram_quantile``: within a bucket values lie evenly. NaN where nothing was counted."""
        edges = sorted(self.now_edges(f"{name}_bucket", labels))
        counts = [self.count(f"{name}_bucket", le=text, **labels) for _, text in edges]
        if not counts or not counts[-1]:
            return math.nan
        wanted, low, below = share * counts[-1], 0.0, 0.0
        for (edge, _), count in zip(edges, counts, strict=True):
            if count >= wanted:
                return low if math.isinf(edge) else low + (edge - low) * (wanted - below) / max(count - below, 1e-12)
            low, below = edge, count
        return low

    def now_edges(self, name: str, labels: Mapping[str, str]) -> set[tuple[float, str]]:
        """Upper edges of a histogram's buckets, with their text."""
        owns = [dict(own) for other, own in self.now.samples if other == name]
        return {(float(own["le"]), own["le"]) for own in owns if labels.items() <= own.items()}

    def alerts(self) -> dict[str, str]:
        """Alerts whose condition holds, and what it is about."""
        requests = self.count("advprior_requests_total", path="/rank")
        used = self.count("advprior_prior_requests_total")
        store = self.count("advprior_degradations_total", reason="store_unavailable")
        missing = self.count("advprior_prior_requests_total", prior="missing")
        refused = self.count("advprior_requests_total", path="/rank", status="429")
        failed = sum(n for status, n in self.by("advprior_requests_total", "status").items() if status.startswith("5"))
        p99, age = self.quantile(0.99, "advprior_rank_seconds", stage="total"), self.gauge("advprior_ads_age_seconds")
        priors = self.quantile(0.5, "advprior_prior_age_days")
        limit = self.gauge("advprior_prior_limit_days")
        holds = {
            "AdvpriorSlow": (p99 > 0.015, f"p99 {p99 * 1e3:.1f} ms"),
            "AdvpriorErrors": (failed > 0, f"{failed:.0f} answers of status 5xx"),
            "AdvpriorStoreUnavailable": (store > 0, f"{store:.0f} requests without the store"),
            "AdvpriorPriorsMissing": (missing > 0.2 * used, f"{missing:.0f} of {used:.0f} requests without priors"),
            "AdvpriorPriorsOld": (priors > 0.75 * limit, f"{priors:.1f} of {limit:.1f} days"),
            "AdvpriorAdsOld": (age > 900, f"read {age:.0f} s ago"),
            "AdvpriorExposuresLost": (
                (lost := self.count("advprior_exposures_total", result="failed")) > 0,
                f"{lost:.0f} not logged",
            ),
            "AdvpriorRankerRefused": (self.gauge("advprior_ranker_refused") > 0, "the one in place does not fit"),
            "AdvpriorOverloaded": (refused > 0.01 * requests, f"{refused:.0f} of {requests:.0f} refused"),
        }
        return {name: about for name, (firing, about) in holds.items() if firing}

    def lines(self, url: str) -> list[str]:
        """The view."""
        ready = self.now.ready
        state = "ready" if ready.get("ready") else f"NOT READY: {', '.join(ready.get('degraded', ()))}"
        rankers = ", ".join(f"{name} {digest[:8]}" for name, digest in ready.get("rankers", {}).items())
        ms = [1e3 * self.quantile(share, "advprior_rank_seconds", stage="total") for share in (0.5, 0.99)]
        of_priors = self.by("advprior_prior_requests_total", "prior")
        used = of_priors.get("used", 0.0) / (sum(of_priors.values()) or math.nan)
        reloads = [
            self.now.samples.get(("advprior_ranker_reloads", (("result", r),)), 0.0) for r in ("done", "refused")
        ]
        alerts = [f"{name} ({about})" for name, about in self.alerts().items()]
        ranked = self.by("advprior_requests_total", "status", path="/rank")
        window = "since it began" if self.before is None else f"of the last {self.seconds:.0f} s"
        return [
            f"{url}  {state}  version {ready.get('version', '?')}  {str(ready.get('now', ''))[:19]} by its clock",
            f"  rankers       {rankers}, by {ready.get('scores_by', '?')}",
            f"  requests      {self._rate(sum(ranked.values()))}, {window}: "
            + (", ".join(f"{n:.0f} × {status}" for status, n in ranked.items()) or "none"),
            f"  ranking       p50 {_number(ms[0])} ms, p99 {_number(ms[1])} ms",
            f"  queue         {_number(self.gauge('advprior_waiting_requests'), 0)} waiting",
            f"  arms          {_shares(self.by('advprior_arm_requests_total', 'arm'))}",
            f"  priors        {_number(100 * used)} % used, half of them older than "
            f"{_number(self.quantile(0.5, 'advprior_prior_age_days'))} of "
            f"{_number(self.gauge('advprior_prior_limit_days'))} days",
            f"  degraded      {_shares(self.by('advprior_degradations_total', 'reason'))}",
            f"  exposures     {_shares(self.by('advprior_exposures_total', 'result'))}",
            f"  last refresh  {ready.get('ads', '?')} ads {_number(self.gauge('advprior_ads_age_seconds'), 0)} s ago; "
            f"rankers swapped {reloads[0]:.0f}, refused {reloads[1]:.0f}",
            f"  alerts        {'; '.join(alerts) or 'none'}",
        ]

    def _rate(self, count: float) -> str:
        return f"{count:.0f}" if math.isnan(self.seconds) else f"{count / max(self.seconds, 1e-9):.1f}/s"


def _number(value: float, digits: int = 1) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _shares(counts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {count:.0f}" for name, count in counts.items()) or "none"
