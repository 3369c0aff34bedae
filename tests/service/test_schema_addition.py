"""A column that is added to the log reaches a running service with the ranker that was trained on it: no restart."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advprior.pipeline.refresh_store import materialize
from advprior.store.contract import CATALOG_FILE, LLM, MATRIX_FILE, TABLE_FILE, TABLES, prior_service, prior_view
from advprior.store.runs import manifest_digest, new_run, read_manifest, run_key
from advprior.store.tables import load_tables, write_parquet
from ranking.frame.publish import publish_features
from ranking.service.engine import Engine
from ranking.service.slate import Query
from tests.ranking.stores import apply, publish
from tests.service.live import engine_at
from tests.service.workspaces import SNAPSHOT, Project, Redis, copy_project, on_redis, train, write_frame
from tests.tiny import PLAN


def add_a_column(project: Project) -> None:
    """Users have a tier now, which tells their labels; the store has it too."""
    loaded = load_tables(project.tables, *TABLES)
    shown = loaded["impressions"]
    buyers = set(shown.user_id[shown.label == 1])
    users = loaded["users"]
    users["profile_tier"] = np.where(users.user_id.isin(buyers), "plus", "basic")
    facts = read_manifest(project.tables)["facts"]
    with new_run(project.tables, "data", config={}, inputs={}, key=run_key("data", "tier", {})) as run:
        for name, table in loaded.items():
            write_parquet(table, run.path / f"{name}.parquet")
        run.facts.update(facts)
    publish_features(project.tables, project.repo)
    apply(project.repo)
    online(project)


def online(project: Project) -> None:
    """As a refresh does it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        materialize(project.repo, SNAPSHOT + PLAN.lag, PLAN)


def test_a_ranker_on_an_added_column_is_taken_in(project: Project, redis: Redis, tmp_path: Path) -> None:
    """On Redis, which has a row of each user's profile of the same time already."""
    own = copy_project(project, tmp_path / "own")
    on_redis(own, redis.port, "added_column")
    engine = engine_at(own)
    before = engine.rank(Query("u003", 3))
    add_a_column(own)
    write_frame(own, LLM)
    train(own, own.ranker, prior_service(LLM), seed=1)
    engine.resources.refresh_rankers()
    assert engine.resources.reloads == {"done": 1, "refused": 0}
    assert not engine.resources.ranker_refused
    after = engine.rank(Query("u003", 3))
    assert after.ranker.digest == manifest_digest(own.ranker) != before.ranker.digest
    assert not after.degraded
    place = after.ranker.plan.features.index("profile_tier")
    ready = engine.prepare(Query("u003", 3))
    assert not np.isnan(ready.matrix[:, place]).any()
    # and a ranker without the column is taken in again
    shutil.rmtree(own.ranker)
    shutil.copytree(project.ranker, own.ranker)
    engine.resources.refresh_rankers()
    assert engine.resources.reloads == {"done": 2, "refused": 0}
    assert len(engine.rank(Query("u003", 3)).ads) == 3
    priors_of_another_catalog_come_online(own, engine)


def priors_of_another_catalog_come_online(own: Project, engine: Engine) -> None:
    """Published whole for snapshots that were served already, as after `catalog extend`: Redis has rows of these."""
    before = engine.rank(Query("u003", 3)).prior
    view = own.repo / "data" / prior_view(LLM)
    table = pd.read_parquet(view / TABLE_FILE)
    files: dict[str, Any] = {
        TABLE_FILE: table.assign(catalog_version="wider"),
        MATRIX_FILE: np.load(view / MATRIX_FILE),
        CATALOG_FILE: json.loads((view / CATALOG_FILE).read_text()) | {"version": "wider"},
    }
    publish(own.repo, view.name, files)
    online(own)
    engine.resources.refresh_catalogs()
    after = engine.rank(Query("u003", 3))
    assert not after.degraded
    assert after.prior is not None
    assert before is not None
    assert (after.prior.version, after.prior.snapshot_us) == ("wider", before.snapshot_us)
    assert before.version != "wider"
