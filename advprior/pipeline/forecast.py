"""What a step will cost, before it runs: from its own last run, else from the size of the data and measured rates.

Rates are processor seconds, memory and disk measured on the demo (200 households of complete_journey, 166k events, 479k
impressions; no GPU), those of frames and rankers on all 801 households too. They are right within a factor of two or
so; steps that ran here correct them for the speed of this machine. What a step needs of memory before it reads a row
(libraries, a language model) is a part of its own: on small data it is nearly all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from advprior.pipeline.presets import CHEAP
from advprior.pipeline.settings import Project
from advprior.pipeline.steps import Cost, Plan, Stamps, Step
from advprior.store.contract import LEXICAL, TimePlan
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
        Processor time on the reference machine, which is its wall time where nothing else runs.
    fixed_mb : float
        Resident memory that even an empty step has: its libraries, and a language model where it reads one.
    memory_mb : float
        Resident memory beyond that, for each million of ``memory_by``: the driver, where it is not named.
    layer_s, epoch_s : float
        Seconds for each million of the driver, and for each layer or epoch of the LLM's settings.
    disk_mb : float
        Left on disk for each million of the driver.
    """

    driver: str
    fixed_s: float
    seconds: float
    fixed_mb: float = 200.0
    memory_mb: float = 0.0
    memory_by: str | None = None
    layer_s: float = 0.0
    epoch_s: float = 0.0
    disk_mb: float = 0.0


#: kind of step -> its rate. "cells" are users × snapshots × advertisers: what a prior holds.
COSTS = {
    "data build": Rate("impressions", 3, 14, 250, 850, disk_mb=9),
    "data check": Rate("impressions", 3, 14, 250, 850, disk_mb=9),
    "data pairs": Rate("events", 1, 3, 200, 500),
    "finetune llm": Rate("events", 12, 0, 1150, 2500, layer_s=12.5, epoch_s=175),
    "export llm": Rate("", 16, 0, 1600),
    "score llm": Rate("events", 2, 0, 450, 1400, layer_s=58),
    "finetune sasrec": Rate("events", 3, 150, 550, 1300),
    "finetune hybrid": Rate("events", 60, 180, 1200, 1300),
    "export sasrec": Rate("", 6, 0, 550),
    "export hybrid": Rate("", 6, 0, 550),
    "finetune text": Rate("texts", 10, 36_000, 1100),
    "finetune zero_shot": Rate("", 10, 0, 1200),
    "score zero_shot": Rate("events", 10, 30_000, 900, 2800),
    "rank features": Rate("events", 1, 10, 250, 1300),
    "rank frame": Rate("impressions", 2, 18, 650, 400, disk_mb=80),
    "first rank frame": Rate("impressions", 2, 18, 650, 400, disk_mb=40),
    "rank ablate": Rate("rankers", 4, 12, 700, 250, "impressions", disk_mb=2),
    "first rank ablate": Rate("rankers", 4, 12, 650, 250, "impressions"),
    "rank train": Rate("impressions", 2, 24, 500, 1500),
    "rank towers": Rate("impressions", 2, 12, 400, 500),
    "rank candidates": Rate("impressions", 2, 18, 400, 500),
    "rank two-by-two": Rate("impressions", 1, 4, 400, 150),
    "feast apply": Rate("", 7, 0, 480),
    "feast materialize": Rate("", 9, 0, 800),
}
#: Disk of a fitted or exported LLM: its token table, and each layer (of the default base model, float32).
LLM_MB, LAYER_MB = 117.0, 14.3
#: Bytes of each number of a prior: as scored, with what a later --since needs; and in the table that it is served from.
SCORED_BYTES, PUBLISHED_BYTES = 3.0, 3.6
#: MB of published features for each million of events × snapshots: every snapshot has each user's history anew.
FEATURES_MB = 12.5
CLUSTERED_AT_ONCE = 10_000  # texts above which K-means reads them batch by batch
WIDEST, KEPT = 10_000, 100  # above so many advertisers a prior keeps so many, each with its index
_SMALL = Rate("", 1, 0, 300)


def clusters_cost(texts: float, events: float, number: int, *, lexical: bool) -> Cost:
    """What semantic clusters cost, measured at 300 to 20,000 texts, up to a million events, 64 and 256 clusters.

    Parameters
    ----------
    texts, events : float
        Advertisers × categories, and events, in millions.
    number : int
        Clusters.
    lexical : bool
        Words in the place of a network.

    Examples
    --------
    >>> [round(clusters_cost(0.0012, 0.1, 64, lexical=words).seconds) for words in (True, False)]
    [12, 58]
    """
    k_means = 3_000 * texts * number / 64 if texts * 1e6 <= CLUSTERED_AT_ONCE else 0.0  # of more, some at a time
    seconds = 8.2 * events + k_means + (3 + 3_500 * texts if lexical else 10 + 36_000 * texts)
    memory = 500 * events + (300 + 55_000 * texts if lexical else 1_000)
    return Cost(seconds, seconds, memory)


@dataclass(frozen=True)
class Sizes:
    """What drives costs, in millions where it counts rows.

    Attributes
    ----------
    texts : float
        Advertisers, or advertiser × category where texts are read by category.
    cluster_texts : float
        Advertiser × category, by their tables; before these are made at most the ads.
    cells, pair_cells : float
        Numbers in one prior by advertiser, and in one by advertiser × category.
    histories : float
        Events × snapshots.
    arms, first_arms : int
        Rankers of the ablation, and of the first answer, which it takes over.
    """

    events: float
    impressions: float
    texts: float
    cluster_texts: float
    cells: float
    pair_cells: float
    histories: float
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
    arms = 1 + len(config.priors) + sum(prior.placebo for prior in config.priors) + (config.clusters is not None)
    first = 1 + sum(prior.predictor in CHEAP for prior in config.priors)
    one = config.origins == 1  # of several cut-offs none has a first answer, whose rankers the ablation takes over
    reused = first if one and config.first_answer and config.arms.file is None and first > 1 else 0
    cutoffs = [""] if one else [f"cutoff_{number}/" for number in range(1, config.origins + 1)]
    pairs = [project.folder / f"{cutoff}tables_pair" for cutoff in cutoffs]
    advertisers = rows.get("advertisers", 0)
    made = [read_manifest(folder)["facts"]["rows"]["advertisers"] for folder in pairs if (folder / MANIFEST).is_file()]
    texts = max(made, default=advertisers)
    return Sizes(
        events=rows.get("events", 0) / 1e6,
        impressions=rows.get("impressions", 0) / 1e6,
        texts=texts / 1e6,
        cluster_texts=max(texts, *(() if made else (rows.get("ads", 0),)), 0) / 1e6,
        cells=rows.get("users", 0) * len(plan.snapshots()) * _width(advertisers) / 1e6,
        pair_cells=rows.get("users", 0) * len(plan.snapshots()) * _width(int(texts)) / 1e6,
        histories=rows.get("events", 0) * len(plan.snapshots()) / 1e6,
        arms=(arms - reused) * config.arms.seeds,
        first_arms=first * (config.arms.seeds if config.arms.file is None else 1),
    )


def _width(advertisers: int) -> int:
    """Numbers in a row of a prior."""
    return advertisers if advertisers <= WIDEST else 2 * KEPT


def _llm_settings(project: Project, plan: Plan) -> dict[str, tuple[int, int]]:
    """Layers and epochs of each prior of an LLM, by its name: what its fit and its scoring cost."""
    settings = {}
    for step in plan.steps:
        if step.kind != "finetune llm":
            continue
        raw: dict[str, Any] = {}
        if "--config" in step.command:
            path = step.command[step.command.index("--config") + 1]
            file = project.folder / path
            text = plan.files.get(path) or (file.read_text() if file.is_file() else "")
            raw = yaml.safe_load(text) or {}
        training = raw.get("training") or {}
        settings[step.name.split()[1]] = int(raw.get("layers", 10)), int(training.get("epochs", 4))
    return settings


class Forecast:
    """Expected cost of the steps of a plan, corrected by what ran here already."""

    def __init__(self, project: Project, plan: Plan, stamps: Stamps) -> None:
        self._stamps, self._sizes = stamps, sizes_of(project)
        self._llms, self._clusters = _llm_settings(project, plan), project.config.clusters
        self._pairs = {p.name for p in project.config.priors if p.by == "advertiser_category"}
        self._pairs |= {p.placebo_name for p in project.config.priors if p.name in self._pairs and p.placebo_name}
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
        if self._sizes is None and (rate.driver or step.kind == "data clusters"):
            return Cost()
        if self._sizes is not None and self._clusters is not None and step.kind == "data clusters":
            lexical, sizes = self._clusters.base == LEXICAL, self._sizes
            return clusters_cost(sizes.cluster_texts, sizes.events, self._clusters.number, lexical=lexical)
        size = 0.0 if self._sizes is None else self._sizes.driver(rate.driver, step)
        held = size
        if rate.memory_by is not None and self._sizes is not None:
            held = self._sizes.driver(rate.memory_by, step)
        layers, epochs = self._llms.get(_prior_of(step), (10, 4))
        seconds = rate.fixed_s + (rate.seconds + rate.layer_s * layers + rate.epoch_s * epochs) * size
        return Cost(seconds, seconds, rate.fixed_mb + rate.memory_mb * held, self._disk(step, rate, layers, size))

    def _disk(self, step: Step, rate: Rate, layers: int, size: float) -> float:
        """MB that a step leaves."""
        if step.kind in ("finetune llm", "export llm"):
            return LLM_MB + LAYER_MB * layers
        if self._sizes is None:
            return 0.0
        cells = self._sizes.pair_cells if _prior_of(step) in self._pairs else self._sizes.cells
        if step.kind.startswith("score"):
            return SCORED_BYTES * cells
        if step.kind == "rank features":
            return FEATURES_MB * self._sizes.histories
        if step.kind == "publish":
            return 0.0 if "--offline" in step.command else PUBLISHED_BYTES * cells
        return rate.disk_mb * size


def _prior_of(step: Step) -> str:
    """The prior that a step is of: the second word of its name."""
    return step.name.split()[1] if " " in step.name else ""


def free_disk_gb(folder: Path) -> float:
    """Free space where the project lies, GB."""
    import shutil

    return shutil.disk_usage(folder).free / 1e9
