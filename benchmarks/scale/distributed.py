"""LightGBM's own parallel learner: two processes, each with half of the training rows, against one with all of them.

    python -m benchmarks.scale.distributed [--frame runs/demo/frame] [--rows 1000000]

The program is the one of docs/production.md, taken from there and run as it stands, over a frame's parts. Without
``--frame`` a synthetic one of ``--rows`` rows is made. AUC of both models is on all test rows.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from advprior.store.runs import MANIFEST
from benchmarks.scale.rows import Cost, Rows, run_child

DOCS = Path(__file__).parents[2] / "docs" / "production.md"


def program(folder: Path) -> Path:
    """The program of the documentation."""
    (text,) = re.findall(r"```python\n(# train_distributed\.py .*?)```", DOCS.read_text(), re.DOTALL)
    path = folder / "train_distributed.py"
    path.write_text(text)
    return path


def write_synthetic(folder: Path, rows: int) -> Path:
    """A frame of 40 numbers with a planted signal, in parts."""
    rng, names = np.random.default_rng(0), [f"number_{i}" for i in range(40)]
    weights = rng.normal(size=len(names)) / np.arange(1, len(names) + 1)
    (folder / "frame.parquet").mkdir(parents=True)
    for place, split in enumerate(("train", "train", "train", "train", "valid", "test")):
        numbers = rng.standard_normal((rows // 6, len(names)), np.float32)
        odds = numbers @ weights + numbers[:, 0] * numbers[:, 1] - 3
        part = pd.DataFrame(numbers, columns=names)
        part["label"] = (rng.random(len(part)) < 1 / (1 + np.exp(-odds))).astype(np.int8)
        part["split"] = split
        part.to_parquet(folder / "frame.parquet" / f"part-{place:05d}.parquet", index=False)
    features = [{"name": name, "dtype": "float32", "group": "ad", "source": "ad_stats"} for name in names]
    (folder / MANIFEST).write_text(json.dumps({"facts": {"features": features}}))
    return folder


def train(script: Path, frame: Path, machines: int, out: Path) -> list[Cost]:
    """One process a machine, all on this one."""
    from tests.ports import free_port

    names = ",".join(f"127.0.0.1:{free_port()}" for _ in range(machines))
    commands = [[sys.executable, script, frame, rank, names, f"{out}-{rank}.txt"] for rank in range(machines)]
    with ThreadPoolExecutor(machines) as pool:
        return list(pool.map(run_child, commands))


def area(model: Path, frame: Path) -> float:
    """AUC of a model on the test rows."""
    import lightgbm as lgb
    import pyarrow.dataset as ds
    from scipy.stats import rankdata

    booster = lgb.Booster(model_file=str(model))
    table = ds.dataset(frame / "frame.parquet", format="parquet")
    test = table.to_table([*booster.feature_name(), "label"], filter=ds.field("split") == "test").to_pandas()
    label = test.pop("label").to_numpy(bool)
    ranks = rankdata(booster.predict(test.to_numpy(np.float32)))
    positives = int(label.sum())
    return float((ranks[label].sum() - positives * (positives + 1) / 2) / (positives * (len(label) - positives)))


def main() -> None:
    """Print the row; exit code 1 where a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frame", type=Path, help="a finished frame; it is only read")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of a synthetic one")
    given = parser.parse_args()
    rows = Rows("distributed")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        frame = given.frame.resolve() if given.frame else write_synthetic(folder / "frame", given.rows)
        script, areas = program(folder), {}
        for machines in (1, 2):
            out = folder / f"model-{machines}"
            costs = train(script, frame, machines, out)
            areas[machines] = area(Path(f"{out}-0.txt"), frame)
            peak = max(cost.peak_gb for cost in costs)
            rows.note(f"{machines} process(es): AUC", f"{areas[machines]:.4f}")
            rows.note("  CPU of all, memory of the largest", f"{sum(c.cpu_s for c in costs):.1f} s, {peak:.2f} GB")
        same = Path(f"{folder}/model-2-0.txt").read_text().split("parameters:")[0]
        other = Path(f"{folder}/model-2-1.txt").read_text().split("parameters:")[0]
        rows.check("both processes have the same trees", str(same == other), "True", same == other)
        rows.at_most("AUC of two processes less than that of one", areas[1] - areas[2], 0.002)
    sys.exit(rows.exit_code)


if __name__ == "__main__":
    main()
