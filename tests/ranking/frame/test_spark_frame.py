"""Feast's Spark store gives the frame and the online rows that duckdb gives, by configuration alone."""

from __future__ import annotations

import shutil
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from advprior.store.contract import LLM, TABLE_FILE, prior_view
from advprior.store.errors import AdvpriorError
from ranking.frame.build import build_frame
from ranking.frame.join import join_features
from ranking.frame.publish import publish_features
from tests.ranking.stores import apply, copy_repo, publish, publish_priors, random_priors
from tests.spark import needs_spark, quiet, use_spark
from tests.tiny import PLAN, write_tiny

pytestmark = [needs_spark, *quiet]
TTL = timedelta(days=14)
TICK = timedelta(microseconds=1)
T0 = datetime(2024, 3, 1, tzinfo=UTC)


class Pair(NamedTuple):
    """The same published views behind two stores."""

    tables: Path
    duckdb: Path
    spark: Path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    root = tmp_path_factory.mktemp("spark frame")  # a path may have a space in it
    tables, repo = write_tiny(root / "tables", users=20), copy_repo(root / "duckdb")
    publish_features(tables, repo)
    publish_priors(repo, tables, LLM, seed=1)
    return Pair(tables, repo, use_spark(Path(shutil.copytree(repo, root / "spark", symlinks=True))))


@pytest.fixture(scope="module")
def stores(pair: Pair) -> tuple[Any, Any]:
    return apply(pair.duckdb), apply(pair.spark)


def test_the_frame_is_the_same_cell_by_cell(pair: Pair, stores: tuple[Any, Any]) -> None:
    ours = build_frame(pair.tables, pair.duckdb, [LLM])
    theirs = build_frame(pair.tables, pair.spark, [LLM])
    pd.testing.assert_frame_equal(ours.frame, theirs.frame, check_exact=True)
    assert ours.frame.prior_llm_missing.mean() < 0.5  # else there was little to compare
    assert ours.facts["rows"] == theirs.facts["rows"]


def test_ties_late_rows_and_the_edge_of_the_ttl(tmp_path: Path) -> None:
    """To the microsecond: what was created late, what is one tick too old, and who was created last."""
    rng = np.random.default_rng(0)
    draws = zip(rng.integers(0, 12, 90), rng.integers(0, 5, 90), rng.integers(0, 3, 90), strict=True)
    rows = sorted({(f"u{user}", int(week), int(late)) for user, week, late in draws})
    delays = [timedelta(0), timedelta(hours=1), timedelta(days=10)]
    files = random_priors([f"r{i}" for i in range(len(rows))], ["a", "b"], [T0], timedelta(0), T0, 0)
    table = files[TABLE_FILE].sort_values("prior_row").reset_index(drop=True)
    event = [T0 + week * timedelta(days=7) for _, week, _ in rows]
    table["user_id"] = [user for user, _, _ in rows]
    table["event_timestamp"] = table["snapshot"] = pd.Series(pd.DatetimeIndex(event).as_unit("us"))
    created = [moment + delays[late] for moment, (_, _, late) in zip(event, rows, strict=True)]
    table["created_timestamp"] = pd.Series(pd.DatetimeIndex(created).as_unit("us"))

    repo = copy_repo(tmp_path / "duckdb")
    publish(repo, prior_view(LLM), files | {TABLE_FILE: table.sample(frac=1, random_state=0)})
    other = use_spark(Path(shutil.copytree(repo, tmp_path / "spark", symlinks=True)))
    steps = [-TICK, timedelta(0), TICK, timedelta(days=3), TTL, TTL + TICK]
    asked = [(f"u{u}", T0 + week * timedelta(days=7) + step) for u in range(13) for week in range(5) for step in steps]
    entities = pd.DataFrame(asked, columns=["user_id", "event_timestamp"])
    entities["event_timestamp"] = entities.event_timestamp.dt.as_unit("us")
    entities.insert(0, "impression_id", rng.permutation(len(asked)))

    found = []
    for store in (apply(repo), apply(other)):
        joined = join_features(store, ["prior_llm:prior_row", "prior_llm:snapshot"], entities)
        found.append(joined.pop("prior_llm__prior_row").fill_null(-1).cast("int64").to_numpy(zero_copy_only=False))
    np.testing.assert_array_equal(*found)
    assert 0.2 < (found[0] >= 0).mean() < 0.9
    for (user, moment), row in zip(asked, found[1], strict=True):  # and against the rule itself
        fits = table[
            (table.user_id == user)
            & (table.event_timestamp <= moment)
            & (table.created_timestamp <= moment)
            & (table.event_timestamp + TTL >= moment)
        ]
        newest = fits.sort_values(["event_timestamp", "created_timestamp"]).prior_row
        assert row == (newest.iloc[-1] if len(newest) else -1)


def _online(repo: Path) -> dict[tuple[str, bytes, str], tuple[Any, ...]]:
    with sqlite3.connect(repo / "data" / "online_store.db") as store:
        tables = [name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {
            (table, key, feature): rest
            for table in tables
            for key, feature, *rest in store.execute(
                f'SELECT entity_key, feature_name, value, event_ts, created_ts FROM "{table}"'
            )
        }
    store.close()
    return rows


def test_materialize_writes_the_same_online_rows(pair: Pair, stores: tuple[Any, Any]) -> None:
    for store in stores:
        store.materialize(PLAN.start, PLAN.end)
    ours, theirs = _online(pair.duckdb), _online(pair.spark)
    assert len(ours) > 500
    assert ours == theirs


def test_a_store_that_was_applied_for_another_engine_is_refused(pair: Pair, stores: tuple[Any, Any]) -> None:
    path = pair.spark / "feature_store.yaml"
    there = path.read_text()
    path.write_text((pair.duckdb / "feature_store.yaml").read_text())  # back to duckdb, and `apply` forgotten
    try:
        with pytest.raises(AdvpriorError, match="STO022") as refused:
            build_frame(pair.tables, pair.spark, [LLM])
    finally:
        path.write_text(there)
    assert "apply" in str(refused.value.fix)
