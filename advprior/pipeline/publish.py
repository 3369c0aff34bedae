"""From scored priors to the feature repository: ``advprior publish``.

Validated first, then swapped in with one rename of a link: readers see the old priors whole or the new
ones whole. A placebo is the same priors with users shuffled, for a test that must find nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advprior.store.contract import (
    CATALOG_FILE,
    CATALOG_VERSION,
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    LOG_PROBS,
    MATRIX_FILE,
    MODEL_CUTOFF,
    PREDICTORS,
    PRIOR_ROW,
    SNAPSHOT,
    TABLE_FILE,
    TAIL_FILE,
    TAIL_LOG_MASS,
    TOP_INDEX,
    TOP_INDEX_FILE,
    USER_ID,
    prior_view,
    shuffled_source,
)
from advprior.store.errors import AdvpriorError
from advprior.store.offline import require_current_repo
from advprior.store.runs import (
    MANIFEST,
    is_current,
    manifest_digest,
    new_run,
    publish_version,
    read_manifest,
    run_key,
    write_json,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

STEP = "publish"
CODE_VERSION = 2
CHUNK_ROWS = 4096


@dataclass(frozen=True)
class _Scored:
    """The arrays of a score run, memory-mapped: whole rows, or the K likeliest and the tail of each."""

    log_probs: npt.NDArray[np.float32]
    top_index: npt.NDArray[np.int32] | None
    tail: npt.NDArray[np.float32] | None

    @classmethod
    def open(cls, folder: Path) -> _Scored:
        import numpy as np

        def mapped(name: str) -> Any:
            return np.load(folder / name, mmap_mode="r") if (folder / name).is_file() else None

        return cls(np.load(folder / MATRIX_FILE, mmap_mode="r"), mapped(TOP_INDEX_FILE), mapped(TAIL_FILE))


def publish(
    priors: Path, repo: Path, *, name: str | None = None, seed: int = 0, online: bool = True, force: bool = False
) -> str | None:
    """Publish a score run as ``<repo>/data/prior_<name>``; the view's name, or None when it was current.

    Parameters
    ----------
    priors, repo : Path
    name : str, optional
        What it is published as; the predictor's name by default.
    seed : int
        Of a placebo's shuffle.
    online : bool
        Whether `feast materialize` puts the view online. False for what is measured only: controls, placebos.
    force : bool
        Publish again even when nothing changed.

    Raises
    ------
    AdvpriorError
        ``STO001`` when ``repo`` is no feature repository, ``PRI010`` when the priors do not validate.
    """
    import shutil

    scored = read_manifest(priors, step="score", fix="advprior score RUN --tables TABLES --out PRIORS")
    if not (repo / "feature_store.yaml").is_file():
        raise AdvpriorError(
            "STO001",
            "not a feature repository",
            where=str(repo),
            actual="no feature_store.yaml",
            expected="a folder made by `advprior init`",
            fix="advprior init DIR, then --repo DIR/feature_repo",
        )
    require_current_repo(repo)
    name = name or str(scored["facts"]["predictor"])
    if not (name.isascii() and name.isidentifier() and name.islower() and name[0] != "_"):
        raise AdvpriorError(
            "PRI003",
            f"no prior can be named {name!r}",
            expected=f"small letters, digits, _: {', '.join(PREDICTORS)}, …",
        )
    view = prior_view(name)
    config = {"view": view, **({"shuffle_seed": seed} if shuffled_source(name) else {})}
    inputs = {"priors": manifest_digest(priors)}
    key = run_key(STEP, config, inputs, CODE_VERSION)
    link = repo / "data" / view
    if not force and is_current(link, key):
        return view if _switch_online(link, online) else None

    from advprior.pipeline.publish_interests import add_interests
    from advprior.store.tables import read_parquet

    rows = read_parquet(priors / "rows.parquet", fix=f"advprior score … --out {priors}")
    arrays = _Scored.open(priors)
    _validate(rows, arrays, scored, priors)
    source = rows[PRIOR_ROW].to_numpy()
    if shuffled_source(name):
        source = shuffled_rows(rows, seed)
    staged = link.parent / f".staged-{view}"
    shutil.rmtree(staged, ignore_errors=True)
    with new_run(staged, STEP, config=config, inputs=inputs, key=key) as run:
        _write_table(run.path, rows, arrays, source, scored)
        shutil.copyfile(priors / CATALOG_FILE, run.path / CATALOG_FILE)
        add_interests(run.path, priors, source)
        run.facts.update({k: v for k, v in scored["facts"].items() if k != "predictor"})
        run.facts.update(predictor=name, source_predictor=scored["facts"]["predictor"], score_seconds=scored["seconds"])
        run.facts.update(score_cpu_seconds=scored.get("cpu_seconds"), online=online)
    publish_version(staged, link)
    return view


def _switch_online(link: Path, online: bool) -> bool:
    """Say of a published view that it goes online, or no longer does; False where that is what it says.

    A fact of the manifest, and no part of the key: the rows are the same, and what was measured on them stays current.
    """
    manifest = read_manifest(link)
    if manifest["facts"].get("online", True) == online:
        return False
    manifest["facts"]["online"] = online
    write_json(link / MANIFEST, manifest)
    return True


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


def _validate(rows: pd.DataFrame, arrays: _Scored, scored: dict[str, Any], where: Path) -> None:
    import numpy as np

    problems = []
    matrix, top, tail = arrays.log_probs, arrays.top_index, arrays.tail
    size = int(scored["facts"].get("catalog_size", matrix.shape[1]))
    if (top is None) != (tail is None) or (top is not None and top.shape != matrix.shape):
        problems.append(f"{TOP_INDEX_FILE} or {TAIL_FILE} do not belong to {MATRIX_FILE}")
    if top is None and matrix.shape[1] != size:
        problems.append(f"{matrix.shape[1]} columns for {size} advertisers")
    if rows.duplicated([USER_ID, SNAPSHOT]).any():
        problems.append(f"{int(rows.duplicated([USER_ID, SNAPSHOT]).sum())} doubled (user, snapshot) rows")
    if len(rows) != len(matrix) or len(rows) != scored["facts"]["rows"]:
        problems.append(f"{len(rows)} rows, {len(matrix)} priors, {scored['facts']['rows']} in the manifest")
    worst = 0.0
    for start in range(0, len(matrix), CHUNK_ROWS):
        part = np.exp(np.asarray(matrix[start : start + CHUNK_ROWS], np.float64)).sum(1)
        if tail is not None:
            part += np.exp(np.asarray(tail[start : start + CHUNK_ROWS], np.float64))
        if top is not None:
            names = np.sort(top[start : start + CHUNK_ROWS], axis=1)
            if (names[:, 0] < 0).any() or (names[:, -1] >= size).any() or (np.diff(names, axis=1) == 0).any():
                problems.append(f"{TOP_INDEX_FILE} names an advertiser twice, or none, from row {start}")
        worst = max(worst, float(np.nan_to_num(np.abs(part - 1), nan=np.inf).max()))
    if worst > 1e-4:
        problems.append(f"probabilities sum to one within {worst:.1e} only")
    if problems:
        raise AdvpriorError(
            "PRI010",
            "the priors do not validate",
            where=str(where),
            actual="; ".join(problems),
            expected="one row per user and snapshot, each a distribution within 1e-4",
            fix="advprior score RUN --tables TABLES --out PRIORS --force",
        )


def _write_table(
    out: Path,
    rows: pd.DataFrame,
    arrays: _Scored,
    source: npt.NDArray[np.int64],
    scored: dict[str, Any],
) -> None:
    """``table.parquet`` and the arrays behind its pointers, streamed in chunks."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    facts = scored["facts"]
    lag = timedelta(seconds=float(facts["lag_s"]))
    cutoff = datetime.fromisoformat(facts["model_cutoff"])
    moment = pa.timestamp("us", tz="UTC")
    size = arrays.log_probs.shape[1]
    pairs = [
        (np.lib.format.open_memmap(out / name, mode="w+", dtype=array.dtype, shape=array.shape), array)
        for name, array in (
            (MATRIX_FILE, arrays.log_probs),
            (TOP_INDEX_FILE, arrays.top_index),
            (TAIL_FILE, arrays.tail),
        )
        if array is not None
    ]
    scalars = rows.set_index(PRIOR_ROW)
    writer = None
    for start in range(0, len(rows), CHUNK_ROWS):
        part = rows.iloc[start : start + CHUNK_ROWS]
        taken = source[start : start + CHUNK_ROWS]
        parts = [np.ascontiguousarray(array[taken]) for _, array in pairs]
        for (written, _), values in zip(pairs, parts, strict=True):
            written[start : start + len(part)] = values
        vectors = parts[0]
        mine = scalars.loc[taken]
        offsets = pa.array(np.arange(0, vectors.size + 1, size, dtype=np.int32))
        top = (
            {}
            if len(parts) == 1
            else {
                TOP_INDEX: pa.ListArray.from_arrays(offsets, pa.array(parts[1].ravel().astype(np.int64))),
                TAIL_LOG_MASS: pa.array(parts[2]),
            }
        )
        table = pa.table(
            {
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
                **top,
            }
        )
        writer = writer or pq.ParquetWriter(out / TABLE_FILE, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
    for written, _ in pairs:
        written.flush()
