"""The ranking service under load, against the plain ways, in one run: ``python -m benchmarks.serve --workspace W``.

``W`` is a finished demo (tables, feature_repo, frame) with a ranker of each kind. A copy of its feature repository goes
on a redis-server of its own, where there is one, and another copy on sqlite. Load comes from a second process; every
side has the same users, candidates and shape: a process that answers HTTP. Ratios are what counts: the machine may be
shared.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serve_setup import Load, about_machine, in_store, memory_mb, process, redis_server
from ranking.experiment.assignment import Experiment, ServedArm
from tests.ports import free_port

PLAIN = Path(__file__).with_name("serve_plain.py")
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


def row(name: str, measured: dict[str, Any], note: str = "", **most: float) -> None:
    """Print a measurement, and whether it is within its bounds (milliseconds, by percentile)."""
    times = f"p50 {measured['p50']:7.2f}  p99 {measured['p99']:7.2f} ms"
    counts = f"{measured['errors']} errors, {measured['degraded']} degraded"
    wanted = [f"{key} <= {bound:g}: {'yes' if measured[key] <= bound else 'MISSED'}" for key, bound in most.items()]
    print(f"{name:<48} {times}  {measured['rps']:5.0f}/s  {counts}  {'  '.join([*wanted, note])}", flush=True)


class Bench:
    """A finished demo, served in a store, and the requests that are sent to it.

    Parameters
    ----------
    options : argparse.Namespace
        Of the command line.
    root : Path
        For copies, logs and exposures.
    redis_port : int, optional
        Of a Redis; without one the store is sqlite.
    """

    def __init__(self, options: argparse.Namespace, root: Path, redis_port: int | None) -> None:
        import pandas as pd

        work: Path = options.workspace
        self.root, self.work, self.seconds, self.only = root, work, options.seconds, options.only
        self.ranker = options.ranker or work / "ranker"
        self.fallback = options.fallback or work / "ranker_baseline"
        plan = json.loads((work / "tables" / "manifest.json").read_text())["facts"]["time_plan"]
        self.until = datetime.fromisoformat(plan["end"]).astimezone(UTC)
        self.users: list[str] = pd.read_parquet(work / "tables" / "users.parquet").user_id.tolist()
        self.ads: list[str] = pd.read_parquet(work / "tables" / "ads.parquet").ad_id.tolist()
        self.store = "sqlite" if redis_port is None else "Redis"
        self.repo = self.copy_of_store(root / "feature_repo", redis_port)
        rng = np.random.default_rng(0)

        def some(count: int) -> list[str]:
            return [self.ads[j] for j in rng.choice(len(self.ads), min(count, len(self.ads)), replace=False)]

        def ranked(count: int) -> Callable[[int], Any]:
            return lambda i: {"user_id": self.users[i % len(self.users)], "slots": 10, "candidates": some(count)}

        def read(i: int) -> Any:
            entities = {"user_id": [self.users[i % len(self.users)]] * 100, "ad_id": some(100)}
            return {"feature_service": "ranker_with_priors_v1", "full_feature_names": True, "entities": entities}

        self.hundred = write_bodies(root / "100.jsonl", ranked(100))
        self.five_hundred = write_bodies(root / "500.jsonl", ranked(500))
        self.online_features = write_bodies(root / "feast.jsonl", read)
        features = json.loads((self.ranker / "manifest.json").read_text())["facts"]["features"]
        print(f"online store {self.store}; the ranker reads {features} features", flush=True)

    def copy_of_store(self, repo: Path, redis_port: int | None) -> Path:
        """A copy of the demo's repository, materialized."""
        in_store(self.work / "feature_repo", repo, self.until + timedelta(hours=1), redis_port)
        return repo

    def wanted(self, name: str) -> bool:
        """Whether a group of rows is to be measured."""
        return not self.only or name in self.only

    def serve(self, repo: Path, log_level: str = "warning") -> list[str]:
        """The command that serves a repository."""
        serve = [sys.executable, "-W", "ignore", "-m", "advprior", "rank", "serve", "--repo", str(repo)]
        serve += ["--ranker", str(self.ranker), "--fallback", str(self.fallback), "--no-api-key", "--port", "PORT"]
        serve += ["--clock-start", (self.until + timedelta(hours=2)).isoformat(), "--log-level", log_level]
        return [*serve, "--exposures", str(self.root / "exposures")]

    @contextmanager
    def running(
        self, name: str, command: list[str], ready: str = "/ready"
    ) -> Iterator[tuple[Load, subprocess.Popen[bytes]]]:
        """A server, and load for it."""
        port = free_port()
        given = [part.replace("PORT", str(port)) for part in command]
        with process(given, port, ready, self.root / f"{name}.log") as started:
            yield Load(port, self.seconds), started

    def half_of_peak(self, load: Load, store: str) -> float:
        """The first rows of a store; its peak, in answers a second."""
        load(self.hundred, seconds=2, connections=2)
        peak = load(self.hundred, connections=4)
        row(f"service on {store}, 100 candidates, peak", peak)
        row(f"service on {store}, 100, half of peak", load(self.hundred, rate=peak["rps"] / 2), p50=4, p99=10)
        most = load(self.five_hundred, connections=4)
        row(f"service on {store}, 500, half of peak", load(self.five_hundred, rate=most["rps"] / 2), p99=15)
        return float(peak["rps"])


def measure(options: argparse.Namespace, root: Path, redis_port: int | None) -> None:
    """Every row that the options name."""
    bench = Bench(options, root, redis_port)
    alone = measure_service(bench)
    if bench.wanted("sqlite") and redis_port is not None:
        repo = bench.copy_of_store(root / "sqlite" / "feature_repo", None)
        with bench.running("sqlite", bench.serve(repo)) as (load, _):
            bench.half_of_peak(load, "sqlite")
    if bench.wanted("priors"):
        measure_priors(bench)
    if bench.wanted("lightgbm"):
        with bench.running("lightgbm", [*bench.serve(bench.repo), "--no-compile"]) as (load, _):
            load(bench.hundred, seconds=2)
            row("service by LightGBM, 100, one at a time", load(bench.hundred))
            row("service by LightGBM, 500, one at a time", load(bench.five_hundred))
    if bench.wanted("plain"):
        plain = [sys.executable, "-W", "ignore", str(PLAIN), str(bench.repo), str(bench.ranker), "PORT"]
        with bench.running("plain", plain, "/health") as (load, _):
            load(bench.hundred, seconds=2)
            sdk = load(bench.hundred)
            row("plain: SDK, to_dict, pandas, LightGBM", sdk, f"{sdk['p50'] / alone['p50']:.1f} x p50 (wanted: >= 8)")
    if bench.wanted("feast"):
        feast = [str(Path(sys.executable).with_name("feast")), "-c", str(bench.repo), "serve", "--host", "127.0.0.1"]
        with bench.running("feast", [*feast, "--port", "PORT", "--no-access-log"], "/health") as (load, _):
            load(bench.online_features, path="/get-online-features", seconds=2)
            read = load(bench.online_features, path="/get-online-features")
            ratios = f"{read['p50'] / alone['p50']:.1f} x p50, {read['p99'] / alone['p99']:.1f} x p99"
            row("Feast's server, 100 x user and ad, no ranking", read, ratios)


def measure_service(bench: Bench) -> dict[str, Any]:
    """The service on its first store; its times with one request at a time."""
    with bench.running("service", bench.serve(bench.repo)) as (load, running):
        peak = bench.half_of_peak(load, bench.store)
        alone = load(bench.hundred)
        row(f"service on {bench.store}, 100, one at a time", alone)
        if bench.wanted("service"):
            explained = load(bench.hundred, path="/rank?explain=true")
            row("service, explain 10 slots, one at a time", explained, p99=150)
            before = memory_mb(running.pid)
            busy = load(bench.hundred, rate=0.7 * peak, seconds=2 * bench.seconds)
            growth = memory_mb(running.pid) / before - 1
            row("service, 100 candidates, 70 % of peak", busy, f"memory {before:.0f} MB, {growth:+.1%}")
            with materializing(bench.repo, bench.until):
                refreshed = load(bench.hundred, rate=0.3 * peak, seconds=2 * bench.seconds)
            row("service, while views are materialized, 30 %", refreshed, "wanted: no errors; feast takes a core")
    return alone


def measure_priors(bench: Bench) -> None:
    """Both arms of one process, in turns: what else the machine does falls on both."""
    arms = (ServedArm(name="without", share=1, priors=False), ServedArm(name="with", share=1, priors=True))
    halves = Experiment(name="halves", salt="s", arms=arms)
    experiment = bench.root / "halves.yaml"
    experiment.write_text(json.dumps(halves.model_dump()))
    of_arm = {}
    for arm in arms:
        lines = bench.hundred.read_text().splitlines()
        own = [line for line in lines if halves.arm_of(json.loads(line)["user_id"]) == arm]
        of_arm[arm.name] = bench.root / f"{arm.name}.jsonl"
        of_arm[arm.name].write_text("\n".join(own))
    with bench.running("halves", [*bench.serve(bench.repo), "--experiment", str(experiment)]) as (load, _):
        load(bench.hundred, seconds=2)
        turns = [{name: load(file, seconds=bench.seconds / 4) for name, file in of_arm.items()} for _ in range(8)]
    for name in of_arm:
        measured = [turn[name] for turn in turns]
        middle = {key: float(np.median([one[key] for one in measured])) for key in ("p50", "p99", "rps")}
        totals = {key: sum(one[key] for one in measured) for key in ("errors", "degraded")}
        row(f"arm {name} priors, medians of 8 turns", middle | totals)
    adds = [np.median([t["with"][key] - t["without"][key] for t in turns]) for key in ("p50", "p99")]
    print(f"priors add {adds[0]:+.2f} ms at p50 and {adds[1]:+.2f} ms at p99 (wanted: <= 1 at p99)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--ranker", type=Path, help="with priors; default W/ranker")
    parser.add_argument("--fallback", type=Path, help="without; default W/ranker_baseline")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--only", nargs="*", default=[], help="service, sqlite, priors, lightgbm, plain, feast")
    options = parser.parse_args()
    about_machine()
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as port:
        measure(options, Path(folder), port)


if __name__ == "__main__":
    main()
