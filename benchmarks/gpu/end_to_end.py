"""``advprior score`` as a user runs it, by users and advertisers, and one shard by its stages."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from advprior.history.histories import micros
from advprior.history.read import load_histories
from advprior.predictors.logit import add_offset
from advprior.predictors.registry import load_predictor
from advprior.store.runs import read_manifest
from advprior.store.tables import load_time_plan
from benchmarks.gpu.table import Table

SIZES = ((10_000, 664), (100_000, 664), (10_000, 10_000), (10_000, 100_000), (100_000, 100_000))
CPU_USERS, FIT_USERS, SHARD = 1_000, 500, 4_096
WEEKS = 26
#: A short fit: speed does not depend on what was learned
SETTINGS = ("training.epochs=1", "training.valid_days=14", "habit.half_lives_days=[30]")
WIDE = 10_000  # advertisers above which the likeliest are kept


def advprior(*arguments: object) -> None:
    """One command, in a process of its own."""
    command = [sys.executable, "-m", "advprior", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TZ": "UTC"}, check=False)
    if done.returncode:
        raise RuntimeError(f"advprior {' '.join(map(str, arguments[:2]))}: {(done.stdout + done.stderr)[-800:]}")


def tables_of(folder: Path, users: int, advertisers: int) -> Path:
    """Made-up tables; the advertisers are the same whatever the number of users."""
    out = folder / f"tables-{users}-{advertisers}"
    if not out.exists():
        size = ("--users", users, "--advertisers", advertisers, "--weeks", WEEKS)
        advprior("data", "build", "synthetic", "--out", out, *size)
    return out


def run_of(folder: Path, advertisers: int, layers: int) -> Path:
    """An LLM fitted for a catalog on few users, and exported for the card."""
    out = folder / f"llm-{advertisers}"
    tables = tables_of(folder, FIT_USERS, advertisers)
    if not (out / "onnx").exists():
        sets = [part for setting in (*SETTINGS, f"layers={layers}") for part in ("--set", setting)]
        advprior("finetune", "--tables", tables, "--out", out, *sets)
        advprior("export", out)
    return out


def score(folder: Path, run: Path, size: tuple[int, int], device: str) -> dict[str, Any]:
    """Users a second of the newest snapshot, as the manifest has it: tables, prompts, network, files."""
    users, advertisers = size
    tables, out = tables_of(folder, users, advertisers), folder / f"priors-{users}-{advertisers}-{device}"
    more = ("--top-k", 100) if advertisers > WIDE else ()
    started = time.perf_counter()
    advprior("score", run, "--tables", tables, "--out", out, "--device", device, "--last", 1, "--force", *more)
    seconds = time.perf_counter() - started
    facts = read_manifest(out)["facts"]
    return {"seconds": seconds, "rate": users / seconds, "provider": facts["provider"], "budget": facts.get("budget")}


def end_to_end(folder: Path, layers: int, table: Table, sizes: tuple[tuple[int, int], ...] = SIZES) -> None:
    """Users a second by users and advertisers."""
    table.heading(f"advprior score, {layers} layers, newest snapshot, whole command: users a second")
    rates: dict[int, float] = {}
    for users, advertisers in sizes:
        try:
            run = run_of(folder, advertisers, layers)
            gpu = score(folder, run, (users, advertisers), "cuda")
            if gpu["provider"] != "CUDAExecutionProvider":
                raise RuntimeError(f"scored on {gpu['provider']}")
            if advertisers not in rates:
                rates[advertisers] = score(folder, run, (CPU_USERS, advertisers), "cpu")["rate"]
        except RuntimeError as error:
            table.row(f"{users:,} users, {advertisers:,} advertisers: failed", str(error)[-300:])
            table.missed.append(f"score of {users} users, {advertisers} advertisers")
            continue
        kept = ", top 100" if advertisers > WIDE else ""
        name = f"{users:,} users, {advertisers:,} advertisers{kept} (CPU: {CPU_USERS:,} users)"
        table.row(name, f"{gpu['rate']:,.0f}", f"{rates[advertisers]:,.0f}")
        table.row("  seconds; tokens of a batch, as tuned", f"{gpu['seconds']:.1f}", _tokens(gpu["budget"]))


def _tokens(budget: dict[str, Any] | None) -> str:
    return f"{budget['tokens']:,}" if budget else "-"


def stages(folder: Path, layers: int, advertisers: int, table: Table) -> None:
    """Milliseconds of one shard of users: prompts, network, what stands behind it."""
    run = run_of(folder, advertisers, layers)
    tables = tables_of(folder, 10_000, advertisers)
    histories, _ = load_histories(tables)
    cutoffs = np.asarray([micros(load_time_plan(tables).end)], np.int64)
    table.heading(f"one shard by stage, {advertisers:,} advertisers: milliseconds for 1,000 users")
    by_device: dict[str, dict[str, float]] = {}
    for device, count in (("cuda", SHARD), ("cpu", SHARD // 16)):
        scorer: Any = load_predictor(run).scorer(run / "onnx", device)
        wide = advertisers > WIDE and scorer.answer_states()
        users = np.arange(count)
        if device == "cuda":
            scorer.tune(histories, np.arange(len(histories)), cutoffs)
        for _ in range(2):  # the second time counts
            marks = [time.perf_counter()]
            prepared = scorer.prepare(histories, users, cutoffs)
            marks.append(time.perf_counter())
            part = scorer.forward(prepared)
            marks.append(time.perf_counter())
            if wide:
                scorer.likeliest(part.log_probs[part.index], histories, users, cutoffs, 100)
            else:
                add_offset(part.log_probs[part.index], scorer.offset(histories, users, cutoffs))
            marks.append(time.perf_counter())
        steps = np.diff(marks) * 1e3 / count * 1_000
        last = "top 100 of the catalog" if wide else "habit and drift"
        by_device[device] = dict(zip(("prompts", "network", last), steps, strict=True))
    for name, gpu in by_device["cuda"].items():
        table.row(name, f"{gpu:,.0f}", f"{by_device['cpu'].get(name, float('nan')):,.0f}")
