"""Tables and priors of any size for the rows of the frame and the ablation, drawn and written user by user.

Users and advertisers have tastes; an impression is answered, and an event chosen, by how they agree. Three predictors
know the tastes: one well, one half as well, and a placebo those of another user. Their priors lie in the repository as
`advprior publish` lays them out: the 100 likeliest advertisers of each user and snapshot. The vectors that a service
reads are left out of the tables: no frame reads them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from advprior.pipeline.project import shipped_repo
from advprior.store.contract import (
    CATALOG_FILE,
    LLM,
    MATRIX_FILE,
    NEIGHBOURS,
    PLACEBO,
    TABLE_FILE,
    TAIL_FILE,
    TOP_INDEX_FILE,
    TimePlan,
    prior_view,
)
from advprior.store.progress import Progress
from advprior.store.runs import new_run, publish_version, run_key
from advprior.store.times import moment_us

START, WEEK, LAG = datetime(2024, 1, 1, tzinfo=UTC), timedelta(days=7), timedelta(hours=1)
PLAN = TimePlan(START, START + 6 * WEEK, START + 12 * WEEK, START + 14 * WEEK, START + 16 * WEEK)
TASTES, SLATE, CATEGORIES, AGES = 8, 10, 40, ("18-34", "35-54", "55+")
CHUNK = 5_000  # users at a time
#: How much of a user's taste each predictor sees; None: another user's.
SEEN: dict[str, float | None] = {LLM: 0.9, NEIGHBOURS: 0.5, PLACEBO: None}
_US = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class Size:
    """How many of everything.

    Parameters
    ----------
    users, advertisers, ads, impressions, events : int
        Impressions and events are divided evenly among the users, impressions by slates.
    top : int
        Advertisers that a prior keeps of a user.
    """

    users: int = 100_000
    advertisers: int = 500
    ads: int = 5_000
    impressions: int = 10_000_000
    events: int = 2_000_000
    top: int = 100

    @classmethod
    def share(cls, share: float) -> Size:
        """A share of the users with all that is theirs; advertisers and ads stay."""
        whole = cls()
        return cls(
            users=round(whole.users * share),
            impressions=round(whole.impressions * share),
            events=round(whole.events * share),
        )


class World:
    """Tastes of users and advertisers."""

    def __init__(self, size: Size, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.size, self.seed = size, seed
        self.users = rng.standard_normal((size.users, TASTES), dtype=np.float32)
        self.advertisers = rng.standard_normal((size.advertisers, TASTES), dtype=np.float32)
        self.popularity = rng.normal(0, 0.7, size.advertisers).astype(np.float32)
        self.of_ad = np.arange(size.ads) % size.advertisers
        self.category = (np.arange(size.ads) // size.advertisers + self.of_ad) % CATEGORIES

    def match(self, user: Any, advertiser: Any) -> Any:
        """Agreement of tastes, of standard deviation one."""
        return np.einsum("ij,ij->i", self.users[user], self.advertisers[advertiser]) / np.sqrt(TASTES)

    def chunks(self) -> Iterator[tuple[Any, np.random.Generator]]:
        """Users at a time, each chunk with a seed of its own."""
        for first in range(0, self.size.users, CHUNK):
            users = np.arange(first, min(first + CHUNK, self.size.users))
            yield users, np.random.default_rng([self.seed, 1, first])


def _named(codes: Any, names: list[str]) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), names).cast(pa.string())


def _names(world: World) -> dict[str, list[str]]:
    size = world.size
    advertisers, categories = [f"a{i:04d}" for i in range(size.advertisers)], [f"c{i:02d}" for i in range(CATEGORIES)]
    ads = [f"{advertisers[a]}/{i}" for i, a in enumerate(world.of_ad)]
    return {
        "user": [f"u{i:07d}" for i in range(size.users)],
        "advertiser": advertisers,
        "category": categories,
        "ad": ads,
    }


def _times(rng: np.random.Generator, start: datetime, count: int) -> Any:
    return rng.integers(moment_us(start), moment_us(PLAN.end), count)


def _events(world: World, names: dict[str, list[str]], users: Any, rng: np.random.Generator) -> pa.Table:
    """The best matching of four ads drawn, each time."""
    user = np.repeat(users, world.size.events // world.size.users)
    drawn = rng.integers(0, world.size.ads, (4, len(user)))
    agreement = np.stack([world.match(user, world.of_ad[row]) + world.popularity[world.of_ad[row]] for row in drawn])
    ad = drawn[agreement.argmax(axis=0), np.arange(len(user))]
    return pa.table(
        {
            "user_id": _named(user, names["user"]),
            "timestamp": pa.array(np.sort(_times(rng, START, len(user))), pa.int64()).cast(_US),
            "advertiser_id": _named(world.of_ad[ad], names["advertiser"]),
            "category": _named(world.category[ad], names["category"]),
            "value": pa.array(rng.gamma(2.0, 5.0, len(user))),
        }
    )


def _impressions(world: World, names: dict[str, list[str]], users: Any, rng: np.random.Generator) -> pa.Table:
    slates = world.size.impressions // world.size.users // SLATE
    user = np.repeat(users, slates * SLATE)
    slate = np.repeat(np.arange(users[0] * slates, (users[-1] + 1) * slates), SLATE)
    ad = rng.integers(0, world.size.ads, len(user))
    advertiser, position = world.of_ad[ad], np.tile(np.arange(SLATE), len(slate) // SLATE)
    odds = -3.9 + 0.9 * world.match(user, advertiser) + 0.7 * world.popularity[advertiser] - 0.05 * position
    return pa.table(
        {
            "impression_id": pa.array(np.arange(len(user)) + users[0] * slates * SLATE, pa.int64()),
            "slate_id": pa.array(slate, pa.int64()),
            "user_id": _named(user, names["user"]),
            "ad_id": _named(ad, names["ad"]),
            "advertiser_id": _named(advertiser, names["advertiser"]),
            "timestamp": pa.array(np.repeat(_times(rng, PLAN.finetune_end, len(user) // SLATE), SLATE)).cast(_US),
            "label": pa.array((rng.random(len(user)) < 1 / (1 + np.exp(-odds))).astype(np.int8)),
            "context_position": pa.array(position.astype(np.float32)),
        }
    )


def write_tables(folder: Path, world: World) -> None:
    """Canonical tables as a finished ``advprior data`` run; chunk by chunk."""
    names, size = _names(world), world.size
    with new_run(folder, "data", config=vars(size), inputs={}, key=run_key("data", vars(size), {})) as run:
        fixed = {
            "advertisers": {"advertiser_id": names["advertiser"], "name": names["advertiser"]},
            "ads": {
                "ad_id": names["ad"],
                "advertiser_id": _named(world.of_ad, names["advertiser"]),
                "category": _named(world.category, names["category"]),
            },
            "users": {"user_id": names["user"], "profile_age": _named(np.arange(size.users) % 3, list(AGES))},
        }
        for name, columns in fixed.items():
            pq.write_table(pa.table(columns), run.path / f"{name}.parquet")
        writers: dict[str, pq.ParquetWriter] = {}
        with Progress(size.users, "tables", "user") as progress:
            for users, rng in world.chunks():
                for name, draw in (("events", _events), ("impressions", _impressions)):
                    table = draw(world, names, users, rng)
                    if name not in writers:
                        writers[name] = pq.ParquetWriter(run.path / f"{name}.parquet", table.schema)
                    writers[name].write_table(table)
                progress.update(len(users))
        for writer in writers.values():
            writer.close()
        run.facts.update(source="scale", note="Made up, of any size", label_delay_s=0.0, time_plan=PLAN.to_json())


def lay_out(repo: Path) -> None:
    """An empty feature repository, as `advprior init` lays it out."""
    repo.mkdir(parents=True)
    for name in ("feature_store.yaml", "definitions.py", ".feastignore"):
        shutil.copy(shipped_repo() / name, repo / name)
    (repo / "data").mkdir()


def write_priors(repo: Path, world: World) -> None:
    """Each predictor's priors, published; the same of a user at every snapshot, which no join can know."""
    for place, (predictor, seen) in enumerate(SEEN.items()):
        building, view = repo / "data" / ".building" / predictor, prior_view(predictor)
        with new_run(building, "publish", config={}, inputs={}, key=run_key(view, {}, {})) as run:
            top, likely, tail = _top_k(world, seen, place)
            snapshots = PLAN.snapshots()
            for name, array in ((MATRIX_FILE, likely), (TOP_INDEX_FILE, top), (TAIL_FILE, tail)):
                shape = (len(array) * len(snapshots), *array.shape[1:])
                out = np.lib.format.open_memmap(run.path / name, "w+", array.dtype, shape)
                for i in range(len(snapshots)):
                    out[i * len(array) : (i + 1) * len(array)] = array
                del out
            _write_rows(run.path / TABLE_FILE, world, likely, snapshots)
            advertisers = [{"advertiser_id": name, "name": name} for name in _names(world)["advertiser"]]
            (run.path / CATALOG_FILE).write_text(json.dumps({"version": "v1", "advertisers": advertisers}))
            run.facts.update(
                predictor=predictor, source_predictor=predictor, catalog_version="v1", lag_s=LAG.total_seconds()
            )
        publish_version(building, repo / "data" / view)


def _top_k(world: World, seen: float | None, seed: int) -> tuple[Any, Any, Any]:
    """Of every user: the likeliest advertisers, best first, their log-probabilities, and that of all others."""
    size, rng = world.size, np.random.default_rng([world.seed, 2, seed])
    top = np.empty((size.users, size.top), np.int32)
    likely, tail = np.empty((size.users, size.top), np.float32), np.empty(size.users, np.float32)
    for users, _ in world.chunks():
        whose = users if seen is not None else (users + size.users // 2) % size.users
        logits = (seen or 0.9) * world.users[whose] @ world.advertisers.T / np.float32(np.sqrt(TASTES))
        logits += world.popularity + rng.normal(0, 0.3, logits.shape).astype(np.float32)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        best = np.argsort(-logits, axis=1)
        top[users] = best[:, : size.top]
        likely[users] = np.take_along_axis(logits, top[users], axis=1)
        tail[users] = np.log(np.maximum(1 - np.exp(likely[users]).sum(axis=1), 1e-6))
    return top, likely, tail


def _write_rows(path: Path, world: World, likely: Any, snapshots: list[datetime]) -> None:
    count, names = len(likely), _names(world)["user"]
    entropy = pa.array(-(np.exp(likely) * likely).sum(axis=1))
    writer = None
    for i, snapshot in enumerate(snapshots):
        cut, available = (pa.repeat(pa.scalar(moment_us(m)), count).cast(_US) for m in (snapshot, snapshot + LAG))
        table = pa.table(
            {
                "user_id": names,
                "event_timestamp": available,
                "created_timestamp": available,
                "snapshot": cut,
                "model_cutoff": pa.repeat(pa.scalar(moment_us(PLAN.finetune_end)), count).cast(_US),
                "catalog_version": pa.repeat("v1", count),
                "prior_row": pa.array(np.arange(count) + i * count),
                "entropy": entropy,
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def build(folder: Path, size: Size) -> None:
    """Tables, an empty repository and priors, in ``tables`` and ``repo`` of a folder."""
    world = World(size)
    write_tables(folder / "tables", world)
    lay_out(folder / "repo")
    write_priors(folder / "repo", world)
