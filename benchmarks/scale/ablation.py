"""The ablation of ten million impressions: four arms on a tenth of the negatives, its memory and calibration.

    python -m benchmarks.scale.ablation [--share 0.01] [--folder FOLDER]

On the frame of `benchmarks.scale.frame`; ``--folder`` takes the one that this row has left there. What each arm's
ranker says of the test rows, none left out, is held against their rate of positives.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from advprior.store.runs import read_manifest
from benchmarks.scale.frame import advprior, frame, prepare
from benchmarks.scale.frame_world import SEEN, Size
from benchmarks.scale.rows import Rows

PEAK_GB, OFF = 8.0, 0.02
RANKER = "ranker: {negatives: 0.1, learning_rate: 0.1, max_rounds: 100, threads: 2}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=1.0, help="Of the users.")
    parser.add_argument("--folder", type=Path, help="Where the row of the frame has left its own.")
    options = parser.parse_args()
    size, rows = Size.share(options.share), Rows("ablation")
    with tempfile.TemporaryDirectory(prefix="advprior-scale-") as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "frame").is_dir():
            prepare(folder, size)
            frame(folder, folder / "frame")
        arms, out = Path(temporary) / "arms.yaml", Path(temporary) / "ablation"
        arms.write_text(_arms())
        named = [word for name in SEEN for word in ("--arm", name)]
        command = ("rank", "ablate", "--frame", folder / "frame", "--out", out, "--arms", arms, *named)
        cost = advprior(*command, "--seeds", 1, "--replicates", 100)
        count = pq.read_metadata(out / "predictions.parquet").num_rows
        rows.at_most(f"{1 + len(SEEN)} arms, {count:,} test rows: peak memory", cost.peak_gb, PEAK_GB, "GB")
        rows.note("CPU", f"{cost.cpu_s:.0f} s")
        table = pq.read_table(out / "predictions.parquet")
        rate = float(pc.mean(table["label"]).as_py())
        bound = OFF if options.share == 1 else max(OFF, 3 * _luck(folder / "frame", table))
        for arm in ("baseline", *SEEN):
            said = float(np.mean(table[arm].to_numpy()))
            rows.at_most(f"{arm}: mean probability off the rate of {rate:.4f} by", abs(said / rate - 1), bound)
    sys.exit(rows.exit_code)


def _luck(frame: Path, test: pa.Table) -> float:
    """What the rates of validation and test rows may differ by, being few at a small share: one standard error."""
    valid = read_manifest(frame)["facts"]["positives"]["valid"]
    return float(np.sqrt(1 / valid + 1 / pc.sum(test["label"]).as_py()))


def _arms() -> str:
    """The package's own arms with this row's settings of the ranker."""
    from importlib.resources import files

    own = files("ranking.models").joinpath("arms.yaml").read_text()
    return own.partition("\nranker:")[0] + "\n" + RANKER


if __name__ == "__main__":
    main()
