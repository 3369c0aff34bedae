"""Controls of an evaluation over 100,000 advertisers: memory, and nats of each on what users turn to next.

    python -m benchmarks.scale.wide_controls [--users 20000] [--advertisers 100000] [--asked 200]

Events by `benchmarks.scale.wide_tables`; what `advprior evaluate` computes without a run, in a process of its own:
terms, weights and blend of all controls at a cut-off of 22 weeks, for as many users as are asked about. None of the
terms may hold an array of advertisers × advertisers; weights are fitted on some alternatives of each label.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

from advprior.evaluation.compare import mean_marks
from advprior.evaluation.controls import BLEND
from advprior.evaluation.options import Options
from advprior.evaluation.population import add_blends, populate
from advprior.evaluation.split import Split
from advprior.history.histories import micros
from advprior.history.read import load_histories
from benchmarks.scale.rows import Rows, run_child
from benchmarks.scale.wide_tables import START, WEEK, write_wide

PEAK_GB = 4.0
HORIZON = timedelta(days=28)


def measure(tables: Path, asked: int, rows: Rows) -> None:
    """Fit the controls, answer for some users, and print what each says of their next occasion."""
    histories, catalog = load_histories(tables)
    options = Options(horizon=HORIZON, users=asked)
    split = Split(histories, catalog, micros(START + 22 * WEEK), options.horizon_micros, options.seed)
    population = populate(split, options)
    assert population is not None
    add_blends(population, [], set(), [])
    rows.note("users that weigh controls; blends", f"{population.fitted:,}; {len(population.early):,}")
    for name in (*population.controls.arms, BLEND):
        figures = mean_marks(population.arms[name], population.labels)
        rows.note(f"nats a label of {name}; Recall@20", f"{figures['nll']:.3f}; {figures['recall@20']:.3f}")


def main() -> None:
    """Write the tables, measure in a child, and print what it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--advertisers", type=int, default=100_000)
    parser.add_argument("--asked", type=int, default=200)
    parser.add_argument("--tables", type=Path, help="Measure on these, in this process.")
    options, rows = parser.parse_args(), Rows("controls")
    if options.tables is not None:
        measure(options.tables, options.asked, rows)
        return
    with tempfile.TemporaryDirectory() as folder:
        tables = write_wide(Path(folder) / "tables", options.users, options.advertisers)
        command = [sys.executable, "-m", "benchmarks.scale.wide_controls", "--tables", tables]
        cost = run_child([*command, "--asked", options.asked], quiet=False)
        rows.at_most("peak memory of all controls and their blend", cost.peak_gb, PEAK_GB, "GB")
        rows.note("CPU", f"{cost.cpu_s:,.0f} s")
    sys.exit(rows.exit_code)


if __name__ == "__main__":
    main()
