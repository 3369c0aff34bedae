"""Feature repositories for tests: the real definitions and Feast, random but valid priors in the published layout."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from advprior.pipeline.project import shipped_repo
from advprior.store.contract import CATALOG_FILE, MATRIX_FILE, TABLE_FILE, prior_view
from advprior.store.feast_import import light_feast_import
from advprior.store.runs import new_run, publish_version, run_key
from advprior.store.tables import load_tables, load_time_plan, write_parquet
from ranking.frame.join import open_store

SHIPPED = shipped_repo()


class Workspace(NamedTuple):
    """Canonical tables, and a feature repository with what was published from them."""

    tables: Path
    repo: Path


def copy_repo(folder: Path) -> Path:
    """What `advprior init` puts into a workspace: the definitions, no package."""
    folder.mkdir(parents=True)
    for name in ("feature_store.yaml", "definitions.py", ".feastignore"):
        shutil.copy(SHIPPED / name, folder / name)
    (folder / "data").mkdir()
    return folder


def publish(repo: Path, view: str, files: dict[str, Any]) -> Path:
    """Publish files (tables, arrays or JSON, by name) as a view."""
    building = repo / "data" / ".building" / view
    with new_run(building, f"publish {view}", config={}, inputs={}, key=run_key(view, str(id(files)), {})) as run:
        for name, content in files.items():
            if isinstance(content, pd.DataFrame):
                write_parquet(content, run.path / name)
            elif isinstance(content, np.ndarray):
                np.save(run.path / name, content)
            else:
                (run.path / name).write_text(json.dumps(content))
    publish_version(building, repo / "data" / view)
    return repo / "data" / view


def random_priors(
    users: Sequence[str],
    advertisers: Sequence[str],
    snapshots: Sequence[datetime],
    lag: timedelta,
    cutoff: datetime,
    seed: int,
) -> dict[str, Any]:
    """Files of a prior view: one row per user and snapshot."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(users) * len(snapshots), len(advertisers)))
    log_probs = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)
    snapshot = pd.Series(pd.DatetimeIndex(list(snapshots)).as_unit("us").repeat(len(users)))
    order = rng.permutation(len(log_probs))  # a row's place in the table says nothing
    table = pd.DataFrame(
        {
            "user_id": np.tile(np.array(users, dtype=object), len(snapshots)),
            "event_timestamp": snapshot + lag,
            "created_timestamp": snapshot + lag,
            "snapshot": snapshot,
            "model_cutoff": pd.Series(pd.DatetimeIndex([cutoff] * len(log_probs)).as_unit("us")),
            "catalog_version": "v1",
            "prior_row": np.arange(len(log_probs)),
            "log_probs": list(log_probs),
            "entropy": -(np.exp(log_probs) * log_probs).sum(axis=1),
            "top1_index": log_probs.argmax(axis=1),
            "top1_log_prob": log_probs.max(axis=1),
        }
    ).iloc[order]
    catalog = {"version": "v1", "advertisers": [{"advertiser_id": a, "name": f"name of {a}"} for a in advertisers]}
    return {TABLE_FILE: table, MATRIX_FILE: log_probs, CATALOG_FILE: catalog}


def publish_priors(repo: Path, tables: Path, predictor: str, *, seed: int = 0, **changed: Any) -> Path:
    """Random priors for every user and snapshot of the tables; ``changed`` replaces files by name."""
    plan, loaded = load_time_plan(tables), load_tables(tables, "users", "advertisers")
    files = random_priors(
        loaded["users"].user_id.tolist(),
        loaded["advertisers"].advertiser_id.tolist()[:-1],
        plan.snapshots(),
        plan.lag,
        plan.finetune_end,
        seed,
    )
    return publish(repo, prior_view(predictor), files | changed)


def definitions(repo: Path) -> list[Any]:
    """Feast objects of the repository's definitions."""
    with light_feast_import():
        from feast import Entity, FeatureService, FeatureView

    spec = importlib.util.spec_from_file_location(f"definitions_{abs(hash(str(repo)))}", repo / "definitions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [
        o
        for name, o in vars(module).items()
        if not name.startswith("_") and isinstance(o, Entity | FeatureView | FeatureService)
    ]


def apply(repo: Path) -> Any:
    """Apply in process (the command itself costs seconds of import: one test runs it)."""
    store = open_store(repo)  # imports Feast the light way, for all tests of this process
    store.apply(definitions(repo))
    return store
