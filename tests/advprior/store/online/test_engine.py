"""`feast materialize` by columns leaves Redis as Feast's own engine leaves it, and goes on where it was killed."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from advprior.store.contract import LLM, prior_view
from advprior.store.offline import STORE_FILE
from ranking.frame.publish import publish_features
from tests.ranking.stores import apply, copy_repo, publish_priors
from tests.service.workspaces import START, redis_server
from tests.tiny import PLAN, write_tiny

VIEW = prior_view(LLM)
ENGINE = "batch_engine:\n  type: advprior.store.online.engine.ColumnarEngine\n  batch_rows: 4\n"
CONFIG = (
    "project: advprior\nprovider: local\nregistry: data/registry.db\nonline_store:\n  type: redis\n"
    "  connection_string: 127.0.0.1:{port}\noffline_store:\n  type: duckdb\nentity_key_serialization_version: 3\n"
)


class Stores(NamedTuple):
    """The same views, materialized by either engine into one Redis."""

    client: Any
    feast: Any
    ours: Any

    def after(self, store: Any, until: datetime, views: list[str] | None = None) -> dict[bytes, dict[bytes, bytes]]:
        """All of Redis after a materialization."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            store.materialize(START, until, feature_views=views)
        return {key: self.client.hgetall(key) for key in self.client.scan_iter()}


@pytest.fixture(scope="module")
def applied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server: apt-get install redis-server")
    redis = pytest.importorskip("redis")
    root = tmp_path_factory.mktemp("online")
    repo = copy_repo(root / "feast")
    publish_features(tables := write_tiny(root / "tables", users=20), repo)
    publish_priors(repo, tables, LLM, seed=1)
    copy = Path(shutil.copytree(repo, root / "ours", symlinks=True))
    with redis_server(root) as server:
        for folder, engine in ((repo, ""), (copy, ENGINE)):
            (folder / STORE_FILE).write_text(CONFIG.format(port=server.port) + engine)
        yield Stores(redis.Redis(port=server.port), apply(repo), apply(copy))


@pytest.fixture
def stores(applied: Stores) -> Stores:
    applied.client.flushall()
    return applied


def test_all_views_are_written_as_feast_writes_them(stores: Stores) -> None:
    theirs = stores.after(stores.feast, PLAN.end)
    stores.client.flushall()
    assert stores.after(stores.ours, PLAN.end) == theirs
    assert sum(len(fields) for fields in theirs.values()) > 500
    request = {"features": [f"{VIEW}:log_probs", f"{VIEW}:entropy"], "entity_rows": [{"user_id": "u001"}]}
    read = stores.ours.get_online_features(**request).to_dict()
    assert read == stores.feast.get_online_features(**request).to_dict()
    assert len(read["log_probs"][0]) > 1


def test_older_rows_leave_newer_ones_as_they_are(stores: Stores) -> None:
    snapshots = PLAN.snapshots()
    middle = snapshots[len(snapshots) // 2]
    newest = stores.after(stores.feast, PLAN.end)
    assert stores.after(stores.ours, middle) == newest
    stores.client.flushall()
    older = stores.after(stores.ours, middle)
    assert older != newest
    assert stores.after(stores.ours, PLAN.end) == newest


class Died(BaseException):
    """What a killed process looks like from inside."""


def die_after(patched: pytest.MonkeyPatch, batches: int) -> list[int]:
    """Let the engine die behind so many batches; the rows that it read."""
    from advprior.store.online import engine

    rows: list[int] = []
    read = engine.read_rows

    def dying(path: Path, columns: Any, *more: Any) -> Iterator[Any]:
        for batch in read(path, columns, *more):
            if len(columns) > 2:  # not the look at keys and times
                if len(rows) == batches:
                    raise Died
                rows.append(batch.num_rows)
            yield batch

    patched.setattr(engine, "read_rows", dying)
    return rows


@pytest.mark.parametrize("lost", [False, True])
def test_a_killed_one_goes_on_where_it_was_unless_the_store_lost_its_rows(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    whole = stores.after(stores.feast, PLAN.end, [VIEW])
    stores.client.flushall()
    with monkeypatch.context() as patched:
        first = die_after(patched, 4)
        with pytest.raises(Died):
            stores.after(stores.ours, PLAN.end, [VIEW])
    mark = stores.client.hgetall(f"advprior:materialize:advprior:{VIEW}")
    done = sum(first[:3])
    assert int(mark[b"rows"]) == done > 0  # the fourth was sent, but nobody heard that it had come
    if lost:
        for key in whole:
            stores.client.delete(key)
    with monkeypatch.context() as patched:
        again = die_after(patched, 1000)
        assert stores.after(stores.ours, PLAN.end, [VIEW]) == whole
    assert sum(again) == len(whole) - (0 if lost else done)


def test_a_row_that_redis_refuses_is_an_error_and_not_marked(stores: Stores) -> None:
    redis = pytest.importorskip("redis")
    whole = stores.after(stores.feast, PLAN.end, [VIEW])
    stores.client.flushall()
    stores.client.config_set("maxmemory", "1")
    try:
        with pytest.raises(redis.exceptions.RedisError, match="maxmemory"):
            stores.after(stores.ours, PLAN.end, [VIEW])
    finally:
        stores.client.config_set("maxmemory", "0")
    assert stores.client.dbsize() == 0
    assert stores.after(stores.ours, PLAN.end, [VIEW]) == whole
