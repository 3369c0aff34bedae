"""`python -m tests.fuzz --seeds 0:500 --budget 300`: random worlds through the chain, and what fell.

One world: `python -m tests.fuzz --seeds 1234 --keep /tmp/world`. Exits with 1 when a world has a fault. The budget is
in CPU-seconds; worlds that it does not reach are counted, not run.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

os.environ.update(TZ="UTC", HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", MPLBACKEND="Agg")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")


#: A world that takes longer hangs: its data are small.
STUCK_S = 120


class Stuck(BaseException):
    """A step does not end; no `except Exception` of the code may take it for its own."""


@contextlib.contextmanager
def _at_most(cpu_s: float) -> Iterator[None]:
    """Raise `Stuck` after so many CPU-seconds."""

    def end(*_: object) -> None:
        raise Stuck(f"still running after {cpu_s} CPU-seconds")

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _seeds(text: str) -> Iterable[int]:
    """``7``, ``0:500`` or ``3,8,11`` as whole numbers."""
    if ":" in text:
        first, last = text.split(":")
        return range(int(first), int(last))
    return [int(part) for part in text.split(",")]


@click.command()
@click.option("--seeds", default="0:500", show_default=True, help="Worlds: FIRST:LAST, or one, or some: 3,8,11.")
@click.option("--budget", type=float, default=float("inf"), help="CPU-seconds after which no further world starts.")
@click.option("--depth", type=click.IntRange(0, 2), help="How far each goes. Default: by its seed.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep the folders of the worlds here.")
@click.option("--log", type=click.Path(path_type=Path), help="One JSON line a world.")
@click.option("--verbose", is_flag=True, help="Print every world, not only those with a fault.")
def fuzz(seeds: str, budget: float, depth: int | None, keep: Path | None, log: Path | None, verbose: bool) -> None:
    """Take random worlds through the chain; exit code 1 when one has a fault."""
    from tests.fuzz.chain import Outcome, run_world

    root = Path(tempfile.mkdtemp(prefix="fuzz-")) if keep is None else keep
    os.environ["ADVPRIOR_CACHE"] = str(root / "cache")
    outcomes: list[Outcome] = []
    wanted, started = list(_seeds(seeds)), time.process_time()
    for seed in wanted:
        if time.process_time() - started > budget:
            break
        folder = root / str(seed)
        shutil.rmtree(folder, ignore_errors=True)
        with _at_most(STUCK_S):
            outcome = run_world(seed, folder, depth=depth)
        outcomes.append(outcome)
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)
        if log is not None:
            with log.open("a") as lines:
                lines.write(json.dumps(vars(outcome), default=str) + "\n")
        if outcome.faults or verbose:
            _tell(outcome)
    if keep is None:
        shutil.rmtree(root, ignore_errors=True)
    faulty = [outcome for outcome in outcomes if outcome.faults]
    codes = Counter(outcome.code for outcome in outcomes if outcome.code)
    ended = ", ".join(f"{code} {count}" for code, count in sorted(codes.items())) or "none"
    well = sum(not outcome.code and not outcome.faults for outcome in outcomes)
    errors = f"{sum(codes.values())} ended by a coded error ({ended})"
    spent = f"{time.process_time() - started:.0f} CPU-s"
    click.echo(
        f"fuzz: {len(outcomes)} of {len(wanted)} worlds, {well} to the end, {errors}, "
        f"{len(faulty)} with a fault; {spent}"
    )
    sys.exit(bool(faulty))


def _tell(outcome: object) -> None:
    """One world: what it is made of, how far it came, what fell."""
    values = vars(outcome)
    click.echo(f"{values['world']}: {len(values['steps'])} steps, {values['cpu_s']:.1f} CPU-s")
    if values["error"]:
        click.echo("    " + values["error"].splitlines()[0][:200])
    for fault in values["faults"]:
        click.echo(f"  FAULT {fault}")


if __name__ == "__main__":
    fuzz()
