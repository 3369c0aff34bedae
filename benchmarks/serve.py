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

from benchmarks.serve_setup import Load, about_machine, free_port, in_store, memory_mb, process, redis_server
from ranking.experiment.assignment import Experiment, ServedArm

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


def row(name: str, found: dict[str, Any], note: str = "", **most: float) -> None:
    """Print a measurement, and whether it is within its bounds (milliseconds, by percentile)."""
    times = f"p50 {found['p50']:7.2f}  p99 {found['p99']:7.2f} ms"
    counts = f"{found['errors']} errors, {found['degraded']} degraded"
    wanted = [f"{key} <= {bound:g}: {'yes' if found[key] <= bound else 'MISSED'}" for key, bound in most.items()]
    print(f"{name:<48} {times}  {found['rps']:5.0f}/s  {counts}  {'  '.join([*wanted, note])}", flush=True)


def measure(options: argparse.Namespace, root: Path, redis_port: int | None) -> None:
    """Every row."""
    import pandas as pd

    work: Path = options.workspace
    ranker, fallback = options.ranker or work / "ranker", options.fallback or work / "ranker_baseline"
    plan = json.loads((work / "tables" / "manifest.json").read_text())["facts"]["time_plan"]
    until = datetime.fromisoformat(plan["end"]).astimezone(UTC)
    users = pd.read_parquet(work / "tables" / "users.parquet").user_id.tolist()
    ads = pd.read_parquet(work / "tables" / "ads.parquet").ad_id.tolist()
    repo, rng = root / "feature_repo", np.random.default_rng(0)
    in_store(work / "feature_repo", repo, until + timedelta(hours=1), redis_port)
    store = "sqlite" if redis_port is None else "Redis"
    features = json.loads((ranker / "manifest.json").read_text())["facts"]["features"]

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

    print(f"online store {store}; the ranker reads {features} features", flush=True)
    hundred = write_bodies(root / "100.jsonl", ask(100))
    five = write_bodies(root / "500.jsonl", ask(500))

    def serve_from(repo: Path) -> list[str]:
        serve = [sys.executable, "-W", "ignore", "-m", "advprior", "rank", "serve", "--repo", str(repo)]
        serve += ["--ranker", str(ranker), "--fallback", str(fallback), "--no-api-key", "--port", "PORT"]
        serve += ["--clock-start", (until + timedelta(hours=2)).isoformat(), "--log-level", "warning"]
        return [*serve, "--exposures", str(root / "exposures")]

    def half_of_peak(load: Load, store: str) -> float:
        """The first two rows of a store; its peak."""
        load(hundred, seconds=2, connections=2)
        peak = load(hundred, connections=4)
        row(f"service on {store}, 100 candidates, peak", peak)
        row(f"service on {store}, 100, half of peak", load(hundred, rate=peak["rps"] / 2), p50=4, p99=10)
        most = load(five, connections=4)
        row(f"service on {store}, 500, half of peak", load(five, rate=most["rps"] / 2), p99=15)
        return float(peak["rps"])

    serve = serve_from(repo)
    with serving("service", serve, "/ready") as (load, running):
        peak = half_of_peak(load, store)
        alone = load(hundred)
        row(f"service on {store}, 100, one at a time", alone)
        if wanted("service"):
            explained = load(hundred, path="/rank?explain=true")
            row("service, explain 10 slots, one at a time", explained, p99=150)
            before = memory_mb(running.pid)
            busy = load(hundred, rate=0.7 * peak, seconds=2 * options.seconds)
            growth = memory_mb(running.pid) / before - 1
            row("service, 100 candidates, 70 % of peak", busy, f"memory {before:.0f} MB, {growth:+.1%}")
            with materializing(repo, until):
                refreshed = load(hundred, rate=0.3 * peak, seconds=2 * options.seconds)
            row("service, while views are materialized, 30 %", refreshed, "wanted: no errors; feast takes a core")
    if wanted("sqlite") and redis_port is not None:
        other = root / "sqlite" / "feature_repo"
        in_store(work / "feature_repo", other, until + timedelta(hours=1), None)
        with serving("sqlite", serve_from(other), "/ready") as (load, _):
            half_of_peak(load, "sqlite")
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
            measured = [turn[name] for turn in turns]
            middle = {key: float(np.median([one[key] for one in measured])) for key in ("p50", "p99", "rps")}
            totals = {key: sum(one[key] for one in measured) for key in ("errors", "degraded")}
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
    parser.add_argument("--only", nargs="*", default=[], help="service, sqlite, priors, lightgbm, plain, feast")
    options = parser.parse_args()
    about_machine()
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as port:
        measure(options, Path(folder), port)


if __name__ == "__main__":
    main()
