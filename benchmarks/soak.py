"""Minutes of load with a refresh each: ``python -m benchmarks.soak --workspace W --minutes 10 --rate-of-peak 0.7``.

One worker on a Redis of its own (sqlite with ``--store sqlite``), load from a second process on a schedule that does
not wait for answers, and every minute a third process that publishes a new snapshot, every second time under another
catalog, and materializes it (`benchmarks.soak_refresh`, niced). Afterwards a share of the answers is worked out again
from the published files (`benchmarks.one_publication`): one that is not of one publication is mixed.

Exit code 1 when a request failed, an answer was mixed, an acknowledged exposure is missing, or memory grew by over 5 %.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from advprior.store.contract import LLM, prior_view
from benchmarks.one_publication import Witness
from benchmarks.serve_setup import (
    LOAD,
    Load,
    about_machine,
    before_all_others,
    in_store,
    memory_mb,
    process,
    redis_server,
)
from ranking.experiment.exposures import read_exposures
from ranking.service.engine import Engine
from ranking.service.predictor import default_cache
from ranking.service.resources import EngineOptions
from tests.ports import free_port

_PROBED = 300
#: Memory may grow by so much after the first minute.
GROWTH = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate-of-peak", type=float, default=0.7)
    parser.add_argument("--every", type=int, default=4, help="Check each n-th answer.")
    parser.add_argument("--nice", type=int, default=10, help="Of the refresh: 0 where it would never get a turn.")
    parser.add_argument("--real-time", action="store_true", help="before all other processes of the machine")
    parser.add_argument("--store", choices=["redis", "sqlite"], default="redis")
    options = parser.parse_args()
    about_machine()
    if options.real_time:
        print(f"real time: {before_all_others()}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if options.store == "sqlite":
            sys.exit(soak(options, root, None))
        with redis_server(root) as port:
            sys.exit(soak(options, root, port))


def soak(options: argparse.Namespace, root: Path, redis_port: int | None) -> int:
    """Run it and print what came out; the exit code."""
    import pandas as pd

    work: Path = options.workspace.resolve()
    plan = json.loads((work / "tables" / "manifest.json").read_text())["facts"]["time_plan"]
    until = datetime.fromisoformat(plan["end"]).astimezone(UTC)
    users = pd.read_parquet(work / "tables" / "users.parquet").user_id.tolist()
    ads = pd.read_parquet(work / "tables" / "ads.parquet").ad_id.tolist()
    repo, source, exposures = root / "feature_repo", work / "feature_repo" / "data", root / "exposures"
    in_store(work / "feature_repo", repo, until + timedelta(hours=1), redis_port)
    rng = np.random.default_rng(0)
    bodies = root / "bodies.jsonl"
    bodies.write_text(
        "\n".join(
            json.dumps(
                {"user_id": user, "slots": 10, "candidates": rng.choice(ads, min(100, len(ads)), False).tolist()}
            )
            for user in users
        )
    )
    port = free_port()
    serve = [sys.executable, "-W", "ignore", "-m", "advprior", "rank", "serve", "--repo", str(repo), "--ranker"]
    serve += [str(work / "ranker"), "--fallback", str(work / "ranker_baseline"), "--no-api-key", "--port", str(port)]
    serve += ["--clock-start", (until + timedelta(hours=2)).isoformat(), "--exposures", str(exposures)]
    engine = Engine(EngineOptions(repo, work / "ranker", work / "ranker_baseline", cache=default_cache()))
    witness = Witness(engine, prior_view(LLM))
    witness.add_kept(repo / "data" / prior_view(LLM))
    witness.look(users)
    with process(serve, port, "/ready", root / "service.log") as running:
        load = Load(port, 6.0)
        load(bodies, seconds=3, connections=2)
        peak = load(bodies, connections=4)["rps"]
        rate = options.rate_of_peak * peak
        print(
            f"peak {peak:.0f}/s; {options.minutes:g} minutes at {rate:.0f}/s, load {os.getloadavg()[0]:.1f}", flush=True
        )
        command = [LOAD, port, "/rank", bodies, 60 * options.minutes, 1, rate, root / "answers.jsonl", options.every]
        loading = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.PIPE, text=True)
        try:
            memory, refreshes = accompany(options, running.pid, repo, source, users, witness)
            told: dict[str, Any] = json.loads(loading.communicate(timeout=900)[0])
        finally:
            loading.kill()
        memory.append(memory_mb(running.pid))
    return report(options, told, memory, refreshes, root, witness)


def accompany(
    options: argparse.Namespace, pid: int, repo: Path, source: Path, users: list[str], witness: Witness
) -> tuple[list[float], list[float]]:
    """A refresh a minute while the load runs: the service's memory each minute, and CPU seconds of each refresh."""
    begin, end = time.monotonic(), time.monotonic() + 60 * options.minutes
    os.nice(options.nice)  # looking on must not take the processor from what is looked at
    memory: list[float] = []

    def watch() -> None:
        for minute in range(1, int(np.ceil(options.minutes)) + 1):
            time.sleep(max(0.0, min(begin + 60 * minute, end) - time.monotonic()))
            memory.append(memory_mb(pid))

    watching = threading.Thread(target=watch)
    watching.start()
    spent: list[float] = []
    due = begin + 15
    while due + 20 < end:
        time.sleep(max(0.0, due - time.monotonic()))
        command = [sys.executable, "-m", "benchmarks.soak_refresh", str(repo), str(source), str(len(spent) + 1)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"refresh {len(spent) + 1} failed: {done.stderr[-2000:]}")
        spent.append(float(done.stdout.split()[-1]))
        witness.add(repo / "data" / prior_view(LLM))
        witness.look(users)
        due = max(due + 60, time.monotonic())  # one that took longer, on a busy machine, delays the next
    watching.join()
    return memory, spent


def report(
    options: argparse.Namespace,
    told: dict[str, Any],
    memory: list[float],
    refreshes: list[float],
    root: Path,
    witness: Witness,
) -> int:
    """Judge the answers, and print everything."""
    for minute, (one, held) in enumerate(zip(told["minutes"], memory, strict=False), 1):
        times = f"p50 {one['p50']:6.2f}  p99 {one['p99']:7.2f} ms"
        print(f"minute {minute:>2}: {one['count']:>6} requests  {times}  memory {held:.0f} MB")
    growth = memory[-1] / memory[0] - 1
    print(f"all: p50 {told['p50']:.2f}  p99 {told['p99']:.2f} ms  {told['rps']:.0f}/s")
    print(f"refreshes: {len(refreshes)}, niced by {options.nice}, {np.mean(refreshes or [0]):.1f} CPU-seconds each")
    logged = {one["exposure_id"]: one for one in read_exposures(root / "exposures")}
    counts = {"whole": 0, "degraded": 0, "mixed": 0}
    lost, first, probes, publications = 0, None, [], dict[str, int]()
    lines = (root / "answers.jsonl").read_text().splitlines()
    step = max(1, len(lines) // _PROBED)
    for at, line in enumerate(tqdm(lines, desc="work out again", unit="answer", disable=None)):
        answer = json.loads(line)["answer"]
        if not answer["exposure"]["logged"]:
            continue
        exposure = logged.get(answer["exposure"]["id"])
        if exposure is None:
            lost += 1
            continue
        verdict = witness.judge(answer, exposure["time"])
        counts[verdict] += 1
        first = first or (answer if verdict == "mixed" else None)
        if answer["prior"] is not None:
            name = answer["prior"]["publication"]
            publications[name] = publications.get(name, 0) + 1
            if at % step == 0:
                probes.append(witness.would_notice(answer, exposure["time"]))
    print(f"answers by publication: {', '.join(map(str, publications.values()))}")
    print(
        f"answers worked out again: {sum(counts.values())} (each {options.every}th), {counts}; rows of another "
        f"publication would have shown in {np.mean(probes) if probes else np.nan:.1%} of {len(probes)}"
    )
    print(
        f"errors {told['errors']}, degraded {told['degraded']}, mixed {counts['mixed']}, exposures lost {lost} of "
        f"{len(logged)}, memory {memory[0]:.0f} to {memory[-1]:.0f} MB ({growth:+.1%})"
    )
    if first is not None or told["first"]:
        print(f"first mixed {first}; first error {told['first']}")
    failed = told["errors"] or counts["mixed"] or lost or growth > GROWTH or not counts["whole"]
    print("soak: MISSED" if failed else "soak: reached", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    main()
