"""A million users scored, top-100 of 100,000 advertisers; prompts a second: ``python -m benchmarks.scale.scoring``.

Memory: ``advprior score`` of popularity, in a process of its own, from canonical tables that are written here. It is
cheap and the same for all, so that what is measured is everything around a predictor: tables, histories, shards, files.
Prompts: `PromptEncoder.many` on one core, in shards of 512 users, for histories of several lengths; the longest is that
of the demo's households.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from advprior.history.histories import Histories
from advprior.predictors.llm.prompts import PromptEncoder, PromptStyle
from advprior.store.contract import PREDICTOR_ONLY, TimePlan
from advprior.store.runs import new_run
from advprior.store.times import DAY_US
from benchmarks.scale.rows import Rows, run_child

MEMORY_GB, USERS_A_SECOND = 2.0, 20_000
WEEK, START = timedelta(days=7), datetime(2024, 1, 1, tzinfo=UTC)
EVENTS_A_USER = 5
#: Events of a user, and days between occasions: few, as on a log of purchases online; many, as of groceries.
LENGTHS = {"5 events": (5, 20.0), "20 events": (20, 9.0), "100 events": (100, 2.0), "340 events (grocery)": (340, 1.0)}
SHARD = 512


def write_tables(folder: Path, users: int, advertisers: int, events: int = EVENTS_A_USER) -> None:
    """Canonical tables that measure a predictor: users with a profile, advertisers, some events each of six weeks."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    plan = TimePlan(START, START + 5 * WEEK, START + 5 * WEEK + WEEK / 4, START + 5 * WEEK + WEEK / 2, START + 6 * WEEK)
    facts = {"time_plan": plan.to_json(), "purpose": PREDICTOR_ONLY, "note": "made up, for a measurement"}
    with new_run(folder, "data", config={}, inputs={}, key=f"{users} {advertisers} {events}") as run:
        run.facts.update(facts)
        ages = pa.array(["18-24", "25-34", "35-44", "45-54", "55+"]).take(pa.array(rng.integers(0, 5, users)))
        ids = pa.array([f"u{number:07d}" for number in range(users)])
        pq.write_table(pa.table({"user_id": ids, "profile_age": ages}), run.path / "users.parquet")
        names = pa.array([f"a{number:06d}" for number in range(advertisers)])
        pq.write_table(pa.table({"advertiser_id": names, "name": names}), run.path / "advertisers.parquet")
        count = users * events
        who = np.sort(rng.integers(0, users, count))
        which = (advertisers * rng.random(count) ** 3).astype(np.int64)  # few are popular
        when = (rng.random(count) * (6 * WEEK).total_seconds() * 1e6).astype(np.int64) + int(START.timestamp() * 1e6)
        columns = {
            "user_id": ids.take(pa.array(who)),
            "timestamp": pa.array(when, pa.timestamp("us", tz="UTC")),
            "advertiser_id": names.take(pa.array(which)),
            "category": pa.array(["all"]).take(pa.array(np.zeros(count, np.int64))),
            "value": pa.array(np.ones(count)),
        }
        pq.write_table(pa.table(columns), run.path / "events.parquet")


def score_many(rows: Rows, folder: Path, users: int, advertisers: int) -> None:
    """Fit on a few users, score all of them, and see what it took."""
    advprior = [sys.executable, "-m", "advprior"]
    write_tables(folder / "few", 300, advertisers)
    write_tables(folder / "many", users, advertisers)
    model = folder / "model"
    run_child([*advprior, "finetune", "--tables", folder / "few", "--predictor", "popularity", "--out", model])
    run_child([*advprior, "export", model])
    cost = run_child([*advprior, "score", model, "--tables", folder / "many", "--out", folder / "priors"])
    size = sum(path.stat().st_size for path in (folder / "priors").iterdir())
    rows.note(f"score {users:,} users, top-100 of {advertisers:,}: CPU-seconds", f"{cost.cpu_s:.0f}")
    rows.note("  disk of the scored priors", f"{size / 1e6:.0f} MB")
    rows.at_most(f"score {users:,} users, top-100 of {advertisers:,}: peak memory", cost.peak_gb, MEMORY_GB, "GB")


def made_up_histories(users: int, events: int, days: float) -> Histories:
    """Users with so many events each, an occasion every so many days."""
    rng = np.random.default_rng(1)
    gaps = rng.poisson(days / 2, (users, events)) * (rng.random((users, events)) < 0.5)
    time_of = (np.cumsum(gaps, axis=1) * DAY_US).ravel()
    advertiser = (664 * rng.random(users * events) ** 2).astype(np.int64)
    user = np.repeat(np.arange(users), events)
    order = np.lexsort([advertiser, time_of, user])
    profiles = tuple(
        f"Age: {20 + user % 60}. Income: {user % 9}0-74K. Household size: {user % 5}" for user in range(users)
    )
    ids = tuple(map(str, range(users)))
    return Histories(ids, profiles, np.arange(users + 1) * events, time_of[order], advertiser[order])


def prompts_a_second(histories: Histories, encoder: PromptEncoder) -> tuple[float, float]:
    """Users whose newest prompt one core builds in a second, and tokens a prompt."""
    cutoff = np.asarray([int(histories.time.max()) + 1])
    every = np.arange(len(histories))
    encoder.many(histories, every, cutoff)  # profiles are encoded once and remembered
    tokens, started = 0, time.process_time()
    for start in range(0, len(every), SHARD):
        tokens += len(encoder.many(histories, every[start : start + SHARD], cutoff).ids)
    return len(every) / (time.process_time() - started), tokens / len(every)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--advertisers", type=int, default=100_000)
    parser.add_argument("--prompts", type=int, default=8_192, help="Users whose prompts are built.")
    args = parser.parse_args()
    rows = Rows("scoring")
    encoder = PromptEncoder(PromptStyle(), lambda text: list(text.encode()), 256, [str(i) for i in range(664)])
    for name, (events, days) in LENGTHS.items():
        rate, tokens = prompts_a_second(made_up_histories(args.prompts, events, days), encoder)
        rows.at_least(f"prompts of {name}, {tokens:.0f} tokens each, one core", rate, USERS_A_SECOND, "users/s")
    with tempfile.TemporaryDirectory(prefix="advprior-scoring-") as folder:
        score_many(rows, Path(folder), args.users, args.advertisers)
    return rows.exit_code


if __name__ == "__main__":
    sys.exit(main())
