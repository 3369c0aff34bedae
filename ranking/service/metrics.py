"""What Prometheus is told. Of one process, or of all workers where ``PROMETHEUS_MULTIPROC_DIR`` is set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from ranking.service.engine import Engine
from ranking.service.slate import Slate

_SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.010, 0.015, 0.025, 0.05, 0.1, 0.25, 1.0)
_DAYS = (0.25, 0.5, 1, 2, 3, 5, 7, 10, 14, 21, 28)


class Metrics:
    """The service's metrics, in a registry of their own (Feast fills the default one with its)."""

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        self.latency = Histogram(
            "advprior_rank_seconds", "Time of a ranked request, by stage.", ["stage"], buckets=_SECONDS, registry=own
        )
        self.requests = Counter("advprior_requests", "Requests, by path and status.", ["path", "status"], registry=own)
        self.arms = Counter("advprior_arm_requests", "Ranked requests by arm.", ["arm"], registry=own)
        self.prior_age = Histogram("advprior_prior_age_days", "Age of the priors used.", buckets=_DAYS, registry=own)
        self.priors = Counter(
            "advprior_prior_requests", "Requests of arms with priors: prior used or missing.", ["prior"], registry=own
        )
        self.degraded = Counter("advprior_degradations", "Answers that lacked something.", ["reason"], registry=own)
        self.exposures = Counter("advprior_exposures", "Exposures logged, or not.", ["result"], registry=own)
        self.reloads = Gauge(
            "advprior_ranker_reloads",
            "Rankers swapped in, or refused.",
            ["result"],
            registry=own,
            multiprocess_mode="livemax",
        )
        self.ads_age = Gauge(
            "advprior_ads_age_seconds", "Since the ads were read.", registry=own, multiprocess_mode="livemax"
        )
        self.refused = Gauge(
            "advprior_ranker_refused",
            "1 while a ranker that lies in its place does not fit.",
            registry=own,
            multiprocess_mode="livemax",
        )
        self.prior_limit = Gauge(
            "advprior_prior_limit_days",
            "Age from which a prior is no longer used: its view's TTL, or --max-prior-age-days.",
            registry=own,
            multiprocess_mode="livemax",
        )
        self.waiting = Gauge(
            "advprior_waiting_requests", "Requests that wait for a thread.", registry=own, multiprocess_mode="livesum"
        )
        for kind in ("used", "missing"):
            self.priors.labels(kind)
        for kind in ("logged", "failed"):
            self.exposures.labels(kind)

    def ranked(self, slate: Slate) -> None:
        """Count one slate."""
        for stage, seconds in slate.timings.items():
            self.latency.labels(stage).observe(seconds)
        self.arms.labels(slate.arm.name).inc()
        if slate.arm.priors:
            self.priors.labels("missing" if slate.prior is None else "used").inc()
            if slate.prior_age_days is not None:
                self.prior_age.observe(slate.prior_age_days)
        for reason in slate.degraded:
            self.degraded.labels(reason).inc()

    def look(self, engine: Engine, waiting: int) -> None:
        """Set what is as it is now, for a page."""
        resources = engine.resources
        for result, count in resources.reloads.items():
            self.reloads.labels(result).set(count)
        self.refused.set(resources.ranker_refused)
        self.waiting.set(waiting)
        if (limit := engine.prior_limit_days()) is not None:
            self.prior_limit.set(limit)
        if resources.table.read_us >= 0:
            self.ads_age.set((engine.clock.now_us() - resources.table.read_us) / 1e6)

    def page(self) -> tuple[bytes, str]:
        """The text that Prometheus reads, and its content type."""
        registry = self._registry
        # by how values are kept, not by the variable: Feast sets that when it is imported, which may be too late
        if values.ValueClass is not values.MutexValue:
            registry = CollectorRegistry()
            forget_the_dead()
            AllWorkers(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST


class AllWorkers(MultiProcessCollector):
    """What all workers have counted, but for files that hold nothing.

    A worker that has just begun leaves one, or one whose disk was full then; the library's collector fails on it.
    """

    def collect(self) -> Any:
        with os.scandir(self._path) as entries:
            files = [entry.path for entry in entries if entry.name.endswith(".db") and entry.stat().st_size]
        return self.merge(files, accumulate=True)  # type: ignore[no-untyped-call]


def forget_the_dead() -> None:
    """Gauges of workers that have ended: their counts stay, what they last saw does not."""
    folder = Path(os.environ.get("PROMETHEUS_MULTIPROC_DIR", ""))
    for path in folder.glob("gauge_live*_*.db"):
        pid = int(path.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
        except PermissionError:  # somebody else's: it lives
            continue
