"""The ranking service under load, against the plain ways, in one run: ``python -m benchmarks.serve --workspace W``.

``W`` is a finished demo (tables, feature_repo, frame) with a ranker of each kind. A copy of its feature repository goes
on a redis-server of its own. Load comes from a second process; every side has the same users, candidates and shape:
a process that answers HTTP. Ratios are what counts: the machine may be shared.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ranking.experiment.assignment import Experiment, ServedArm

PACKAGES = ("advprior", "feast", "redis", "hiredis", "lightgbm", "lleaves", "fastapi", "uvicorn", "numpy", "protobuf")
LOAD = Path(__file__).with_name("serve_load.py")
PLAIN = Path(__file__).with_name("serve_plain.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
        self, bodies: Path, *, path: str = "/rank", seconds: float = 0.0, rate: float = 0.0, connections: int = 1
    ) -> dict[str, Any]:
        """As fast as they are answered, or at a rate, on a schedule that does not wait for answers."""
        options = [self.port, path, bodies, seconds or self.seconds, connections, rate]
        done = subprocess.run(
            [sys.executable, str(LOAD), *map(str, options)], capture_output=True, text=True, check=True
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def on_redis(source: Path, target: Path, port: int, until: datetime) -> None:
    """A copy of a feature repository, on Redis.

    Its registry stays behind: applying a copied one drops the original's tables.
    """
    shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("*.db", "*.db-*"))
    (target / "feature_store.yaml").write_text(
        "project: advprior\nprovider: local\nregistry: data/registry.db\nonline_store:\n  type: redis\n"
        f"  connection_string: localhost:{port}\noffline_store:\n  type: duckdb\nentity_key_serialization_version: 3\n"
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


MATERIALIZE = """
import datetime, pathlib, sys
import feast
store, until = feast.FeatureStore(sys.argv[1]), datetime.datetime.fromisoformat(sys.argv[2])
while not pathlib.Path(sys.argv[3]).exists():
    store.materialize(until - datetime.timedelta(days=21), until, feature_views=["user_history", "prior_llm"])
"""


@contextmanager
def materializing(repo: Path, until: datetime) -> Iterator[None]:
    """Feast materializes views over and over, in a process of its own; not killed, or its SDK refused them."""
    stop, moment = repo.with_name("stop"), (until + timedelta(hours=1)).isoformat()
    command = [sys.executable, "-W", "ignore", "-c", MATERIALIZE, str(repo), moment, str(stop)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        stop.touch()
        running.wait(120)


def write_bodies(path: Path, make: Callable[[int], Any], count: int = 200) -> Path:
    path.write_text("\n".join(json.dumps(make(i)) for i in range(count)))
    return path


def row(name: str, found: dict[str, Any], note: str = "") -> None:
    times = f"p50 {found['p50']:7.2f}  p99 {found['p99']:7.2f} ms"
    counts = f"{found['errors']} errors, {found['degraded']} degraded"
    print(f"{name:<44} {times}  {found['rps']:5.0f}/s  {counts}  {note}", flush=True)


def memory_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return float("nan")


def about_machine() -> None:
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = cpu[0].split(":")[1].strip() if cpu else "unknown"
    print(f"{platform.platform()}, {os.cpu_count()} cores, {name}, load {os.getloadavg()[0]:.1f}")
    print(", ".join(f"{package} {version(package)}" for package in PACKAGES), flush=True)


def measure(options: argparse.Namespace, root: Path, redis_port: int) -> None:
    """Every row, on a Redis that runs."""
    import pandas as pd

    work: Path = options.workspace
    ranker, fallback = options.ranker or work / "ranker", options.fallback or work / "ranker_baseline"
    plan = json.loads((work / "tables" / "manifest.json").read_text())["facts"]["time_plan"]
    until = datetime.fromisoformat(plan["end"]).astimezone(UTC)
    users = pd.read_parquet(work / "tables" / "users.parquet").user_id.tolist()
    ads = pd.read_parquet(work / "tables" / "ads.parquet").ad_id.tolist()
    repo, rng = root / "feature_repo", np.random.default_rng(0)
    on_redis(work / "feature_repo", repo, redis_port, until + timedelta(hours=1))

    def some(count: int) -> list[str]:
        return [ads[j] for j in rng.choice(len(ads), min(count, len(ads)), replace=False)]

    def ask(count: int) -> Callable[[int], Any]:
        return lambda i: {"user_id": users[i % len(users)], "slots": 10, "candidates": some(count)}

    def ask_feast(i: int) -> Any:
        entities = {"user_id": [users[i % len(users)]] * 100, "ad_id": some(100)}
        return {"feature_service": "ranker_with_priors_v1", "full_feature_names": True, "entities": entities}

    def wanted(name: str) -> bool:
        return not options.only or name in options.only

    @contextmanager
    def serving(name: str, command: list[str], ready: str) -> Iterator[tuple[Load, subprocess.Popen[bytes]]]:
        port = free_port()
        given = [part.replace("PORT", str(port)) for part in command]
        with process(given, port, ready, root / f"{name}.log") as running:
            yield Load(port, options.seconds), running

    hundred = write_bodies(root / "100.jsonl", ask(100))
    five = write_bodies(root / "500.jsonl", ask(500))
    serve = [sys.executable, "-W", "ignore", "-m", "advprior", "rank", "serve", "--repo", str(repo)]
    serve += ["--ranker", str(ranker), "--fallback", str(fallback), "--no-api-key", "--port", "PORT"]
    serve += ["--clock-start", (until + timedelta(hours=2)).isoformat(), "--log-level", "warning"]
    serve += ["--exposures", str(root / "exposures")]

    with serving("service", serve, "/ready") as (load, running):
        load(hundred, seconds=2, connections=2)
        peak = load(hundred, connections=4)
        row("service, 100 candidates, peak", peak)
        half = load(hundred, rate=peak["rps"] / 2)
        row("service, 100 candidates, half of peak", half, "wanted: p50 <= 4, p99 <= 10")
        alone = load(hundred)
        row("service, 100 candidates, one at a time", alone)
        if wanted("service"):
            many = load(five, connections=4)
            row("service, 500 candidates, half of peak", load(five, rate=many["rps"] / 2), "wanted: p99 <= 15")
            explained = load(hundred, path="/rank?explain=true")
            row("service, explain 10 slots, one at a time", explained, "wanted: <= 150")
            before = memory_mb(running.pid)
            busy = load(hundred, rate=0.7 * peak["rps"], seconds=2 * options.seconds)
            growth = memory_mb(running.pid) / before - 1
            row("service, 100 candidates, 70 % of peak", busy, f"memory {before:.0f} MB, {growth:+.1%}")
            with materializing(repo, until):
                refreshed = load(hundred, rate=0.3 * peak["rps"], seconds=2 * options.seconds)
            row("service, while views are materialized, 30 %", refreshed, "wanted: no errors; feast takes a core")
    if wanted("priors"):
        # both arms of one process, in turns: what else the machine does falls on both
        arms = (ServedArm(name="without", share=1, priors=False), ServedArm(name="with", share=1, priors=True))
        halves = Experiment(name="halves", salt="s", arms=arms)
        experiment = root / "halves.yaml"
        experiment.write_text(json.dumps(halves.model_dump()))
        of_arm = {}
        for arm in arms:
            lines = hundred.read_text().splitlines()
            mine = [line for line in lines if halves.arm_of(json.loads(line)["user_id"]) == arm]
            of_arm[arm.name] = root / f"{arm.name}.jsonl"
            of_arm[arm.name].write_text("\n".join(mine))
        with serving("halves", [*serve, "--experiment", str(experiment)], "/ready") as (load, _):
            load(hundred, seconds=2)
            turns = [{name: load(file, seconds=options.seconds / 4) for name, file in of_arm.items()} for _ in range(8)]
        for name in of_arm:
            mine = [turn[name] for turn in turns]
            middle = {key: float(np.median([one[key] for one in mine])) for key in ("p50", "p99", "rps")}
            totals = {key: sum(one[key] for one in mine) for key in ("errors", "degraded")}
            row(f"arm {name} priors, medians of 8 turns", middle | totals)
        adds = [np.median([t["with"][key] - t["without"][key] for t in turns]) for key in ("p50", "p99")]
        print(f"priors add {adds[0]:+.2f} ms at p50 and {adds[1]:+.2f} ms at p99 (wanted: <= 1 at p99)", flush=True)
    if wanted("lightgbm"):
        with serving("lightgbm", [*serve, "--no-compile"], "/ready") as (load, _):
            load(hundred, seconds=2)
            row("service by LightGBM, 100, one at a time", load(hundred))
            row("service by LightGBM, 500, one at a time", load(five))
    if wanted("plain"):
        plain = [sys.executable, "-W", "ignore", str(PLAIN), str(repo), str(ranker), "PORT"]
        with serving("plain", plain, "/health") as (load, _):
            load(hundred, seconds=2)
            sdk = load(hundred)
            row("plain: SDK, to_dict, pandas, LightGBM", sdk, f"{sdk['p50'] / alone['p50']:.1f} x p50 (wanted: >= 8)")
    if wanted("feast"):
        feast = [str(Path(sys.executable).with_name("feast")), "-c", str(repo), "serve", "--host", "127.0.0.1"]
        online = write_bodies(root / "feast.jsonl", ask_feast)
        with serving("feast", [*feast, "--port", "PORT", "--no-access-log"], "/health") as (load, _):
            load(online, path="/get-online-features", seconds=2)
            found = load(online, path="/get-online-features")
            ratios = f"{found['p50'] / alone['p50']:.1f} x p50, {found['p99'] / alone['p99']:.1f} x p99"
            row("Feast's server, 100 x user and ad, no ranking", found, ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--ranker", type=Path, help="with priors; default W/ranker")
    parser.add_argument("--fallback", type=Path, help="without; default W/ranker_baseline")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--only", nargs="*", default=[], help="service, priors, lightgbm, plain, feast")
    options = parser.parse_args()
    about_machine()
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        redis = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        with process(redis, port, None, Path(folder) / "redis.log"):
            measure(options, Path(folder), port)


if __name__ == "__main__":
    main()
