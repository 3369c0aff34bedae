"""Ten million events of 100,000 users scored on Spark `local[2]`: memory of the driver, the same priors, a kill.

    python -m benchmarks.scale.score_spark [--users 100000] [--events 100] [--only llm]

Three predictors on synthetic tables, each by ``advprior score --last 1`` here and on Spark, its networks small: what is
measured is everything around them. The LLM is that of the tests, of random weights; SASRec has one layer. Memory is
that of processes of a tree: the driver, Java, and Spark's Python workers. The LLM's driver is killed after a third of
its shards; the same command then scores the rest.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from advprior.pipeline.rowfiles import JOURNAL
from advprior.runtime.parity import allowed_difference, largest_difference
from advprior.store.contract import MATRIX_FILE
from advprior.store.matrix import open_matrix
from advprior.store.runs import read_manifest
from benchmarks.scale.rows import Rows, run_child
from benchmarks.scale.scoring import write_tables
from benchmarks.scale.spark import TreeCost, run_tree, show

DRIVER_GB, WORKER_GB = 2.0, 1.0
FITTED_USERS = 300
ADVPRIOR = (sys.executable, "-m", "advprior")
#: Settings of each fit; of the LLM beside its base.
PREDICTORS: dict[str, dict[str, object]] = {
    "popularity": {},
    "sasrec": {
        "network.width": 32,
        "network.layers": 1,
        "network.context": 64,
        "training.epochs": 1,
        "training.refit": "false",
    },
    "llm": {
        "layers": 2,
        "tuned_layers": 1,
        "prompt.context": 96,
        "training.epochs": 1,
        "training.rank": 4,
        "training.max_points": 300,
    },
}
KILLED = "llm"
_ENV = {"OMP_NUM_THREADS": "1", "TZ": "UTC"}


def fit(folder: Path, name: str) -> None:
    """A predictor of some users, exported."""
    settings, model = dict(PREDICTORS[name]), folder / "models" / name
    if name == "llm":
        from tests.tiny_llm import write_tiny_llm

        settings["base"] = write_tiny_llm(folder / "base")
    changes = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    run_child([*ADVPRIOR, "finetune", "--tables", folder / "few", "--predictor", name, "--out", model, *changes])
    run_child([*ADVPRIOR, "export", model])


def score_command(folder: Path, name: str, out: Path, master: str | None = None) -> list[object]:
    """`advprior score` of the newest snapshot; on Spark where a master is named."""
    where = ["--spark", master] if master else ["--threads", "1"]
    inputs = [folder / "models" / name, "--tables", folder / "many"]
    return [*ADVPRIOR, "score", *inputs, "--out", out, "--last", 1, *where]


def scored_here(rows: Rows, folder: Path, name: str, users: int) -> Path:
    """Fit on some users, and score all of them without Spark."""
    fit(folder, name)
    out = folder / f"{name}-here"
    show(rows, f"{name}, {users:,} users here", run_tree(score_command(folder, name, out), _ENV))
    return out


def bounded(rows: Rows, what: str, cost: TreeCost) -> None:
    """Figures of a score on Spark, and bounds of its memory."""
    show(rows, what, cost)
    rows.at_most("  memory of the driver", cost.driver_gb, DRIVER_GB, "GB")
    rows.at_most("  memory of a worker", cost.worker_gb, WORKER_GB, "GB")


def compare(rows: Rows, name: str, here: Path, there: Path) -> None:
    """Log-probs of both sides, a block of users at a time."""
    first, second = (open_matrix(folder / MATRIX_FILE) for folder in (here, there))
    worst, same_shape = 0.0, first.shape == second.shape
    for start in range(0, len(first) if same_shape else 0, 4_096):
        ours, theirs = first[start : start + 4_096], second[start : start + 4_096]
        worst = max(worst, largest_difference(theirs, ours) / allowed_difference(ours))
    rows.at_most(f"{name}: difference, of what float32 may round", worst if same_shape else float("inf"), 1)
    counts = [[read_manifest(folder)["facts"][key] for key in ("prompts", "forwarded")] for folder in (here, there)]
    rows.check(f"{name}: prompts, forwarded", str(counts[1]), str(counts[0]), counts[0] == counts[1])


def on_both(rows: Rows, folder: Path, name: str, users: int) -> None:
    """Score here and on Spark, and compare."""
    here = scored_here(rows, folder, name, users)
    there = folder / f"{name}-spark"
    cost = run_tree(score_command(folder, name, there, "local[2]"), _ENV)
    bounded(rows, f"{name}, {users:,} users on Spark", cost)
    rows.note("  CPU of the driver", f"{cost.driver_s:.1f} s")
    compare(rows, name, here, there)


def killed(rows: Rows, folder: Path, name: str, users: int, kill_at: int) -> None:
    """Score here; on Spark with the driver killed, and by the same command to its end; compare."""
    here, there = scored_here(rows, folder, name, users), folder / f"{name}-spark"
    command = score_command(folder, name, there, "local[2]")
    journal = Progress(there.with_name(f".{there.name}.partial") / JOURNAL)
    cost = run_tree(command, _ENV, lambda: journal.look() >= kill_at)
    before, journal.least = journal.look(), sys.maxsize
    bounded(rows, f"{name}, on Spark, killed at {before:,} shards", cost)
    rows.check("  killed before its end", str(not there.exists()), "True", not there.exists())
    cost = run_tree(command, _ENV, lambda: journal.look() < 0)
    bounded(rows, f"{name}, {users:,} users on Spark, gone on with", cost)
    rows.note("  CPU of the driver, shards that were left", f"{cost.driver_s:.1f} s, {journal.most - before:,}")
    rows.at_least("  shards that it found done", journal.least, before)
    compare(rows, name, here, there)


@dataclass
class Progress:
    """Shards that a journal names, looked at again and again.

    Attributes
    ----------
    journal : Path
        It is gone at the end of a score.
    least, most : int
        Shards that it named while it was there. Where it was gone and came again, the least is 0.
    """

    journal: Path
    least: int = sys.maxsize
    most: int = 0
    gone: bool = False

    def look(self) -> int:
        """Shards that are done by now."""
        try:
            count = self.journal.read_bytes().count(b"\n")
        except FileNotFoundError:
            self.gone = True
            return 0
        self.least, self.gone = 0 if self.gone and self.most else min(self.least, count), False
        self.most = max(self.most, count)
        return count


def main() -> int:
    """Print the row; exit code 1 where a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=100, help="of a user")
    parser.add_argument("--advertisers", type=int, default=664)
    parser.add_argument("--only", choices=PREDICTORS, action="append")
    parser.add_argument("--kill-at", type=int, help="shards of the LLM; a third of them by default")
    given = parser.parse_args()
    rows = Rows("score_spark")
    with tempfile.TemporaryDirectory(prefix="advprior-score-spark-") as scratch:
        folder = Path(scratch)
        write_tables(folder / "few", FITTED_USERS, given.advertisers, given.events)
        write_tables(folder / "many", given.users, given.advertisers, given.events)
        shards = given.users // max(32, -(-given.users // 2_000))
        for name in given.only or PREDICTORS:
            if name == KILLED:
                killed(rows, folder, name, given.users, given.kill_at or shards // 3)
            else:
                on_both(rows, folder, name, given.users)
    return rows.exit_code


if __name__ == "__main__":
    sys.exit(main())
