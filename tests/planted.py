"""Tables whose advertisers' names tell who buys from them: three kinds of shops, users who keep to one kind."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from advprior.store.runs import new_run, run_key
from advprior.store.tables import write_parquet
from tests.tiny import PLAN, START, WEEK

KINDS = {"t": "the tea house of tea", "s": "soap soap and soaps", "b": "corner bakery bread"}
EACH = 6  # advertisers of a kind


def kind_of(advertiser: str) -> str:
    return advertiser[0]


def planted_tables(users: int = 60, weeks: int = 30, leave_out: tuple[str, ...] = (), seed: int = 0):
    """Users, advertisers and events; ``leave_out`` are in none of them."""
    rng = np.random.default_rng(seed)
    ids = sorted(f"{kind}{i}" for kind in KINDS for i in range(EACH))
    events = []
    for user in range(users):
        kind = list(KINDS)[user % 3]
        for week in range(weeks):
            if rng.random() < 0.6:
                when = START + week * WEEK + timedelta(hours=int(rng.integers(2, 160)))
                events.append((f"u{user:03d}", when, f"{kind}{int(rng.integers(EACH))}", "Goods", 1.0))
    advertisers = pd.DataFrame(
        {
            "advertiser_id": ids,
            "name": [f"{KINDS[kind_of(a)]} {a[1]}" for a in ids],
            "text": [f"{KINDS[kind_of(a)]} goods" if a[1] != "0" else None for a in ids],
        }
    )
    columns = ["user_id", "timestamp", "advertiser_id", "category", "value"]
    table = pd.DataFrame(events, columns=columns)
    return {
        "users": pd.DataFrame({"user_id": [f"u{i:03d}" for i in range(users)], "profile_age": "35-54"}),
        "advertisers": advertisers[~advertisers.advertiser_id.isin(leave_out)].reset_index(drop=True),
        "events": table[~table.advertiser_id.isin(leave_out)].reset_index(drop=True),
    }


def write_planted(folder: Path, **options) -> Path:
    """As a finished ``advprior data`` run."""
    config = {"source": "planted", **{k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}}
    with new_run(folder, "data", config=config, inputs={}, key=run_key("data", config, {})) as run:
        for name, table in planted_tables(**options).items():
            write_parquet(table, run.path / f"{name}.parquet")
        run.facts.update(time_plan=PLAN.to_json(), source="planted", purpose="predictor")
    return folder
