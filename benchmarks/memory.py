"""Memory of scoring very many users: synthetic tables, a tiny network, the 100 likeliest advertisers of each, written.

    python -m benchmarks.memory [--users 1000000]

Scoring runs in a process of its own, whose peak memory is the figure; a tiny network, since memory is what is asked.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ADVERTISERS, WEEKS, TOP_K = 200, 6, 100
SETTINGS = """\
base: {base}
layers: 2
tuned_layers: 1
prompt: {{context: 96}}
training: {{epochs: 1, rank: 4}}
"""


def advprior(*arguments: object) -> float:
    """Run a command; seconds."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "advprior", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def build(folder: Path, name: str, users: int, weeks: int = WEEKS) -> Path:
    """Synthetic tables; one seed and size of the world, so one catalog."""
    out = folder / name
    options = ("--advertisers", ADVERTISERS, "--weeks", weeks)
    advprior("data", "build", "synthetic", "--out", out, "--users", users, *options)
    return out


def network(folder: Path) -> Path:
    """A tiny LLM, tuned on a few users and exported."""
    from tests.tiny_llm import write_tiny_llm

    config = folder / "llm.yaml"
    config.write_text(SETTINGS.format(base=write_tiny_llm(folder / "base", layers=2)))
    advprior("finetune", "--tables", build(folder, "few", 500, 30), "--out", folder / "run", "--config", config)
    advprior("export", folder / "run")
    return folder / "run"


def peak(run: Path, tables: Path, out: Path) -> tuple[float, float, float]:
    """Seconds and peak memory in GB of scoring in its own process, and GB written."""
    options = ("--last", 1, "--top-k", TOP_K, "--threads", 1)
    took = advprior("score", run, "--tables", tables, "--out", out, *options)
    from advprior.store.runs import read_manifest

    written = sum(file.stat().st_size for file in out.iterdir())
    return took, read_manifest(out)["peak_memory_mb"] / 1000, written / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=50_000)
    users = parser.parse_args().users
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = network(folder)
        small = peak(run, build(folder, "fewer", users // 10), folder / "fewer-priors")
        took, memory, written = peak(run, build(folder, "many", users), folder / "priors")
        from advprior.store.runs import read_manifest

        facts = read_manifest(folder / "priors")["facts"]
    print(f"{users} users, {facts['rows']} rows x {TOP_K} of {ADVERTISERS}: {took:.0f} s, {written:.2f} GB written")
    print(f"{facts['forwarded']} distinct prompts forwarded of {facts['prompts']}")
    print(f"peak memory {memory:.2f} GB (aim <= 2); with a tenth of the users {small[1]:.2f} GB")


if __name__ == "__main__":
    main()
