"""What the benchmarks of the service share: processes, stores, load from a second process, the machine."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.scale.rows import Rows
from tests.ports import free_port

PACKAGES = ("advprior", "feast", "redis", "hiredis", "lightgbm", "lleaves", "fastapi", "uvicorn", "numpy", "protobuf")
LOAD = Path(__file__).with_name("serve_load.py")


@contextmanager
def process(command: list[str], port: int, ready: str | None, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server, from when it answers to when it is stopped."""
    with log.open("wb") as out:
        running = subprocess.Popen(command, stdout=out, stderr=out)
        try:
            for _ in range(1200):
                if running.poll() is not None:
                    raise SystemExit(f"{command[:6]} ended: {log.read_text()[-2000:]}")
                if answers(port, ready):
                    break
                time.sleep(0.1)
            else:
                raise SystemExit(f"{command[:6]} does not answer: {log.read_text()[-2000:]}")
            yield running
        finally:
            running.terminate()
            try:
                running.wait(20)
            except subprocess.TimeoutExpired:
                running.kill()


def answers(port: int, path: str | None) -> bool:
    try:
        if path is None:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return True
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False


class Load:
    """Requests from another process, on one server."""

    def __init__(self, port: int, seconds: float) -> None:
        self.port, self.seconds = port, seconds

    def __call__(
        self,
        bodies: Path,
        *,
        path: str = "/rank",
        seconds: float = 0.0,
        rate: float = 0.0,
        connections: int = 1,
        times: Path | None = None,
    ) -> dict[str, Any]:
        """As fast as they are answered, or at a rate, on a schedule that does not wait for answers.

        Parameters
        ----------
        times : Path, optional
            Where the times of each request go.
        """
        options = [self.port, path, bodies, seconds or self.seconds, connections, rate]
        options += [] if times is None else ["", 0, times]
        done = subprocess.run(
            [sys.executable, str(LOAD), *map(str, options)], capture_output=True, text=True, check=True
        )
        measured: dict[str, Any] = json.loads(done.stdout)
        return measured


def in_store(source: Path, target: Path, until: datetime, redis_port: int | None) -> None:
    """A copy of a feature repository, applied and materialized: on a Redis, or on sqlite without one.

    Its registry stays behind: applying a copied one drops the original's tables.
    """
    shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("*.db", "*.db-*"))
    online = (
        "sqlite\n  path: data/online_store.db"
        if redis_port is None
        else (f"redis\n  connection_string: localhost:{redis_port}")
    )
    (target / "feature_store.yaml").write_text(
        f"project: advprior\nprovider: local\nregistry: data/registry.db\nonline_store:\n  type: {online}\n"
        "offline_store:\n  type: duckdb\nentity_key_serialization_version: 3\n"
    )
    feast = [str(Path(sys.executable).with_name("feast")), "-c", str(target)]
    subprocess.run([*feast, "apply"], check=True, capture_output=True)
    start = (until - timedelta(days=21)).strftime("%Y-%m-%dT%H:%M:%S")
    views = [o for v in ("user_history", "ad_stats", "prior_llm") for o in ("--views", v)]
    subprocess.run(
        [*feast, "materialize", *views, start, until.strftime("%Y-%m-%dT%H:%M:%S")], check=True, capture_output=True
    )
    whole = ["--views", "user_profile", "2000-01-01T00:00:00", until.strftime("%Y-%m-%dT%H:%M:%S")]
    subprocess.run([*feast, "materialize", *whole], check=True, capture_output=True)


def before_all_others() -> bool:
    """Give this process and all that it starts real-time priority; whether the system let it.

    Above the lowest, so that other real-time jobs do not take turns with it.
    """
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(10))
    return os.sched_getscheduler(0) == os.SCHED_RR


def service_parser(description: str | None) -> argparse.ArgumentParser:
    """Options of every benchmark of the service that prints rows."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--workspace", type=Path, default=Path("runs/demo"), help="a finished demo: make demo")
    parser.add_argument("--real-time", action="store_true", help="before all other processes of the machine")
    return parser


def run_rows(
    name: str, options: argparse.Namespace, measure: Callable[[argparse.Namespace, Path, int | None, Rows], None]
) -> None:
    """Measure on a Redis of its own, then end with the rows' exit code."""
    about_machine()
    if options.real_time:
        print(f"real time: {before_all_others()}")
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as port:
        rows = Rows(name)
        measure(options, Path(folder), port, rows)
    sys.exit(rows.exit_code)


def memory_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return float("nan")


def about_machine() -> None:
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = cpu[0].split(":")[1].strip() if cpu else "unknown"
    print(f"{platform.platform()}, {os.cpu_count()} cores, {name}, load {os.getloadavg()[0]:.1f}")
    named = [f"{package} {version(package)}" for package in PACKAGES]
    if shutil.which("redis-server"):
        text = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True).stdout
        named += [f"redis-server {number}" for number in re.findall(r"v=([\d.]+)", text)]
    print(", ".join(named), flush=True)


@contextmanager
def redis_server(folder: Path) -> Iterator[int | None]:
    """The port of a Redis of our own, until the block ends; None where it is not installed."""
    if shutil.which("redis-server") is None:
        print("no redis-server (apt-get install redis-server): sqlite only", flush=True)
        yield None
        return
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with process(command, port, None, folder / "redis.log"):
        yield port
