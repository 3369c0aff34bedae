"""All that Spark does, in one file, for its tests share one session: scoring, joins, frames, materialization.

Scoring writes what one machine writes, goes on where it stopped, and says what went wrong on a worker. Feast's Spark
store gives the frame and the online rows that duckdb gives, by configuration alone.
"""

from __future__ import annotations

import shutil
import sqlite3
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from advprior.cli import cli
from advprior.pipeline.fit import finetune
from advprior.pipeline.rowfiles import Journal
from advprior.predictors.registry import predictor_class
from advprior.spark import cluster
from advprior.store.contract import LLM, TABLE_FILE, prior_view
from advprior.store.errors import AdvpriorError
from advprior.store.offline import STORE_FILE
from advprior.store.runs import read_manifest
from ranking.frame import publish as publish_module
from ranking.frame.build import build_frame
from ranking.frame.join import join_features
from ranking.frame.log_blocks import BlockWork
from ranking.frame.numbering import HistoryIds
from ranking.frame.publish import publish_features
from ranking.frame.stream_counts import LevelCounts
from ranking.frame.user_blocks import UserBlocks
from ranking.frame.workers import on_workers, spark_runner
from tests.advprior.conftest import Fitted, export, llm_settings
from tests.advprior.scoring import score
from tests.ranking.frame.logs import assert_equal, log_at, publish_log
from tests.ranking.stores import apply, copy_repo, publish, publish_priors, random_priors
from tests.service.workspaces import redis_server
from tests.spark import CONF, needs_spark, open_session, quiet, spark_block, use_spark
from tests.tiny import PLAN, tiny_tables, write_tiny

pytestmark = [needs_spark, *quiet]
MASTER = CONF["spark.master"]
ENGINE = "batch_engine:\n  type: advprior.store.online.engine.ColumnarEngine\n"
TTL = timedelta(days=14)
TICK = timedelta(microseconds=1)
T0 = datetime(2024, 3, 1, tzinfo=UTC)
SMALL: dict[str, Any] = {"device": "cpu", "threads": 1, "shard_users": 7}


@pytest.fixture(scope="module")
def session() -> Any:
    return open_session()


@pytest.fixture(scope="module")
def llm(fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLM with a head of interests."""
    out = tmp_path_factory.mktemp("spark") / "llm"
    raw = {**llm_settings(fitted.folder / "base", epochs=1), "interests": {"weight": 0.5}}
    assert finetune(fitted.tables, out, "llm", predictor_class("llm").settings(raw))
    export(out)
    return out


def assert_same(ours: Path, theirs: Path) -> None:
    """Same files, same rows; priors within 1e-6 of the largest: batches of another size round otherwise."""
    names = {path.name for path in ours.iterdir()}
    assert names == {path.name for path in theirs.iterdir()}
    for name in sorted(names - {"manifest.json"}):
        if name.endswith(".npy"):
            first, second = np.load(ours / name), np.load(theirs / name)
            assert first.dtype == second.dtype
            scale = np.abs(first).max() if first.dtype.kind == "f" else 0
            np.testing.assert_allclose(second, first, rtol=0, atol=1e-6 * scale, err_msg=name)
        elif name.endswith(".parquet"):
            rows = [pd.read_parquet(folder / name) for folder in (ours, theirs)]
            pd.testing.assert_frame_equal(*rows, rtol=1e-5, atol=1e-6)
        else:
            assert (ours / name).read_bytes() == (theirs / name).read_bytes()


def test_scoring_by_configuration_alone(fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command, its session taken from the store's own file; then nothing is left to do, Spark or not.

    It stands first: the other tests find a session that is open, this one opens it.
    """
    conf = tmp_path / "feature_store.yaml"
    conf.write_text("project: advprior\noffline_store:\n" + spark_block())
    monkeypatch.delenv("PYSPARK_PYTHON", raising=False)
    run = fitted.model("popularity")
    call = ["score", run, "--tables", fitted.tables, "--out", tmp_path / "out", "--last", 2]
    done = CliRunner().invoke(cli, list(map(str, call)), env={"ADVPRIOR_SPARK": str(conf)}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "on Spark (local[2], 2 cores): 40 users x 2 snapshots" in done.output
    assert not score(run, fitted.tables, tmp_path / "out", last=2)


def test_the_llm_s_priors_and_interests_are_those_of_one_machine(
    session: Any, fitted: Fitted, llm: Path, tmp_path: Path
) -> None:
    assert score(llm, fitted.tables, tmp_path / "local", **SMALL)
    assert score(llm, fitted.tables, tmp_path / "spark", spark=MASTER, **SMALL)
    assert_same(tmp_path / "local", tmp_path / "spark")
    local, remote = (read_manifest(tmp_path / name) for name in ("local", "spark"))
    assert remote["facts"]["spark"] | {"version": ""} == {
        "master": MASTER,
        "cores": 2,
        "version": "",
        "threads": 1,
        "providers": ["CPUExecutionProvider"],
    }
    assert remote["key"] == local["key"]
    for name in ("prompts", "forwarded", "max_sum_error", "interests_version"):
        assert remote["facts"][name] == local["facts"][name]
    # a refresh forwards on Spark only whose input changed: here nobody's
    assert score(llm, fitted.tables, tmp_path / "again", since=tmp_path / "local", spark=MASTER, **SMALL)
    assert score(llm, fitted.tables, tmp_path / "here", since=tmp_path / "local", **SMALL)
    assert read_manifest(tmp_path / "again")["facts"]["carried"] == 40
    assert_same(tmp_path / "here", tmp_path / "again")


@pytest.mark.parametrize("kind", ["sasrec", "neighbours"])
def test_who_asks_for_everyone_s_purchases_gets_them(session: Any, fitted: Fitted, tmp_path: Path, kind: str) -> None:
    for name, spark in (("local", None), ("spark", MASTER)):
        assert score(fitted.model(kind), fitted.tables, tmp_path / name, spark=spark, top_k=5, last=3, **SMALL)
    assert_same(tmp_path / "local", tmp_path / "spark")


def test_spark_goes_on_where_one_machine_stopped(
    session: Any, fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, options = fitted.model("llm"), {**SMALL, "shard_users": 5, "last": 2}
    assert score(run, fitted.tables, tmp_path / "calm", **options)

    def interrupted(after: int, **more: Any) -> None:
        """Stop right after so many shards are on disk."""
        with monkeypatch.context() as patched:
            patched.setattr(Journal, "add", _stopping(Journal.add, after))
            with pytest.raises(KeyboardInterrupt):
                score(run, fitted.tables, tmp_path / "out", **options, **more)
        assert not (tmp_path / "out").exists()

    interrupted(3)
    interrupted(4, spark=MASTER)  # what is under way is given up, what was written counts
    sent: list[int] = []
    take = cluster.part_of

    def counted(people: Any, users: Any) -> Any:
        assert not len(people.time)  # who they are goes through the driver, what they did does not
        sent.extend(users)
        return take(people, users)

    monkeypatch.setattr(cluster, "part_of", counted)
    assert score(run, fitted.tables, tmp_path / "out", spark=MASTER, **options)
    assert len(sent) == len(set(sent)) == 40 - 4 * 5
    assert_same(tmp_path / "calm", tmp_path / "out")


def _stopping(note: Any, after: int) -> Any:
    def add(journal: Journal, shard: int, facts: dict[str, float]) -> None:
        note(journal, shard, facts)
        if len(journal.done) == after:
            raise KeyboardInterrupt

    return add


def test_a_coded_error_of_a_worker_comes_back_as_it_was(
    session: Any, fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_a_graph(run: Path, archive: Path) -> None:
        copy = Path(shutil.copytree(run, tmp_path / "copy"))
        (copy / "onnx" / "model.onnx").write_bytes(b"torn")
        whole(copy, archive)

    whole = cluster.pack
    monkeypatch.setattr(cluster, "pack", without_a_graph)
    with pytest.raises(AdvpriorError, match="PRI030"):
        score(fitted.model("popularity"), fitted.tables, tmp_path / "out", spark=MASTER, **SMALL)
    assert not (tmp_path / "out").exists()


def test_a_worker_that_does_not_see_the_histories_says_so(
    session: Any, fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(tables: Path, users: Any, folder: Path) -> None:
        sort(tables, users, folder)
        (folder / "events.parquet").rename(tmp_path / "moved.parquet")

    sort = cluster.sort_events
    monkeypatch.setattr(cluster, "sort_events", elsewhere)
    with pytest.raises(AdvpriorError, match="PRI074"):
        score(fitted.model("popularity"), fitted.tables, tmp_path / "out", spark=MASTER, **SMALL)


def test_any_other_failure_of_a_worker_is_named(
    session: Any, fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "packed", lambda histories: b"no pickle")
    with pytest.raises(AdvpriorError, match="PRI072") as failed:
        score(fitted.model("popularity"), fitted.tables, tmp_path / "out", spark=MASTER, **SMALL)
    assert "UnpicklingError" in str(failed.value.actual)


@pytest.mark.parametrize("content", [None, "a: [", "offline_store: duckdb", "spark_conf: {spark.ui.enabled: false}"])
def test_a_file_without_settings_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "spark.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(AdvpriorError, match="PRI071"):
        cluster.read_conf(str(path))


def test_settings_at_the_top_or_beside_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_MASTER", "spark://host:7077")
    path = tmp_path / "spark.yaml"
    path.write_text("spark_conf:\n  spark.master: ${SPARK_MASTER}\n  spark.executor.cores: 4\n")
    assert cluster.read_conf(str(path)) == {"spark.master": "spark://host:7077", "spark.executor.cores": "4"}


def test_spark_without_java_is_refused(fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(AdvpriorError, match=r"PRI070(.|\n)*Java"):
        score(fitted.model("popularity"), fitted.tables, tmp_path / "out", spark=MASTER)


def test_features_are_counted_by_the_workers(session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By configuration alone, and equal to those of one machine: the first time, and with snapshots that stand."""
    monkeypatch.setattr(publish_module, "BLOCK_USERS", 3)
    repo = use_spark(copy_repo(tmp_path / "spark"))
    for week in (25, 26):
        publish_log(tmp_path / "tables", tmp_path / "whole", week, log_at(week))
        with monkeypatch.context() as patch:
            patch.setattr(LevelCounts, "at", lambda counts, moment: pytest.fail("counted by the driver"))
            publish_features(tmp_path / "tables", repo)
        assert_equal(repo, tmp_path / "whole")


def test_what_fails_on_a_worker_is_one_error(session: Any, tmp_path: Path) -> None:
    with pytest.raises(AdvpriorError, match=r"STO025(.|\n)*same path on every machine"):
        list(on_workers(session.sparkContext, _load, UserBlocks(tmp_path / "elsewhere", 3, 3, ()), [0]))
    with pytest.raises(AdvpriorError, match=r"STO024(.|\n)*ZeroDivisionError(.|\n)*workers' logs"):
        list(on_workers(session.sparkContext, divmod, 1, [0]))


def _load(blocks: UserBlocks, number: int) -> None:
    blocks.load(number, {})


def test_workers_run_the_python_of_the_command(session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the master is this machine and nobody names another: `python3` of the path may be anything."""
    repo = use_spark(copy_repo(tmp_path / "spark"))
    monkeypatch.delenv("PYSPARK_PYTHON", raising=False)
    monkeypatch.setattr(session.sparkContext, "pythonExec", "python3")
    spark_runner(repo)
    assert session.sparkContext.pythonExec == sys.executable


def test_a_worker_that_counts_otherwise_is_refused(session: Any, tmp_path: Path) -> None:
    ids = HistoryIds([], tiny_tables(2)["ads"])
    work = BlockWork(UserBlocks(tmp_path, 3, 3, ()), {}, pd.DataFrame(), ids, timedelta(0), version=0)
    with pytest.raises(AdvpriorError, match=r"STO026(.|\n)*version 0"):
        list(on_workers(session.sparkContext, BlockWork.load, work, [0]))


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
def stores(session: Any, pair: Pair) -> tuple[Any, Any]:
    return apply(pair.duckdb), apply(pair.spark)


def test_the_frame_is_the_same_cell_by_cell(pair: Pair, stores: tuple[Any, Any]) -> None:
    ours = build_frame(pair.tables, pair.duckdb, [LLM])
    theirs = build_frame(pair.tables, pair.spark, [LLM])
    pd.testing.assert_frame_equal(ours.frame, theirs.frame, check_exact=True)
    assert ours.frame.prior_llm_missing.mean() < 0.5  # else there was little to compare
    assert ours.facts["rows"] == theirs.facts["rows"]


def test_paths_may_be_relative(pair: Pair, stores: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pair.tables.parent)
    call = ["rank", "frame", "--tables", pair.tables.name, "--repo", pair.spark.name, "--out", "out of it"]
    assert CliRunner().invoke(cli, call, catch_exceptions=False).exit_code == 0


def test_ties_late_rows_and_the_edge_of_the_ttl(session: Any, tmp_path: Path) -> None:
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


def test_workers_write_into_redis_what_feast_writes(session: Any, pair: Pair, tmp_path: Path) -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server: apt-get install redis-server")
    redis = pytest.importorskip("redis")
    rows = []
    with redis_server(tmp_path) as server:
        client = redis.Redis(port=server.port)
        for name, of in (("feast", pair.duckdb), ("workers", pair.spark)):
            repo = Path(shutil.copytree(of, tmp_path / name, symlinks=True))
            for path in repo.glob("data/*.db"):
                path.unlink()
            text = (repo / STORE_FILE).read_text().replace("type: sqlite", "type: redis")
            text = text.replace("path: data/online_store.db", f"connection_string: 127.0.0.1:{server.port}")
            (repo / STORE_FILE).write_text(text if name == "workers" else text.replace(ENGINE, ""))
            apply(repo).materialize(PLAN.start, PLAN.end, feature_views=[prior_view(LLM)])
            rows.append({key: client.hgetall(key) for key in client.scan_iter()})
            client.flushall()
    assert len(rows[0]) == 20
    assert rows[0] == rows[1]


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
