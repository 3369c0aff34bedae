"""What a step will cost, before it runs: from its own last run, else from the size of the data and measured rates.

Rates were measured on the demo (200 households of complete_journey, 2 cores of a 2.6 GHz Xeon, no GPU). They are right
within a factor of two or so; steps that ran here correct them for the speed of this machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from advprior.pipeline.presets import CHEAP
from advprior.pipeline.settings import Project
from advprior.pipeline.steps import Cost, Plan, Stamps, Step
from advprior.store.contract import TimePlan
from advprior.store.runs import MANIFEST, read_manifest

_RECENT = 7  # steps whose speed is that of the next ones
LONG_SECONDS = 45.0  # a step above it is announced with its forecast


@dataclass(frozen=True)
class Rate:
    """Cost of a kind of step: a fixed part, and one for each million of what drives it.

    Parameters
    ----------
    driver : str
        A field of `Sizes`.
    fixed_s, seconds : float
        Wall time on the reference machine, quiet.
    memory_mb : float
        Resident memory beyond 200 MB, for each million of ``memory_by``: the driver, where it is not named.
    """

    driver: str
    fixed_s: float
    seconds: float
    memory_mb: float = 0.0
    memory_by: str | None = None


#: kind of step -> its rate. "cells" are users × snapshots × advertisers: what a prior holds.
COSTS = {
    "data build": Rate("impressions", 3, 12, 850),
    "data check": Rate("impressions", 3, 12, 850),
    "data pairs": Rate("events", 1, 3, 500),
    "finetune llm": Rate("events", 20, 850, 8000),
    "export llm": Rate("", 16, 0, 1300),
    "score llm": Rate("events", 2, 350, 2800),
    "finetune sasrec": Rate("events", 3, 170, 3200),
    "finetune hybrid": Rate("events", 60, 250, 5000),
    "export sasrec": Rate("", 6, 0),
    "export hybrid": Rate("", 6, 0),
    "finetune text": Rate("texts", 5, 30_000, 900, ""),
    "finetune zero_shot": Rate("", 10, 0, 1000),
    "score zero_shot": Rate("events", 10, 30_000, 2800),
    "rank features": Rate("events", 1, 8, 1300),
    "rank frame": Rate("impressions", 2, 20, 1500),
    "first rank frame": Rate("impressions", 2, 13, 1200),
    "rank ablate": Rate("rankers", 4, 6, 2100, "impressions"),
    "first rank ablate": Rate("rankers", 4, 6, 1700, "impressions"),
    "rank train": Rate("impressions", 2, 8, 1900),
    "rank towers": Rate("impressions", 2, 10, 900),
    "rank candidates": Rate("impressions", 2, 15, 800),
    "feast apply": Rate("", 3, 0, 300),
    "feast materialize": Rate("", 5, 0, 700),
}
_SMALL = Rate("", 1, 0, 100)


@dataclass(frozen=True)
class Sizes:
    """What drives costs, in millions where it counts rows.

    Attributes
    ----------
    texts : float
        Advertisers, or advertiser × category where texts are read by category.
    cells : float
        Numbers in one prior.
    arms, first_arms : int
        Rankers of the ablation, and of the first answer, which it takes over.
    """

    events: float
    impressions: float
    texts: float
    cells: float
    arms: int
    first_arms: int

    def driver(self, name: str, step: Step) -> float:
        """Value of a driver for a step; 1 where nothing drives it."""
        if name == "rankers":
            # a small frame trains on its impressions, whoever they are of
            return self.impressions * (self.first_arms if step.kind.startswith("first") else self.arms)
        return float(getattr(self, name)) if name else 1.0


def sizes_of(project: Project) -> Sizes | None:
    """Sizes of tables that are made; None before."""
    tables = project.folder / (project.config.tables.folder or "tables")
    if not (tables / MANIFEST).is_file():
        return None
    facts = read_manifest(tables)["facts"]
    rows, plan = facts.get("rows", {}), TimePlan.from_json(facts["time_plan"])
    config = project.config
    arms = 1 + len(config.priors) + sum(prior.placebo for prior in config.priors)
    first = 1 + sum(prior.predictor in CHEAP for prior in config.priors)
    reused = first if config.first_answer and config.arms.file is None and first > 1 else 0
    pairs = project.folder / "tables_pair"
    advertisers = rows.get("advertisers", 0)
    texts = read_manifest(pairs)["facts"]["rows"]["advertisers"] if (pairs / MANIFEST).is_file() else advertisers
    return Sizes(
        events=rows.get("events", 0) / 1e6,
        impressions=rows.get("impressions", 0) / 1e6,
        texts=texts / 1e6,
        cells=rows.get("users", 0) * len(plan.snapshots()) * min(advertisers, 10_000) / 1e6,
        arms=(arms - reused) * config.arms.seeds,
        first_arms=first * (config.arms.seeds if config.arms.file is None else 1),
    )


class Forecast:
    """Expected cost of the steps of a plan, corrected by what ran here already."""

    def __init__(self, project: Project, plan: Plan, stamps: Stamps) -> None:
        self._stamps, self._sizes = stamps, sizes_of(project)
        ratios = [
            cost.seconds / expected
            for step in plan.steps
            if (cost := stamps.cost(step)) and (expected := self._by_rate(step).seconds) >= 3 and cost.seconds > 0
        ]
        # the newest steps tell how busy the machine is now
        self.speed = min(max(median(ratios[-_RECENT:]), 0.25), 8.0) if ratios else 1.0

    def of(self, step: Step) -> Cost:
        """Expected cost of a step; zeros where the tables are not known yet."""
        last = self._stamps.cost(step)
        if last is not None and last.seconds > 0:
            return last
        cost = self._by_rate(step)
        return Cost(cost.seconds * self.speed, cost.cpu_seconds * self.speed, cost.memory_mb, cost.disk_mb)

    def _by_rate(self, step: Step) -> Cost:
        rate = COSTS.get(step.kind, _SMALL)
        if self._sizes is None and rate.driver:
            return Cost()
        size = 0.0 if self._sizes is None else self._sizes.driver(rate.driver, step)
        held = size
        if rate.memory_by is not None and self._sizes is not None:
            held = self._sizes.driver(rate.memory_by, step)
        cells = 0.0 if self._sizes is None else self._sizes.cells
        disk = 4.2 * cells if step.kind.startswith("score") else 8.5 * cells if step.kind == "publish" else 0.0
        seconds = rate.fixed_s + rate.seconds * size
        return Cost(seconds, seconds, 200 + rate.memory_mb * held, disk)


def free_disk_gb(folder: Path) -> float:
    """Free space where the project lies, GB."""
    import shutil

    return shutil.disk_usage(folder).free / 1e9


def machine_memory_gb() -> float | None:
    """Memory of this machine, GB; None where it does not tell."""
    import os

    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (ValueError, OSError, AttributeError):
        return None
