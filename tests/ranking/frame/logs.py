"""A log that grows week by week, its publications, and what makes two of them equal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from advprior.store.runs import new_run
from advprior.store.tables import write_parquet
from ranking.frame.publish import publish_features
from ranking.frame.views import view_folder
from tests.tiny import PLAN, START, WEEK, tiny_tables

VIEWS = ("user_history", "ad_stats")
Tables = dict[str, pd.DataFrame]


def log_at(week: int) -> Tables:
    """The log of some weeks, one row in twenty a week late; in the 26th a user and an ad come, within their tables."""
    until, newcomers = START + week * WEEK, ("u003", "a02/Soap")
    tables = tiny_tables(users=8)
    tables["ads"] = tables["ads"].assign(cluster=[f"{i % 5}" for i in range(len(tables["ads"]))])
    events = tables["events"]
    late = np.arange(len(events)) % 20 == 0
    tables["events"] = events.assign(arrived=events.timestamp.where(~late, events.timestamp + WEEK))
    since = pd.Timestamp(START + 25 * WEEK)
    for name, time in (("events", "arrived"), ("impressions", "timestamp")):
        table = tables[name]
        new = np.logical_or.reduce([table[c].isin(newcomers) for c in ("user_id", "ad_id") if c in table])
        tables[name] = table[((table[time] < until) & ((table.timestamp >= since) | ~new)).to_numpy()]
    if week < 26:
        for name in ("users", "ads"):
            tables[name] = tables[name][~tables[name].iloc[:, 0].isin(newcomers).to_numpy()]
    return tables


def publish_log(folder: Path, repo: Path, week: int, tables: Tables, *, anew: bool = False) -> None:
    names = {"finetune_end": 8, "train_end": 4, "valid_end": 2, "end": 0}
    moments: dict[str, Any] = {name: START + (week - before) * WEEK for name, before in names.items()}
    plan = replace(PLAN, **moments)
    with new_run(folder, "data", config={}, inputs={}, key=f"{week}") as run:
        for name, table in tables.items():
            write_parquet(table, run.path / f"{name}.parquet")
        run.facts["time_plan"] = plan.to_json()
    repo.mkdir(exist_ok=True)
    publish_features(folder, repo, anew=anew)


def assert_equal(left: Path, right: Path) -> None:
    """Both publications: tables, arrays, catalogs."""
    for view in VIEWS:
        folders = view_folder(left, view), view_folder(right, view)
        tables = [pq.read_table(folder / "table.parquet") for folder in folders]
        assert tables[0].schema.equals(tables[1].schema, check_metadata=True)
        assert tables[0].combine_chunks().equals(tables[1].combine_chunks())
        names = sorted(path.name for path in folders[0].glob("*") if path.suffix in (".npy", ".json"))
        for name in set(names) - {"manifest.json"}:
            assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
        assert names == sorted(path.name for path in folders[1].glob("*") if path.suffix in (".npy", ".json"))
