"""Small seeded canonical tables for tests: 40 users, 12 advertisers, 24 ads, 30 weeks.

Users prefer a few advertisers, so that history predicts labels; nothing here is real data.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from advprior.store.contract import TimePlan
from advprior.store.runs import new_run, run_key
from advprior.store.tables import write_parquet

START = datetime(2024, 1, 1, tzinfo=UTC)
WEEK = timedelta(days=7)
PLAN = TimePlan(START, START + 10 * WEEK, START + 20 * WEEK, START + 24 * WEEK, START + 30 * WEEK)
CATEGORIES = ["Tea", "Coffee", "Bread", "Soap", "Pasta", "Cheese"]


def tiny_tables(users: int = 40, advertisers: int = 12, weeks: int = 30, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Canonical tables by name. Every impression's label is a purchase at or after its time, never before."""
    return {name: table.copy() for name, table in _drawn(users, advertisers, weeks, seed).items()}


@cache  # most tests draw the same ones
def _drawn(users: int, advertisers: int, weeks: int, seed: int) -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    advertiser_ids = [f"a{i:02d}" for i in range(advertisers)]
    sold = [(CATEGORIES[i % 6], CATEGORIES[(i + 1) % 6]) for i in range(advertisers)]
    ads = pd.DataFrame(
        [(f"{a}/{c}", a, c) for a, categories in zip(advertiser_ids, sold, strict=True) for c in categories],
        columns=["ad_id", "advertiser_id", "category"],
    )
    events, impressions = _happenings(ads, users, weeks, rng)
    profiles = {
        "user_id": [f"u{i:03d}" for i in range(users)],
        "profile_age": rng.choice(["18-34", "35-54", "55+"], users),
        "profile_region": pd.Series(rng.choice(["north", "south"], users)).where(rng.random(users) < 0.8, None),
    }
    names = [f"{CATEGORIES[i % 6]} and {CATEGORIES[(i + 1) % 6]} house {i}" for i in range(advertisers)]
    return {
        "users": pd.DataFrame(profiles),
        "advertisers": pd.DataFrame({"advertiser_id": advertiser_ids, "name": names}),
        "ads": ads,
        "events": events,
        "impressions": impressions,
    }


def _happenings(
    ads: pd.DataFrame, users: int, weeks: int, rng: np.random.Generator
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Events and impressions: in most weeks a user comes once, buys one to three times, and is shown eight ads."""
    advertisers = len(ads) // 2
    offers = list(ads.itertuples(index=False, name=None))
    taste = rng.dirichlet(np.full(advertisers, 0.3), size=users)
    events: list[tuple[object, ...]] = []
    impressions: list[tuple[object, ...]] = []
    for user in range(users):
        name = f"u{user:03d}"
        for week in range(weeks):
            if rng.random() < 0.25:
                continue
            when = START + week * WEEK + timedelta(seconds=int(rng.integers(7200, 6 * 86400)))
            bought = set()
            for a in rng.choice(advertisers, size=int(rng.integers(1, 4)), p=taste[user]):
                ad_id, owner, category = offers[2 * a + int(rng.integers(2))]
                bought.add(ad_id)
                events.append((name, when, owner, category, round(float(rng.gamma(2, 3)), 2)))
            if rng.random() < 0.3:  # a purchase of nobody in the catalog: activity, no advertiser
                events.append((name, when, None, "Produce", 1.0))
            slate = user * weeks + week
            for ad in rng.choice(len(ads), size=8, replace=False):
                (ad_id, owner, _), place = offers[ad], ["front", "back"][int(ad) % 2]
                label = int(ad_id in bought)
                clicked = int(label or (user + week + int(ad)) % 7 == 0)
                position = len(impressions) % 8 + 1
                impressions.append((len(impressions), slate, name, ad_id, owner, when, label, clicked, place, position))
    event_columns = ["user_id", "timestamp", "advertiser_id", "category", "value"]
    shown_columns = ["impression_id", "slate_id", "user_id", "ad_id", "advertiser_id", "timestamp", "label", "clicked"]
    return (
        pd.DataFrame(events, columns=event_columns),
        pd.DataFrame(impressions, columns=[*shown_columns, "context_placement", "context_position"]),
    )


def write_tiny(folder: Path, plan: TimePlan = PLAN, **options: int) -> Path:
    """Write `tiny_tables` as a finished ``advprior data`` run."""
    config = {"source": "tiny", **options}
    key = run_key("data", config, {})
    with new_run(folder, "data", config=config, inputs={}, key=key) as run:
        for name, table in tiny_tables(**options).items():
            write_parquet(table, run.path / f"{name}.parquet")
        run.facts["time_plan"] = plan.to_json()
        run.facts["source"] = "tiny"
    return folder
