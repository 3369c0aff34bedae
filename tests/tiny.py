"""Small seeded canonical tables for tests: 40 users, 12 advertisers, 24 ads, 30 weeks.

Users prefer a few advertisers, so that history predicts labels; nothing here is real data.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
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
    rng = np.random.default_rng(seed)
    advertiser_ids = [f"a{i:02d}" for i in range(advertisers)]
    sold = [(CATEGORIES[i % 6], CATEGORIES[(i + 1) % 6]) for i in range(advertisers)]
    ads = pd.DataFrame(
        [(f"{a}/{c}", a, c) for a, categories in zip(advertiser_ids, sold, strict=True) for c in categories],
        columns=["ad_id", "advertiser_id", "category"],
    )
    taste = rng.dirichlet(np.full(advertisers, 0.3), size=users)
    events, impressions = [], []
    for user in range(users):
        for week in range(weeks):
            if rng.random() < 0.25:
                continue
            when = START + week * WEEK + timedelta(seconds=int(rng.integers(7200, 6 * 86400)))
            picked = rng.choice(advertisers, size=int(rng.integers(1, 4)), p=taste[user])
            bought = set()
            for a in picked:
                row = ads.iloc[2 * a + int(rng.integers(2))]
                bought.add(row.ad_id)
                events.append((f"u{user:03d}", when, row.advertiser_id, row.category, round(float(rng.gamma(2, 3)), 2)))
            if rng.random() < 0.3:  # a purchase of nobody in the catalog: activity, no advertiser
                events.append((f"u{user:03d}", when, None, "Produce", 1.0))
            for ad in rng.choice(len(ads), size=8, replace=False):
                ad_id = ads.ad_id[ad]
                impressions.append(
                    (
                        len(impressions),
                        user * weeks + week,
                        f"u{user:03d}",
                        ad_id,
                        ad_id.split("/")[0],
                        when,
                        int(ad_id in bought),
                        ["front", "back"][int(ad) % 2],
                    )
                )
    return {
        "users": pd.DataFrame(
            {
                "user_id": [f"u{i:03d}" for i in range(users)],
                "profile_age": rng.choice(["18-34", "35-54", "55+"], users),
                "profile_region": pd.Series(rng.choice(["north", "south"], users)).where(rng.random(users) < 0.8, None),
            }
        ),
        "advertisers": pd.DataFrame(
            {
                "advertiser_id": advertiser_ids,
                "name": [f"{CATEGORIES[i % 6]} and {CATEGORIES[(i + 1) % 6]} house {i}" for i in range(advertisers)],
            }
        ),
        "ads": ads,
        "events": pd.DataFrame(events, columns=["user_id", "timestamp", "advertiser_id", "category", "value"]),
        "impressions": pd.DataFrame(
            impressions,
            columns=[
                "impression_id",
                "slate_id",
                "user_id",
                "ad_id",
                "advertiser_id",
                "timestamp",
                "label",
                "context_placement",
            ],
        ),
    }


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
