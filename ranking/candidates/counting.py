"""Requests of validation and test, the ads live at each, and what one prior's slots bring there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.arrays import Double, Int
from advprior.store.contract import AD_ID, ADVERTISER_ID
from advprior.store.tables import load_tables, load_time_plan
from advprior.store.times import moment_us
from ranking.candidates.contrasts import gain
from ranking.candidates.inputs import Pasts, Requests, blocks, requests
from ranking.candidates.towers import Towers
from ranking.evidence.ordering import concentration

BLOCK = 512  # requests at a time


@dataclass(frozen=True, eq=False)
class Inventory:
    """The requests of validation and test, and what the towers say of every ad that was live then."""

    ads: pd.DataFrame
    advertiser: Int  # index of each ad's advertiser
    advertisers: int
    pasts: Pasts
    requests: Requests
    towers: Towers
    moments: list[int]

    @classmethod
    def of(cls, tables: Path, towers: Towers) -> Inventory:
        plan = load_time_plan(tables)
        loaded = load_tables(tables, "ads", "impressions")
        ads = loaded["ads"].reset_index(drop=True)
        pasts = Pasts.load(tables, towers.vocabulary)
        names, start = ads[AD_ID].astype(str).tolist(), moment_us(plan.train_end)
        advertiser = pd.factorize(ads[ADVERTISER_ID].astype(str))[0].astype(np.int64)
        made = requests(loaded["impressions"], pasts.ids, names, plan, start=start)
        moments = [moment_us(s) for s in plan.feature_snapshots()]
        return cls(ads, advertiser, int(advertiser.max()) + 1, pasts, made, towers, moments)

    @cached_property
    def engaged(self) -> Double:
        """Ads that each request engaged with."""
        return np.bincount(self.requests.engaged[:, 0], minlength=len(self.requests.user)).astype(np.float64)

    def scores(self) -> Iterator[tuple[Int, Int, Any]]:
        """Blocks of requests of one snapshot, the ads live then, and the towers' scores [requests, ads]."""
        vectors, bias = self.towers.ads(self.ads)
        for snapshot in np.unique(self.requests.snapshot):
            tokens = self.pasts.at(self.moments[snapshot])
            live = self.requests.live[int(snapshot)]
            for part in blocks(np.flatnonzero(self.requests.snapshot == snapshot), BLOCK):
                yield part, live, self.towers.users(tokens[self.requests.user[part]]) @ vectors[live].T + bias[live]


@dataclass(eq=False)
class Counts:
    """What one predictor's slots brought at one quota, request by request."""

    hits: Double
    extra: Double  # hits that the towers alone do not have
    shown: dict[str, Double]  # split to slots of each advertiser

    @classmethod
    def empty(cls, inventory: Inventory) -> Counts:
        size = len(inventory.requests.user)
        return cls(
            np.zeros(size), np.zeros(size), {name: np.zeros(inventory.advertisers) for name in ("valid", "test")}
        )

    def add(self, inventory: Inventory, part: Int, live: Int, masks: tuple[Any, Any, Any]) -> None:
        """Count a block; masks [requests, ads]: taken, engaged, hits of the towers alone."""
        taken, engaged, alone = masks
        hits = taken & engaged
        self.hits[part] = hits.sum(axis=1)
        self.extra[part] = (hits & ~alone).sum(axis=1)
        split = inventory.requests.split[part]
        for name, shown in self.shown.items():
            slots = taken[split == name].sum(axis=0)
            shown += np.bincount(inventory.advertiser[live], weights=slots, minlength=inventory.advertisers)


def measures(counts: Counts, alone: Counts, inventory: Inventory, split: str, replicates: int) -> list[float]:
    """One row of the table, from its recall on."""
    chosen = inventory.requests.split == split
    base, own, engaged = alone.hits[chosen], counts.hits[chosen], inventory.engaged[chosen]
    change, low, high = gain(inventory.requests.user[chosen], own - base, engaged, replicates)
    total, hits, unique = float(engaged.sum()), float(own.sum()), float(counts.extra[chosen].sum())
    return [
        hits / total if total else np.nan,
        change,
        low,
        high,
        hits,
        unique,
        unique - (hits - float(base.sum())),
        total,
        concentration(np.arange(inventory.advertisers), counts.shown[split]),
        int(chosen.sum()),
    ]


def engaged_ads(asked: Requests, part: Int, live: Int) -> Any:
    """bool [part, live]: what the user of each request engaged with."""
    place = np.full(len(asked.user), -1, dtype=np.int64)
    place[part] = np.arange(len(part))
    chosen = asked.engaged[place[asked.engaged[:, 0]] >= 0]
    out = np.zeros((len(part), len(live)), dtype=bool)
    out[place[chosen[:, 0]], np.searchsorted(live, chosen[:, 1])] = True
    return out
