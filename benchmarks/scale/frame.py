"""The frame of ten million impressions: memory, and its cost beside polars' `join_asof` of the same job.

    python -m benchmarks.scale.frame [--share 0.01] [--folder FOLDER]

100,000 users, 5,000 ads of 500 advertisers, all features, priors of three predictors through a Feast store. Every step
runs in a process of its own. ``--share`` takes a share of the users; ``--folder`` keeps what is made, for the row of
the ablation.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.scale import frame_world
from benchmarks.scale.frame_world import SEEN, Size
from benchmarks.scale.rows import Cost, Rows, run_child

PEAK_GB, FEATURES_GB, RATIO = 6.0, 2.0, 1.5
#: A column of the frame and its name with polars.
COMPARED = {
    "ad_rate_4w": "ad_stats__ad_rate_4w",
    "activity_occasions_all": "user_history__activity_occasions_all",
    "prior_llm_entropy": "prior_llm__entropy",
    "segment_never_ad": "segment_never_ad",
    "history_advertiser_recency_days": "history_advertiser_recency_days",
    "exposures_ad_unanswered": "exposures_ad_unanswered",
    "prior_llm_log_prob": "prior_llm_log_prob",
    "prior_placebo_rank": "prior_placebo_rank",
    "prior_neighbours_log_ratio": "prior_neighbours_log_ratio",
}


def advprior(*arguments: object) -> Cost:
    """A command of advprior in a process of its own."""
    return run_child([sys.executable, "-m", "advprior", *arguments])


def prepare(folder: Path, size: Size) -> Cost:
    """Tables, features and priors, published and applied; the cost of the features."""
    frame_world.build(folder, size)
    features = advprior("rank", "features", "--tables", folder / "tables", "--repo", folder / "repo")
    run_child([Path(sys.executable).with_name("feast"), "-c", folder / "repo", "apply"])
    return features


def frame(folder: Path, out: Path) -> Cost:
    """`advprior rank frame` with all three priors."""
    named = ("--predictors", ",".join(SEEN), "--force")
    return advprior("rank", "frame", "--tables", folder / "tables", "--repo", folder / "repo", "--out", out, *named)


def unequal(ours: Path, theirs: Path) -> int:
    """Cells of some columns in which the two frames differ by more than rounding."""
    count = 0
    for name, other in COMPARED.items():
        a, b = (pq.read_table(path, columns=[column])[column] for path, column in ((ours, name), (theirs, other)))
        left, right = (column.cast("float64").to_numpy() for column in (a, b))
        count += int((~np.isclose(left, right, rtol=1e-5, atol=1e-6, equal_nan=True)).sum())
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=1.0, help="Of the users.")
    parser.add_argument("--folder", type=Path, help="Keep what is made here.")
    options = parser.parse_args()
    size, rows = Size.share(options.share), Rows("frame")
    with tempfile.TemporaryDirectory(prefix="advprior-scale-") as temporary:
        folder = options.folder or Path(temporary)
        features = prepare(folder, size)
        rows.note("CPU of the features", f"{features.cpu_s:.0f} s")
        rows.at_most("peak memory of the features", features.peak_gb, FEATURES_GB, "GB")
        ours = frame(folder, folder / "frame")
        polars = folder / "polars"
        theirs = run_child(
            [sys.executable, "-m", "benchmarks.scale.frame_polars", folder / "tables", folder / "repo", polars]
        )
        what = f"{size.impressions:,} impressions, {size.users:,} users"
        rows.at_most(f"{what}: peak memory", ours.peak_gb, PEAK_GB, "GB")
        rows.note("polars: peak memory", f"{theirs.peak_gb:.2f} GB")
        rows.note("CPU: rank frame, polars join_asof", f"{ours.cpu_s:.0f} s, {theirs.cpu_s:.0f} s")
        rows.at_most("CPU of the frame / of polars join_asof", ours.cpu_s / theirs.cpu_s, RATIO)
        rows.at_most("cells that differ", unequal(folder / "frame" / "frame.parquet", polars), 0)
        shutil.rmtree(polars)
    sys.exit(rows.exit_code)


if __name__ == "__main__":
    main()
