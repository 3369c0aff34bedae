"""From a fitted, exported predictor to priors for every user and snapshot: ``advprior score``.

Users are scored in shards, each written whole or not at all: after an interrupt or a kill, the same
command goes on where it stopped. One row per (user, snapshot), in that order.
"""

from __future__ import annotations

import os
import shutil
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from advprior.predictors.base import KINDS, Scorer, load_predictor
from feature_repo.contract import ADVERTISERS, CATALOG_FILE, EVENTS, MATRIX_FILE, PRIOR_ROW, SNAPSHOT, USER_ID, USERS
from feature_repo.errors import AdvpriorError
from feature_repo.runs import is_current, manifest_digest, new_run, read_manifest, run_key
from feature_repo.tables import TABLES_FIX, load_tables, load_time_plan, write_parquet

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from advprior.histories import Histories, Int

STEP = "score"
CODE_VERSION = 2
ROWS_FILE = "rows.parquet"
SUM_TOLERANCE = 1e-4
PAST_TOLERANCE = 1e-4  # prior of the whole history against the history cut at the snapshot
PAST_SAMPLE = 12  # priors that are checked so


def score(
    run: Path,
    tables: Path,
    out: Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    shard_users: int = 32,
    force: bool = False,
) -> bool:
    """Write priors of all users at all snapshots of the time plan; True when it ran, False when reused.

    The output holds ``log_probs.npy`` [rows, N] float32, ``rows.parquet`` (user_id, snapshot, prior_row,
    entropy, top1_index, top1_log_prob) and the catalog.

    Raises
    ------
    AdvpriorError
        ``PRI002`` when the catalog changed since fine-tuning, ``PRI008`` when a prior is no distribution,
        ``PRI011`` when a prior depends on what came after its snapshot.
    """
    fitted = read_manifest(run, step="finetune", fix="advprior finetune --tables TABLES --out RUN")
    read_manifest(run / "onnx", step="export", fix=f"advprior export {run}")
    read_manifest(tables, step="data", fix=TABLES_FIX)
    config = {"predictor": fitted["facts"]["predictor"], "shard_users": shard_users}
    if config["predictor"] not in KINDS:
        raise AdvpriorError("PRI003", f"no predictor named {config['predictor']!r}", expected=", ".join(KINDS))
    inputs = {
        "run": manifest_digest(run),
        "onnx": manifest_digest(run / "onnx"),
        "tables": manifest_digest(tables),
    }
    key = run_key(STEP, config, inputs, CODE_VERSION)
    if not force and is_current(out, key):
        return False

    import numpy as np

    from advprior.catalog import Catalog
    from advprior.histories import build_histories, micros
    from advprior.interest_scores import score_interests

    predictor = load_predictor(run)
    loaded = load_tables(tables, USERS, ADVERTISERS, EVENTS)
    catalog = Catalog.from_table(loaded[ADVERTISERS])
    predictor.catalog.require_same(
        catalog, where=f"{tables}/advertisers.parquet against {run}/{CATALOG_FILE}",
        fix=f"advprior finetune --tables {tables} --predictor {config['predictor']} --out {run}",
    )  # fmt: skip
    plan = load_time_plan(tables)
    snapshots = plan.snapshots()
    cutoffs = np.asarray([micros(s) for s in snapshots], np.int64)
    histories = build_histories(loaded[USERS], loaded[EVENTS], catalog)
    with new_run(out, STEP, config=config, inputs=inputs, key=key, resume=not force) as work:
        shards = work.path / "shards"
        shards.mkdir(exist_ok=True)
        scorer = predictor.scorer(run / "onnx", device, threads)
        worst = _score_shards(scorer, histories, cutoffs, shards, shard_users, len(catalog))
        facts = _join_shards(work.path, shards, histories, snapshots, len(catalog))
        past = check_past_only(scorer, histories, cutoffs, work.path / MATRIX_FILE)
        catalog.save(work.path / CATALOG_FILE)
        interests = predictor.interest_scorer(run / "onnx", device, threads)
        if interests is not None:
            work.facts.update(score_interests(interests, histories, cutoffs, work.path))
        work.facts.update(
            facts,
            predictor=config["predictor"],
            provider=scorer.provider,
            catalog_version=catalog.version,
            model_cutoff=fitted["facts"]["model_cutoff"],
            lag_s=plan.lag.total_seconds(),
            users=len(histories),
            snapshots=len(snapshots),
            max_sum_error=max(worst, facts["max_sum_error"]),
            max_past_error=past,
        )
    return True


def _check(log_probs: npt.NDArray[np.float32], where: str) -> float:
    """Largest distance of a row's sum of probabilities from one."""
    import numpy as np

    flat = log_probs.reshape(-1, log_probs.shape[-1])
    error = float(np.abs(np.exp(flat, dtype=np.float64).sum(1) - 1).max()) if len(flat) else 0.0
    if not error <= SUM_TOLERANCE:  # a NaN fails too
        raise AdvpriorError(
            "PRI008", "a prior is no distribution over the catalog", where=where,
            found=f"sum of probabilities off by {error}", expected=f"at most {SUM_TOLERANCE}",
            fix="advprior export RUN --force, then score again",
        )  # fmt: skip
    return error


def check_past_only(scorer: Scorer, histories: Histories, cutoffs: Int, matrix: Path) -> float:
    """Largest difference between priors as scored and scored again from histories cut at their snapshot.

    The backfill gives all snapshots of a user from one long forward; this takes a sample of them one by one,
    as if nothing later had happened yet.

    Raises
    ------
    AdvpriorError
        ``PRI011`` above 1e-4 in log-prob.
    """
    import numpy as np

    if not len(histories) or not len(cutoffs):
        return 0.0
    priors = np.load(matrix, mmap_mode="r")
    rng = np.random.default_rng(0)
    worst = 0.0
    for column in rng.choice(len(cutoffs), min(3, len(cutoffs)), replace=False):
        past = histories.before(int(cutoffs[column]))
        users = np.sort(rng.choice(len(histories), min(PAST_SAMPLE // 3, len(histories)), replace=False))
        again = scorer.score(past, users.astype(np.int64), cutoffs[column : column + 1])[:, 0]
        worst = max(worst, float(np.abs(again - priors[users * len(cutoffs) + column]).max()))
    if not worst <= PAST_TOLERANCE:
        raise AdvpriorError(
            "PRI011", "a prior depends on what came after its snapshot", where=str(matrix),
            found=f"{worst:.1e} in log-prob against the history cut at the snapshot",
            expected=f"at most {PAST_TOLERANCE:.0e}", fix="advprior export RUN --force, then score again",
        )  # fmt: skip
    return worst


def _score_shards(
    scorer: Scorer, histories: Histories, cutoffs: Int, shards: Path, shard_users: int, size: int
) -> float:
    import numpy as np
    from tqdm.auto import tqdm

    starts = range(0, len(histories), shard_users)
    worst = 0.0
    for stale in shards.glob("*.tmp"):
        stale.unlink()
    for start in tqdm(starts, desc=f"score on {scorer.provider}", unit="shard", disable=None):
        path = shards / f"{start:09d}.npy"
        if path.is_file():
            continue
        users = np.arange(start, min(start + shard_users, len(histories)), dtype=np.int64)
        log_probs = scorer.score(histories, users, cutoffs)
        worst = max(worst, _check(log_probs, f"users {start} to {users[-1]}"))
        beside = path.with_suffix(".tmp")
        with beside.open("wb") as handle:
            np.save(handle, log_probs.reshape(-1, size))
            handle.flush()
            os.fsync(handle.fileno())
        beside.replace(path)
    return worst


def _join_shards(
    out: Path,
    shards: Path,
    histories: Histories,
    snapshots: list[datetime],
    size: int,
) -> dict[str, float]:
    """One matrix and one table of rows from the shards, streamed; then the shards go."""
    import numpy as np
    import pandas as pd

    rows = len(histories) * len(snapshots)
    matrix = np.lib.format.open_memmap(out / MATRIX_FILE, mode="w+", dtype=np.float32, shape=(rows, size))
    entropy, top1, best = np.empty(rows, np.float32), np.empty(rows, np.int64), np.empty(rows, np.float32)
    at, worst = 0, 0.0
    for path in sorted(shards.glob("*.npy")):
        part = np.load(path)
        worst = max(worst, _check(part, str(path)))
        end = at + len(part)
        matrix[at:end] = part
        entropy[at:end] = -(np.exp(part) * part).sum(1)
        top1[at:end] = part.argmax(1)
        best[at:end] = part.max(1)
        at = end
    if at != rows:
        raise AdvpriorError(
            "PRI009", "shards do not add up", where=str(shards), found=f"{at} rows", expected=f"{rows} rows",
            fix="advprior score … --force",
        )  # fmt: skip
    matrix.flush()
    del matrix
    table = pd.DataFrame({
        USER_ID: np.repeat(np.asarray(histories.users, object), len(snapshots)),
        SNAPSHOT: pd.to_datetime(list(snapshots) * len(histories), utc=True).astype("datetime64[us, UTC]"),
        PRIOR_ROW: np.arange(rows, dtype=np.int64),
        "entropy": entropy, "top1_index": top1, "top1_log_prob": best,
    })  # fmt: skip
    write_parquet(table, out / ROWS_FILE)
    shutil.rmtree(shards)
    return {"rows": rows, "max_sum_error": worst, "mean_entropy": float(entropy.mean()) if rows else 0.0}
