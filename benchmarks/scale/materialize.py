"""A million users' priors into Redis: `feast materialize` by our engine, by Feast's own, and what the client can do.

    python -m benchmarks.scale.materialize [--users 1000000] [--advertisers 100] [--feast-users 50000]

A real redis-server, the shipped definitions, one view of priors with a vector over the catalog, two snapshots of each
user. Every side is Feast's command itself in a process of its own, its start included. CPU-seconds are those of that
process and of redis-server together: users per CPU-second is what one core would do, so two cores do no less. Feast's
own engine writes the same users at a smaller size, and both stores must be equal, byte by byte.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from advprior.store.contract import LLM, TABLE_FILE, prior_view
from benchmarks.scale.rows import Cost, Rows, run_child

os.environ.setdefault("OMP_NUM_THREADS", "1")
ENGINE = "batch_engine:\n  type: advprior.store.online.engine.ColumnarEngine\n"
SNAPSHOT, DISTANCE = datetime(2026, 3, 1, tzinfo=UTC), timedelta(days=7)
UNTIL = "2026-03-02T00:00:00"
_CHUNK = 20_000


def write_priors(path: Path, users: int, advertisers: int) -> None:
    """A view's table of two snapshots, written in chunks: normalised random log-probabilities."""
    rng = np.random.default_rng(0)
    kind = pa.timestamp("us", tz="UTC")
    writer: Any = None
    for snapshot in (SNAPSHOT - DISTANCE, SNAPSHOT):
        for start in range(0, users, _CHUNK):
            names = np.arange(start, min(start + _CHUNK, users))
            logits = rng.standard_normal((len(names), advertisers), np.float32)
            log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            offsets = pa.array(np.arange(len(names) + 1, dtype=np.int32) * advertisers)
            moment = pa.array([snapshot] * len(names), kind)
            table = pa.table(
                {
                    "user_id": pa.array([f"user-{n:08d}" for n in names]),
                    "event_timestamp": moment,
                    "created_timestamp": moment,
                    "snapshot": moment,
                    "model_cutoff": pa.array([SNAPSHOT - 9 * DISTANCE] * len(names), kind),
                    "catalog_version": pa.array(["v1"] * len(names)),
                    "prior_row": names + (users if snapshot == SNAPSHOT else 0),
                    "entropy": -(np.exp(log_probs) * log_probs).sum(axis=1),
                    "top1_index": log_probs.argmax(axis=1),
                    "top1_log_prob": log_probs.max(axis=1),
                    "log_probs": pa.ListArray.from_arrays(offsets, pa.array(log_probs.ravel())),
                }
            )
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
    writer.close()


def make_repo(folder: Path, port: int, users: int, advertisers: int, *, columnar: bool) -> Path:
    """A feature repository with the view published and applied, its online store in a Redis."""
    from tests.ranking.stores import apply, copy_repo

    repo = copy_repo(folder)
    (repo / "feature_store.yaml").write_text(
        "project: advprior\nprovider: local\nregistry: data/registry.db\nonline_store:\n  type: redis\n"
        f"  connection_string: 127.0.0.1:{port}\noffline_store:\n  type: duckdb\n"
        f"{ENGINE if columnar else ''}entity_key_serialization_version: 3\n"
    )
    view = repo / "data" / prior_view(LLM)
    view.mkdir(parents=True)
    write_priors(view / TABLE_FILE, users, advertisers)
    apply(repo)
    return repo


def command(repo: Path) -> list[object]:
    """`feast materialize` of the view."""
    feast = [sys.executable, "-m", "advprior.store.feast_import", "-c", repo]
    return [*feast, "materialize", "1970-01-01T00:00:00", UNTIL, "--views", prior_view(LLM)]


def content(client: Any) -> dict[bytes, dict[bytes, bytes]]:
    """All of a store."""
    return {key: client.hgetall(key) for key in client.scan_iter(count=10_000)}


def server_cpu(port: int) -> float:
    """CPU-seconds of the redis-server that listens on a port."""
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == "redis-server" and f"127.0.0.1:{port}" in " ".join(process.cmdline()):
            used = process.cpu_times()
            return float(used.user + used.system)
    raise RuntimeError("no redis-server")


def timed(repo: Path, port: int) -> tuple[Cost, float, float]:
    """What a materialization cost its process, what it cost Redis, and the time that it took."""
    before, started = server_cpu(port), time.perf_counter()
    cost = run_child(command(repo))
    return cost, server_cpu(port) - before, time.perf_counter() - started


def ceilings(client: Any, port: int, users: int) -> dict[str, float]:
    """Users a second of CPU (client and server) of the same HSETs: by redis-py's pipeline, and as ready bytes."""
    hashes = [(key, client.hgetall(key)) for _, key in zip(range(users), client.scan_iter(count=10_000), strict=False)]
    figures = {}
    for way in (_pipelined, _ready):
        client.flushall()
        before = server_cpu(port)
        figures[way.__name__] = len(hashes) / (way(client, hashes) + server_cpu(port) - before)
    return {"redis-py's pipeline, hiredis": figures["_pipelined"], "ready bytes by a socket": figures["_ready"]}


def _pipelined(client: Any, hashes: list[Any]) -> float:
    """CPU-seconds of the client."""
    started = time.process_time()
    for start in range(0, len(hashes), 5_000):
        with client.pipeline(transaction=False) as pipe:
            for key, mapping in hashes[start : start + 5_000]:
                pipe.hset(key, mapping=mapping)
            pipe.execute()
    return time.process_time() - started


def _ready(client: Any, hashes: list[Any]) -> float:
    """CPU-seconds of the client, without those of packing."""
    connection = client.connection_pool.get_connection()
    commands = [("HSET", key, *(word for pair in mapping.items() for word in pair)) for key, mapping in hashes]
    blocks = [connection.pack_commands(commands[start : start + 5_000]) for start in range(0, len(commands), 5_000)]
    started = time.process_time()
    for place, block in enumerate(blocks):
        connection.send_packed_command(block)
        for _ in range(min(5_000, len(commands) - 5_000 * place)):
            connection.read_response()
    used = time.process_time() - started
    client.connection_pool.release(connection)
    return used


def killed(repo: Path, client: Any, mark: str) -> int:
    """Rows that were written when a materialization was killed, at a third of its way."""
    rows = pq.ParquetFile(repo / "data" / prior_view(LLM) / TABLE_FILE).metadata.num_rows // 2
    process = subprocess.Popen(list(map(str, command(repo))), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and int(client.hget(mark, "rows") or 0) < rows // 3:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return int(client.hget(mark, "rows") or 0)


def equal_to_feast(rows: Rows, folder: Path, port: int, client: Any, users: int, advertisers: int) -> None:
    """Both engines write the same users; then ours again, killed in between."""
    stores, costs = [], []
    for columnar in (False, True):
        client.flushall()
        repo = make_repo(folder / f"small-{columnar}", port, users, advertisers, columnar=columnar)
        cost, server, _ = timed(repo, port)
        stores.append(content(client))
        costs.append(cost.cpu_s + server)
        rows.note(
            f"{users:,} users by {'our' if columnar else 'Feast' + chr(39) + 's'} engine, CPU", f"{costs[-1]:.2f} s"
        )
        rows.note("  its peak memory", f"{cost.peak_gb:.2f} GB")
    differ = sum(stores[0].get(key) != row for key, row in stores[1].items()) + abs(len(stores[0]) - len(stores[1]))
    rows.at_most(f"hashes of {users:,} users that differ from Feast's, byte by byte", differ, 0)


def whole(rows: Rows, folder: Path, port: int, client: Any, users: int, advertisers: int) -> None:
    """All users: cost, memory; and killed at a third and run again."""
    repo = make_repo(folder / "whole", port, users, advertisers, columnar=True)
    client.flushall()
    cost, server, seconds = timed(repo, port)
    per_core = users / (cost.cpu_s + server)
    rows.at_most("users that are missing", users - client.dbsize(), 0)
    rows.at_least(
        f"{users:,} users of {advertisers}: users a CPU-second, with Redis", per_core, 20_000 if users >= 500_000 else 0
    )
    rows.note("  by the clock of this machine", f"{users / seconds:,.0f} users/s")
    rows.note("  CPU of feast materialize, of redis-server", f"{cost.cpu_s:.1f} s, {server:.1f} s")
    rows.at_most("peak memory of feast materialize", cost.peak_gb, 2, "GB")
    for name, figure in ceilings(client, port, min(users, 100_000)).items():
        rows.note(f"ceiling: the same HSETs, {name}", f"{figure:,.0f} users/s")
    client.flushall()
    written = killed(repo, client, f"advprior:materialize:advprior:{prior_view(LLM)}")
    again, _, _ = timed(repo, port)
    rows.check("killed", f"at {written:,}", f"0 < , < {users:,}", 0 < written < users)
    rows.at_most("users that are missing after it ran again", users - client.dbsize(), 0)
    rows.note("  CPU of the second run, against a whole one", f"{again.cpu_s:.1f} s, {cost.cpu_s:.1f} s")


def main() -> None:
    """Print the row; exit code 1 where a bound is missed."""
    import redis

    from tests.service.workspaces import redis_server

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--advertisers", type=int, default=100)
    parser.add_argument("--feast-users", type=int, default=50_000, help="for the comparison with Feast's own engine")
    given = parser.parse_args()
    rows = Rows("materialize")
    with tempfile.TemporaryDirectory() as scratch, redis_server(Path(scratch)) as server:
        client = redis.Redis(port=server.port)
        client.config_set("appendonly", "no")
        equal_to_feast(rows, Path(scratch), server.port, client, given.feast_users, given.advertisers)
        whole(rows, Path(scratch), server.port, client, given.users, given.advertisers)
    sys.exit(rows.exit_code)


if __name__ == "__main__":
    main()
