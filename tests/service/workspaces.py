"""A small project up to the online store: tables, published views, priors that know, two rankers, and a real Redis."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.contract import (
    BASELINE_SERVICE,
    CATALOG_FILE,
    INTEREST_LOG_PROBS,
    INTEREST_MATRIX_FILE,
    INTEREST_TOP_INDEX,
    INTEREST_TOP_LOG_PROBS,
    INTERESTS_FILE,
    LLM,
    MATRIX_FILE,
    TABLE_FILE,
    TAIL_FILE,
    TAIL_LOG_MASS,
    TOP_INDEX,
    TOP_INDEX_FILE,
    prior_service,
    prior_view,
)
from advprior.store.runs import new_run, run_key
from advprior.store.tables import load_tables, load_time_plan, write_parquet
from ranking.evidence.training import train_arm
from ranking.frame.build import build_frame
from ranking.frame.join import open_store
from ranking.frame.publish import publish_features
from ranking.frame.read import FRAME_FILE
from ranking.models.arms import Arm
from ranking.models.config import RankerConfig
from ranking.service.clock import Clock
from tests.ports import free_port
from tests.ranking.stores import apply, copy_repo, publish, random_priors
from tests.tiny import PLAN, START, WEEK, write_tiny

#: The newest snapshot in the online store, and a moment at which its rows are fresh.
SNAPSHOT = START + 26 * WEEK
NOW = SNAPSHOT + timedelta(days=2)
_SMALL = RankerConfig(max_rounds=40, min_data_in_leaf=20, num_leaves=15, patience=40, learning_rate=0.1, threads=1)


class FixedClock(Clock):
    """Stands still."""

    def __init__(self, moment: datetime) -> None:
        super().__init__()
        self.moment = moment

    def now_us(self) -> int:
        return round(self.moment.timestamp() * 1e6)


@dataclass(frozen=True)
class Project:
    root: Path

    @property
    def tables(self) -> Path:
        return self.root / "tables"

    @property
    def repo(self) -> Path:
        return self.root / "feature_repo"

    @property
    def ranker(self) -> Path:
        return self.root / "ranker"

    @property
    def plain(self) -> Path:
        return self.root / "plain"

    @property
    def frame(self) -> pd.DataFrame:
        return pd.read_parquet(self.root / "frame" / FRAME_FILE)


def coming_week(tables: Path, snapshot: datetime) -> pd.DataFrame:
    """Purchases by user and advertiser in the week after a snapshot: what a history cannot know."""
    loaded = load_tables(tables, "users", "advertisers", "events")
    events = loaded["events"]
    mine = events[(events.timestamp >= snapshot) & (events.timestamp < snapshot + WEEK)]
    counts = pd.crosstab(mine.user_id, mine.advertiser_id)
    return counts.reindex(index=loaded["users"].user_id, columns=loaded["advertisers"].advertiser_id, fill_value=0)


def knowing_priors(tables: Path, seed: int = 0) -> dict[str, Any]:
    """Priors that see something of the coming week, through noise: a planted signal that history does not have."""
    plan, loaded = load_time_plan(tables), load_tables(tables, "users", "advertisers")
    users, names = loaded["users"].user_id.tolist(), loaded["advertisers"].advertiser_id.tolist()[:-1]
    files = random_priors(users, names, plan.snapshots(), plan.lag, plan.finetune_end, seed)
    counts = np.concatenate([coming_week(tables, moment)[names].to_numpy() for moment in plan.snapshots()])
    logits = np.log(counts + 0.1) + files[MATRIX_FILE]
    log_probs = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)
    table = files[TABLE_FILE].copy()
    table["log_probs"] = list(log_probs[table.prior_row])
    table["entropy"] = -(np.exp(log_probs) * log_probs).sum(axis=1)[table.prior_row]
    return {TABLE_FILE: table, MATRIX_FILE: log_probs, CATALOG_FILE: files[CATALOG_FILE]}


def with_top_k_and_interests(files: dict[str, Any], k: int = 4) -> dict[str, Any]:
    """The same priors as the `k` likeliest advertisers and a tail, with interests in three categories beside them."""
    full, table = files[MATRIX_FILE], files[TABLE_FILE].copy()
    top = np.argsort(-full, axis=1, kind="stable")[:, :k].astype(np.int32)
    kept = np.take_along_axis(full, top, axis=1)
    tail = np.log1p(-np.exp(kept.astype(np.float64)).sum(axis=1)).astype(np.float32)
    logits = np.random.default_rng(1).normal(size=(len(full), 3))
    interests = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)
    rows = table.prior_row.to_numpy()
    table["log_probs"], table[TOP_INDEX] = list(kept[rows]), list(top[rows].astype(np.int64))
    table[TAIL_LOG_MASS], table[INTEREST_LOG_PROBS] = tail[rows], list(interests[rows])
    best = np.argsort(-interests, axis=1)[:, :2]
    table[INTEREST_TOP_INDEX] = list(best[rows])
    table[INTEREST_TOP_LOG_PROBS] = list(np.take_along_axis(interests, best, axis=1)[rows])
    named = {"version": "i1", "advertisers": [{"advertiser_id": c, "name": c} for c in ("Tea", "Soap", "Bread")]}
    arrays = {MATRIX_FILE: kept, TOP_INDEX_FILE: top, TAIL_FILE: tail, INTEREST_MATRIX_FILE: interests}
    return {**files, **arrays, TABLE_FILE: table, INTERESTS_FILE: named}


def materialize(repo: Path, until: datetime, views: list[str] | None = None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        open_store(repo).materialize(START, until, feature_views=views)


def build_project(root: Path, users: int = 40) -> Project:
    """Everything offline, and the sqlite online store as of `SNAPSHOT`."""
    project = Project(root)
    write_tiny(project.tables, users=users)
    return on_tables(project)


def on_tables(project: Project, adds: tuple[str, ...] = ("prior_llm",)) -> Project:
    """The rest of a project that has its tables; ``adds``: what its ranker with priors adds to the baseline's."""
    copy_repo(project.repo)
    publish_features(project.tables, project.repo)
    publish(project.repo, prior_view(LLM), knowing_priors(project.tables))
    apply(project.repo)
    write_frame(project, LLM)
    train(project, project.ranker, prior_service(LLM), adds=adds)
    train(project, project.plain, BASELINE_SERVICE)
    materialize(project.repo, SNAPSHOT + PLAN.lag)
    return project


def write_frame(project: Project, predictor: str) -> None:
    """The frame of one predictor's priors, as a finished run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = build_frame(project.tables, project.repo, [predictor])
    key = run_key("rank frame", {}, {})
    with new_run(project.root / "frame", "rank frame", config={}, inputs={}, key=key) as run:
        write_parquet(result.frame, run.path / FRAME_FILE)
        run.facts.update(result.facts)


def train(project: Project, out: Path, service: str, seed: int = 0, adds: tuple[str, ...] = ("prior_llm",)) -> None:
    """A ranker of a service; without priors where it is the baseline's."""
    arm = Arm(name="arm", service=service, label=service, adds=() if service == BASELINE_SERVICE else adds)
    key = run_key("rank train", service, {}, seed)
    with new_run(out, "rank train", config={"seed": seed}, inputs={}, key=key) as run:
        run.facts.update(train_arm(project.root / "frame", arm, _SMALL, seed, run.path))


def copy_project(project: Project, root: Path) -> Project:
    """A copy with a registry and online store of its own.

    Registry and sqlite file stay behind: applying a copied registry drops the tables of the original.
    """
    shutil.copytree(project.root, root, symlinks=True)
    for name in ("registry.db", "online_store.db", "online_store.db-wal", "online_store.db-shm"):
        (root / "feature_repo" / "data" / name).unlink(missing_ok=True)
    return Project(root)


def on_redis(project: Project, port: int, name: str = "advprior") -> None:
    """Point a copied project at a Redis, apply, and materialize. Its timeouts are a busy machine's, not a service's."""
    path = project.repo / "feature_store.yaml"
    path.write_text(
        f"project: {name}\nprovider: local\nregistry: data/registry.db\nonline_store:\n  type: redis\n"
        f"  connection_string: localhost:{port},socket_timeout=60,socket_connect_timeout=60\n"
        "offline_store:\n  type: duckdb\nentity_key_serialization_version: 3\n"
        "batch_engine:\n  type: advprior.store.online.engine.ColumnarEngine\n"
    )
    apply(project.repo)
    materialize(project.repo, SNAPSHOT + PLAN.lag)


class Redis:
    """A redis-server of our own on a free loopback port."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            "redis-server",
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(self.folder),
            "--save",
            "",
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(4000):
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError("redis-server does not come up")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def redis_server(folder: Path) -> Iterator[Redis]:
    server = Redis(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()
