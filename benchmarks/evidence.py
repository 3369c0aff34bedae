"""What the evidence says and costs: arms and both steps, the frame against polars, rankers with priors, the bootstrap.

    python -m benchmarks.evidence --workspace runs/demo [--repeats 3]
    python -m benchmarks.evidence --workspace runs/demo-all --every-impression

Reads a finished demo; the results of its ablation and its two-by-two are printed as they stand. Both sides of a ratio
do the same job in the same run. The frame's other side is polars' `join_asof` of the same columns from the same files
under the same time-to-live, and its values are compared with Feast's before any time is printed; gathering by pointer
and the checks are the same work for both. With ``--every-impression`` the frame's time plan starts with the data, so
that no impression is left out: 1.96 million of all households.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import polars as pl

from advprior.pipeline.project import lay_out
from advprior.store.contract import (
    AD_ID,
    AD_STATS_VIEW,
    EVENT_TIMESTAMP,
    IMPRESSION_ID,
    LABEL,
    LLM,
    NEIGHBOURS,
    PLACEBO,
    POPULARITY,
    PREDICTORS,
    SASREC,
    TABLE_FILE,
    USER_ID,
    USER_PROFILE_VIEW,
    prior_view,
)
from advprior.store.runs import MANIFEST
from advprior.store.spent import peak_memory_mb
from advprior.store.tables import load_time_plan
from ranking.candidates.endtoend import TwoByTwo
from ranking.evidence.bootstrap import Outcomes, Resampling, paired_bootstrap
from ranking.evidence.lift import OVERALL
from ranking.evidence.metrics import Auc
from ranking.evidence.rankers import Encoded
from ranking.evidence.result import AblationResult, load_seeds
from ranking.frame import parts
from ranking.frame.build import build_frame
from ranking.frame.join import Joined, JoinGroup, join_features, open_store
from ranking.frame.preflight import published_predictors
from ranking.frame.row_blocks import InMemory
from ranking.frame.table import Frame
from ranking.frame.views import view_folder
from ranking.models.arms import arm_features, load_arms
from ranking.models.binning import Examples, prepare
from ranking.models.config import RankerConfig
from ranking.models.ranker import Ranker

TTL = "14d"
#: Priors in the frame that is timed: those of a usual project, however many the workspace has.
FEW = (LLM, SASREC, POPULARITY, NEIGHBOURS, PLACEBO)


def polars_join(repo: Path, refs: Sequence[str], entities: pd.DataFrame) -> pl.DataFrame:
    """The same point-in-time join: newest row not later than the impression, within the view's time-to-live."""
    left = pl.from_pandas(entities).with_columns(pl.col(EVENT_TIMESTAMP).dt.cast_time_unit("us")).sort(EVENT_TIMESTAMP)
    left = left.with_columns(pl.col(pl.String, pl.Categorical).cast(pl.String))
    by_view: dict[str, list[str]] = {}
    for ref in refs:
        view, name = ref.split(":")
        by_view.setdefault(view, []).append(name)
    for view, names in by_view.items():
        key = AD_ID if view == AD_STATS_VIEW else USER_ID
        right = pl.read_parquet(view_folder(repo, view) / TABLE_FILE, columns=[key, EVENT_TIMESTAMP, *names])
        right = right.rename({name: f"{view}__{name}" for name in names}).sort(EVENT_TIMESTAMP)
        ttl = None if view == USER_PROFILE_VIEW else TTL
        left = left.join_asof(
            right, on=EVENT_TIMESTAMP, by=key, strategy="backward", tolerance=ttl, check_sortedness=False
        )
    return left.sort(IMPRESSION_ID)


def same(feast: Joined, polars: pl.DataFrame, refs: Sequence[str], order: np.ndarray) -> int:
    """Unequal cells of the two joins."""
    unequal = 0
    for ref in refs:
        name = ref.replace(":", "__")
        ours, theirs = feast.pop(name), polars[name].to_arrow()
        theirs = theirs.take(order)
        a, b = pl.Series(pl.from_arrow(ours)), pl.Series(pl.from_arrow(theirs))
        if a.dtype != b.dtype:
            a = a.cast(b.dtype)
        unequal += int((~a.eq_missing(b)).sum())
    return unequal


def every_impression(workspace: Path, folder: Path) -> tuple[Path, Path]:
    """The workspace's tables under a time plan that leaves no impression out, and a repository with its features.

    Priors are those of the workspace: they begin later, so early impressions join none; the work is the same.
    """
    tables, repo = folder / "tables", folder / "feature_repo"
    shutil.copytree(workspace / "tables", tables)
    manifest = json.loads((tables / MANIFEST).read_text())
    plan = load_time_plan(tables)
    manifest["facts"]["time_plan"] = replace(plan, finetune_end=plan.start + plan.lag).to_json()
    (tables / MANIFEST).write_text(json.dumps(manifest))
    lay_out(folder)
    for name in FEW:
        view = repo / "data" / prior_view(name)
        view.parent.mkdir(exist_ok=True)
        view.symlink_to((workspace / "feature_repo" / "data" / prior_view(name)).resolve())
    for command in (
        [sys.executable, "-m", "advprior", "rank", "features", "--tables", str(tables), "--repo", str(repo)],
        [str(Path(sys.executable).with_name("feast")), "-c", str(repo), "apply"],
    ):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return tables, repo


def result_rows(workspace: Path, folder: Path) -> None:
    """The demo's results: every arm, then both steps."""
    result = AblationResult.load(folder)
    base, segment = result.arms.baseline.name, "never_advertiser"
    print(f"{'arm':<46} {'AUC':>6}  {'lift [95 %]':<28} {'never bought':>12}  lift there")
    for arm in result.arms.arms:
        auc = [float(result.table(s)[Auc.name][arm.name]) for s in (OVERALL, segment)]
        lifts = (
            []
            if arm.is_baseline
            else [result.lifts.get(arm.name, base, Auc.name, s).text() for s in (OVERALL, segment)]
        )
        print(f"{arm.label[:46]:<46} {auc[0]:.4f}  {''.join(lifts[:1]):<28} {auc[1]:>12.4f}  {''.join(lifts[1:])}")
    print(result.verdict.sentence)
    if (workspace / "two_by_two").is_dir():
        print("\n".join(TwoByTwo.load(workspace / "two_by_two").sentences()))


def line(name: str, values: Sequence[float], bar: str, digits: int = 2) -> None:
    shown = f"{np.median(values):8.{digits}f}   [{min(values):.{digits}f}, {max(values):.{digits}f}]"
    print(f"{name:<66} {shown:<28} {bar}")


def seconds(work: Callable[[], Any]) -> np.ndarray:
    """Wall and CPU seconds: on a shared machine the second is the steadier."""
    started = np.array([time.perf_counter(), time.process_time()])
    work()
    spent: np.ndarray = np.array([time.perf_counter(), time.process_time()]) - started
    return spent


def both(name: str, pairs: Sequence[np.ndarray], bar: str) -> None:
    """Two lines: wall and CPU."""
    for i, clock in enumerate(("wall", "CPU")):
        line(f"{name}, {clock}", [float(pair[i]) for pair in pairs], bar)


def frame_rows(tables: Path, repo: Path, repeats: int) -> None:
    """The frame through Feast, against the same frame with polars' join."""
    predictors = [name for name in published_predictors(repo, PREDICTORS) if name in FEW]
    asked: list[tuple[list[str], pd.DataFrame]] = []
    spent: list[np.ndarray] = []

    def timed(store: Any, groups: Sequence[JoinGroup], entities: pd.DataFrame) -> Joined:
        joined: list[Joined] = []
        spent.append(seconds(lambda: joined.append(join_features(store, groups, entities))))
        asked.append(([ref for group in groups for ref in group.refs], entities.copy()))
        return joined[0]

    ratios, whole = [], []
    rows = 0
    for _ in range(repeats):
        with patch.object(parts, "join_features", timed):
            total = seconds(lambda: build_frame(tables, repo, predictors))
        refs, entities = asked.pop()
        rows = len(entities)
        peak = peak_memory_mb()
        other: list[pl.DataFrame] = []
        polars = seconds(lambda: other.append(polars_join(repo, refs, entities)))  # noqa: B023
        ratios.append(spent[-1] / polars)
        whole.append(total / (total - spent[-1] + polars))
    compared = join_features(open_store(repo), refs, entities)
    order = np.argsort(np.argsort(entities[IMPRESSION_ID].to_numpy()))
    unequal = same(compared, other[0], refs, order)
    print(f"frame: {rows:,} impressions, {len(refs)} scalars and pointers joined, priors of {', '.join(predictors)}")
    print(f"{'cells in which Feast and polars disagree':<66} {unequal:8,}")
    both("frame with all features: Feast / polars join_asof", whole, "at most 1.5")
    both("the join alone: Feast / polars join_asof", ratios, "")
    both("seconds in Feast's join", spent, "")
    print(f"{'peak memory of the process after the Feast frame, GB':<66} {peak / 1024:8.2f}   {'':<17} at most 4")


def ranker_rows(folder: Path, repeats: int, threads: int) -> None:
    """LightGBM for a fixed number of rounds, with and without priors, in turn."""
    frame, arms = Frame.load(folder), load_arms().only("llm")
    config = RankerConfig(max_rounds=100, patience=100, threads=threads)
    encoded = Encoded.of(InMemory(frame.rows), frame.features, arms)
    prepared = {}
    for arm in arms.arms:
        features = arm_features(arm, encoded.features)
        encoder = encoded.encoder.select([feature.name for feature in features])
        blocks = [encoded.blocks[name] for name in ("train", "valid")]
        train, valid = (Examples(block.rows_of(encoder), block.label) for block in blocks)
        prepared[arm.name] = (features, prepare(encoder, train, valid, config))
    spent: dict[str, list[np.ndarray]] = {name: [] for name in prepared}
    for seed in range(repeats):
        for name, (features, data) in prepared.items():
            spent[name].append(seconds(lambda: Ranker("s", features, config, seed).fit_prepared(data)))  # noqa: B023
    ratios = [a / b for a, b in zip(spent["llm"], spent["baseline"], strict=True)]
    sizes = " and ".join(str(len(features)) for features, _ in prepared.values())
    both(f"LightGBM, 100 rounds: with priors / without ({sizes} features)", ratios, "at most 1.3")


def bootstrap_rows(folder: Path) -> None:
    """2,000 replicates of one lift of AUC on all test rows, one seed an arm."""
    rows, scores = load_seeds(folder)
    pair = {name: scores[name][:1] for name in ("baseline", "llm")}
    options = Resampling((Auc(),), replicates=2000)
    outcomes = Outcomes.of(rows[LABEL], rows[USER_ID].astype(str))
    spent = seconds(lambda: paired_bootstrap(pair, outcomes, [("llm", "baseline")], options))
    users = rows[USER_ID].nunique()
    line(f"2,000 replicates of a lift of AUC, {len(rows):,} rows, {users} users, s", [spent[0]], "at most 60")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workspace", type=Path, default=Path("runs/demo"))
    parser.add_argument("--repo", type=Path, help="Another feature repository, applied. Default: the workspace's.")
    parser.add_argument("--ablation", type=Path, help="Another ablation. Default: the workspace's.")
    parser.add_argument("--every-impression", action="store_true", help="Time the frame alone, of all.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    workspace = options.workspace
    result_rows(workspace, options.ablation or workspace / "ablation")
    if options.every_impression:
        with tempfile.TemporaryDirectory() as folder:
            frame_rows(*every_impression(workspace, Path(folder)), options.repeats)
        return
    frame_rows(workspace / "tables", options.repo or workspace / "feature_repo", options.repeats)
    ranker_rows(workspace / "frame", options.repeats, options.threads)
    bootstrap_rows(options.ablation or workspace / "ablation")


if __name__ == "__main__":
    main()
