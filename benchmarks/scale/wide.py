"""Fits over as many advertisers as users: LLM, SASRec, neighbours, text prior at 100,000 × 100,000, on two cores.

    python -m benchmarks.scale.wide [--users 100000] [--advertisers 100000] [--only neighbours]

Each fit is the command `advprior finetune` in a process of its own, its start included, on two threads. That it ends is
a matter of settings, given here: SASRec makes one pass over all labels, the LLM (the demo's: SmolLM2-135M, ten layers)
is fitted on the users drawn for 5,000 points and validated on 1,000. What the LLM takes is mostly one encoding of every
advertiser's name; more points cost in proportion (`training.max_points`). The text prior reads words, and compares
every name with every other one.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from advprior.predictors.quality import MODEL, POPULAR
from benchmarks.scale.rows import Rows, run_child
from benchmarks.scale.wide_tables import write_wide

#: Bound in GB and settings of each fit.
FITS: dict[str, tuple[float, tuple[str, ...]]] = {
    "neighbours": (4.0, ()),
    "sasrec": (8.0, ("training.epochs=1", "training.refit=false")),
    "llm": (8.0, ("training.epochs=1", "training.max_points=5000")),
    "text": (4.0, ("base=lexical", "alike=true")),
}


def main() -> None:
    """Write the tables, fit each predictor in a child, and print what it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--advertisers", type=int, default=100_000)
    parser.add_argument("--only", choices=FITS, action="append")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of every fit")
    options = parser.parse_args()
    rows, threads = Rows("wide"), {"OMP_NUM_THREADS": str(min(2, os.cpu_count() or 1))}
    with tempfile.TemporaryDirectory() as folder:
        tables = write_wide(Path(folder) / "tables", options.users, options.advertisers)
        for name in options.only or FITS:
            bound, settings = FITS[name]
            out = Path(folder) / name
            command = [sys.executable, "-m", "advprior", "finetune", "--tables", tables, "--out", out]
            changes = [word for setting in (*settings, *options.set) for word in ("--set", setting)]
            cost = run_child([*command, "--predictor", name, *changes], env=threads, check=False)
            rows.check(f"fit of {name} ends", f"exit {cost.exit_code}", "exit 0", cost.exit_code == 0)
            rows.at_most(f"peak memory of {name}", cost.peak_gb, bound, "GB")
            rows.note(f"CPU of {name}", f"{cost.cpu_s:,.0f} s")
            if cost.exit_code == 0:
                valid = json.loads((out / "manifest.json").read_text())["facts"]["valid"]
                nats = " / ".join(f"{valid[side]['nll']:.3f}" for side in (MODEL, POPULAR))
                rows.note(f"nats a target of {name} / of popularity", nats)
    sys.exit(rows.exit_code)


if __name__ == "__main__":
    main()
