"""From scored priors to the feature repository: ``advprior publish``.

Validated first, then swapped in with one rename of a link: readers see the old priors whole or the new
ones whole. A placebo is the same priors with users shuffled, for a test that must find nothing.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_repo.contract import (
    CATALOG_FILE,
    CATALOG_VERSION,
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    LOG_PROBS,
    MATRIX_FILE,
    MODEL_CUTOFF,
    PLACEBO,
    PREDICTORS,
    PRIOR_ROW,
    SNAPSHOT,
    TABLE_FILE,
    USER_ID,
    prior_view,
)
from feature_repo.errors import AdvpriorError
from feature_repo.runs import is_current, manifest_digest, new_run, publish_version, read_manifest, run_key

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

STEP = "publish"
CODE_VERSION = 1
CHUNK_ROWS = 4096


def publish(priors: Path, repo: Path, *, name: str | None = None, seed: int = 0, force: bool = False) -> str | None:
    """Publish a score run as ``<repo>/data/prior_<name>``; the view's name, or None when it was current.

    Raises
    ------
    AdvpriorError
        ``STO001`` when ``repo`` is no feature repository, ``PRI010`` when the priors do not validate.
    """
    import shutil

    scored = read_manifest(priors, step="score", fix="advprior score RUN --tables TABLES --out PRIORS")
    if not (repo / "feature_store.yaml").is_file():
        raise AdvpriorError(
            "STO001", "not a feature repository", where=str(repo), found="no feature_store.yaml",
            expected="a folder made by `advprior init`", fix="advprior init DIR, then --repo DIR/feature_repo",
        )  # fmt: skip
    name = name or str(scored["facts"]["predictor"])
    if not (name.isascii() and name.isidentifier() and name.islower() and name[0] != "_"):
        raise AdvpriorError(
            "PRI003",
            f"no prior can be named {name!r}",
            expected=f"small letters, digits, _: {', '.join(PREDICTORS)}, …",
        )
    view = prior_view(name)
    config = {"view": view, **({"shuffle_seed": seed} if name == PLACEBO else {})}
    inputs = {"priors": manifest_digest(priors)}
    key = run_key(STEP, config, inputs, CODE_VERSION)
    link = repo / "data" / view
    if not force and is_current(link, key):
        return None

    import numpy as np

    from feature_repo.tables import read_parquet

    rows = read_parquet(priors / "rows.parquet", fix=f"advprior score … --out {priors}")
    matrix = np.load(priors / MATRIX_FILE, mmap_mode="r")
    _validate(rows, matrix, scored, priors)
    source = rows[PRIOR_ROW].to_numpy()
    if name == PLACEBO:
        source = shuffled_rows(rows, seed)
    staged = link.parent / f".staged-{view}"
    shutil.rmtree(staged, ignore_errors=True)
    with new_run(staged, STEP, config=config, inputs=inputs, key=key) as run:
        _write_table(run.path, rows, matrix, source, scored)
        shutil.copyfile(priors / CATALOG_FILE, run.path / CATALOG_FILE)
        run.facts.update({k: v for k, v in scored["facts"].items() if k != "predictor"})
        run.facts.update(predictor=name, source_predictor=scored["facts"]["predictor"], score_seconds=scored["seconds"])
    publish_version(staged, link)
    return view


def shuffled_rows(rows: pd.DataFrame, seed: int) -> npt.NDArray[np.int64]:
    """Row of another user at the same snapshot, for every row: one shuffle of users, kept over time.

    Users swap whole series, so that a placebo is as steady in time as the prior it imitates; with two
    users or more nobody keeps their own.
    """
    import numpy as np
    import pandas as pd

    users = pd.Index(rows[USER_ID].unique())
    order = np.random.default_rng(seed).permutation(len(users))
    other = np.empty(len(users), np.int64)
    other[order] = np.roll(order, 1)  # one cycle through a random order: no fixed point
    by_key = rows.set_index([USER_ID, SNAPSHOT])[PRIOR_ROW]
    wanted = pd.MultiIndex.from_arrays([users[other[users.get_indexer(rows[USER_ID])]], rows[SNAPSHOT]])
    return by_key.reindex(wanted).to_numpy(np.int64)


def _validate(rows: pd.DataFrame, matrix: npt.NDArray[np.float32], scored: dict[str, Any], where: Path) -> None:
    import numpy as np

    problems = []
    if rows.duplicated([USER_ID, SNAPSHOT]).any():
        problems.append(f"{int(rows.duplicated([USER_ID, SNAPSHOT]).sum())} doubled (user, snapshot) rows")
    if len(rows) != len(matrix) or len(rows) != scored["facts"]["rows"]:
        problems.append(f"{len(rows)} rows, {len(matrix)} priors, {scored['facts']['rows']} in the manifest")
    worst = 0.0
    for start in range(0, len(matrix), CHUNK_ROWS):
        part = np.asarray(matrix[start : start + CHUNK_ROWS], np.float64)
        worst = max(worst, float(np.nan_to_num(np.abs(np.exp(part).sum(1) - 1), nan=np.inf).max()))
    if worst > 1e-4:
        problems.append(f"probabilities sum to one within {worst:.1e} only")
    if problems:
        raise AdvpriorError(
            "PRI010", "the priors do not validate", where=str(where), found="; ".join(problems),
            expected="one row per user and snapshot, each a distribution within 1e-4",
            fix="advprior score RUN --tables TABLES --out PRIORS --force",
        )  # fmt: skip


def _write_table(
    out: Path,
    rows: pd.DataFrame,
    matrix: npt.NDArray[np.float32],
    source: npt.NDArray[np.int64],
    scored: dict[str, Any],
) -> None:
    """``table.parquet`` and ``log_probs.npy``, streamed in chunks."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    facts = scored["facts"]
    lag = timedelta(seconds=float(facts["lag_s"]))
    cutoff = datetime.fromisoformat(facts["model_cutoff"])
    moment = pa.timestamp("us", tz="UTC")
    size = matrix.shape[1]
    written = np.lib.format.open_memmap(out / MATRIX_FILE, mode="w+", dtype=np.float32, shape=matrix.shape)
    scalars = rows.set_index(PRIOR_ROW)
    writer = None
    for start in range(0, len(rows), CHUNK_ROWS):
        part = rows.iloc[start : start + CHUNK_ROWS]
        taken = source[start : start + CHUNK_ROWS]
        vectors = np.ascontiguousarray(matrix[taken])
        written[start : start + len(part)] = vectors
        mine = scalars.loc[taken]
        offsets = pa.array(np.arange(0, vectors.size + 1, size, dtype=np.int32))
        table = pa.table({
            USER_ID: pa.array(part[USER_ID], pa.string()),
            EVENT_TIMESTAMP: pa.array(part[SNAPSHOT] + lag, moment),
            # as of when a daily run would have written it: the frame joins with filter_by_created_timestamp, and a
            # backfill stamped with the wall clock could not be joined to any past impression
            CREATED_TIMESTAMP: pa.array(part[SNAPSHOT] + lag, moment),
            SNAPSHOT: pa.array(part[SNAPSHOT], moment),
            MODEL_CUTOFF: pa.array([cutoff] * len(part), moment),
            CATALOG_VERSION: pa.array([facts["catalog_version"]] * len(part), pa.string()),
            PRIOR_ROW: pa.array(np.arange(start, start + len(part)), pa.int64()),
            "entropy": pa.array(mine["entropy"].to_numpy(np.float32)),
            "top1_index": pa.array(mine["top1_index"].to_numpy(np.int64)),
            "top1_log_prob": pa.array(mine["top1_log_prob"].to_numpy(np.float32)),
            LOG_PROBS: pa.ListArray.from_arrays(offsets, pa.array(vectors.ravel())),
        })  # fmt: skip
        writer = writer or pq.ParquetWriter(out / TABLE_FILE, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
    written.flush()
