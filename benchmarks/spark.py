"""Spark against one machine, both on this one: what it costs to start, to ship users out, and to keep running.

    python -m benchmarks.spark --workspace runs/demo [--master 'local[2]'] [--users 20000] [--llm-users 400]

Users are the demo's households cut to short histories, as many as asked for. Every side is the command itself in a
process of its own; CPU seconds and memory are read off its process tree: the driver, Java, and Spark's workers.
On one machine Spark can only lose: the figures say how much, and what a million users would take.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

from advprior.store.matrix import open_matrix
from advprior.store.runs import new_run, read_manifest
from advprior.store.tables import write_parquet

EVENTS = 40  # of a user at most
CONF = {
    "spark.master": "",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.driver.memory": "3g",
    "spark.driver.host": "127.0.0.1",
    "spark.sql.shuffle.partitions": "4",
}


def short_histories(tables: Path, out: Path, users: int) -> Path:
    """The households again and again, each time with another stretch of at most `EVENTS` events."""
    rng = np.random.default_rng(0)
    whole, events = pd.read_parquet(tables / "users.parquet"), pd.read_parquet(tables / "events.parquet")
    groups = [g for _, g in events.sort_values("timestamp", kind="stable").groupby("user_id", sort=True)]
    profiles = whole.set_index("user_id")
    found, people = [], []
    for i in range(users):
        group = groups[i % len(groups)]
        start = int(rng.integers(0, max(len(group) - EVENTS, 1)))
        name = f"u{i:07d}"
        found.append(group.iloc[start : start + EVENTS].assign(user_id=name))
        people.append(profiles.loc[group.user_id.iloc[0]].to_dict() | {"user_id": name})
    manifest = read_manifest(tables)
    with new_run(out, "data", config={"users": users}, inputs={}, key=f"short {users}") as run:
        write_parquet(pd.DataFrame(people), run.path / "users.parquet")
        write_parquet(pd.concat(found, ignore_index=True), run.path / "events.parquet")
        for name in ("advertisers", "ads", "impressions"):
            shutil.copy(tables / f"{name}.parquet", run.path)
        run.facts.update(manifest["facts"])
    return out


def measure(*arguments: object, threads: int = 1) -> dict[str, float]:
    """Wall and CPU seconds of a command's process tree, and peak memory in MB by kind of process."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TZ": "UTC"}
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "advprior", *map(str, arguments)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    root = psutil.Process(process.pid)
    cpu: dict[int, float] = {}
    peak = {"driver": 0.0, "java": 0.0, "workers": 0.0}
    while process.poll() is None:
        held = dict.fromkeys(peak, 0.0)
        for one in [root, *_children(root)]:
            try:
                times, memory, name = one.cpu_times(), one.memory_info().rss / 1e6, one.name()
            except psutil.Error:
                continue
            cpu[one.pid] = times.user + times.system
            held["driver" if one.pid == root.pid else "java" if "java" in name else "workers"] += memory
        peak = {kind: max(peak[kind], held[kind]) for kind in peak}
        time.sleep(0.1)
    assert process.stderr is not None
    said = process.stderr.read()
    if process.returncode:
        raise SystemExit(said)
    return {
        "wall_s": time.perf_counter() - started,
        "cpu_s": sum(cpu.values()),
        **{f"{k}_mb": v for k, v in peak.items()},
    }


def _children(root: psutil.Process) -> list[psutil.Process]:
    try:
        below: list[psutil.Process] = root.children(recursive=True)
        return below
    except psutil.Error:
        return []


def show(name: str, figures: dict[str, Any]) -> None:
    """One line of JSON."""
    print(
        json.dumps({"what": name} | {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in figures.items()}),
        flush=True,
    )


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True, help="a finished demo; it is only read")
    parser.add_argument("--master", default="local[2]")
    parser.add_argument("--users", type=int, default=20_000, help="for SASRec and popularity")
    parser.add_argument("--llm-users", type=int, default=400)
    parser.add_argument("--skip", nargs="*", default=[], choices=["scoring", "frame"])
    given = parser.parse_args()
    workspace = given.workspace.resolve()
    conf = {**CONF, "spark.master": given.master}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        block = "\n".join(f'    {name}: "{value}"' for name, value in conf.items())
        (folder / "spark.yaml").write_text(f"spark_conf:\n{block}\n")
        if "scoring" not in given.skip:
            scoring(workspace, folder, given)
        if "frame" not in given.skip:
            frame(workspace, folder, block)


def scoring(workspace: Path, folder: Path, given: Any) -> None:
    """Each predictor here on one thread, here on all, and on Spark; then how far the priors are apart."""
    cores = len(os.sched_getaffinity(0))
    many = short_histories(workspace / "tables", folder / "many", given.users)
    few = short_histories(workspace / "tables", folder / "few", given.llm_users)
    for kind, tables, users in (
        ("popularity", few, given.llm_users),
        ("sasrec", many, given.users),
        ("llm", few, given.llm_users),
    ):
        run = workspace / "models" / kind
        sides = {
            "local, 1 thread": ["--threads", 1],
            f"local, {cores} threads": ["--threads", cores],
            f"Spark {given.master}": ["--spark", folder / "spark.yaml"],
        }
        for name, options in sides.items():
            out = folder / "priors" / f"{kind}-{name}"
            figures = measure("score", run, "--tables", tables, "--out", out, "--last", 1, "--device", "cpu", *options)
            facts = read_manifest(out)
            show(f"{kind}, {name}", {"users": users, "forwarded": facts["facts"]["forwarded"], **figures})
        first, *others = (open_matrix(folder / "priors" / f"{kind}-{name}" / "log_probs.npy")[:] for name in sides)
        for name, other in zip(list(sides)[1:], others, strict=True):
            show(f"{kind}, {name} against one thread", {"largest difference": float(np.abs(first - other).max())})


def frame(workspace: Path, folder: Path, block: str) -> None:
    """The demo's frame with two priors, its views behind duckdb and behind Spark."""
    frames = {}
    for name in ("duckdb", "spark"):
        repo = Path(shutil.copytree(workspace / "feature_repo", folder / name, symlinks=True))
        for file in repo.glob("data/*.db"):
            file.unlink()  # the copy's registry would name the original's tables
        store = repo / "feature_store.yaml"
        if name == "spark":
            store.write_text(store.read_text().replace("  type: duckdb", f"  type: spark\n  spark_conf:\n{block}"))
        for name_of in ("definitions.py", ".feastignore"):
            shutil.copy(Path(__file__).parents[1] / "feature_repo" / name_of, repo)
        feast = [str(Path(sys.executable).with_name("feast")), "-c", str(repo), "apply"]
        subprocess.run(feast, check=True, capture_output=True)
        out = folder / f"frame-{name}"
        predictors = ["--predictors", "llm,popularity"]
        figures = measure(
            "rank", "frame", "--tables", workspace / "tables", "--repo", repo, "--out", out, *predictors, threads=2
        )
        frames[name] = pd.read_parquet(out / "frame.parquet")
        show(f"frame, {name}", {"rows": len(frames[name]), **figures})
    pd.testing.assert_frame_equal(frames["duckdb"], frames["spark"], check_exact=True)
    show("frame", {"cells that differ": 0, "cells": int(frames["duckdb"].size)})


if __name__ == "__main__":
    main()
