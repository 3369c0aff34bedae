"""New snapshots beside those that are published: ``advprior publish --append``, what a daily refresh does.

A published row never changes: a snapshot that is there stays as it is, whoever scores it again, so that a training
frame finds what was served. What is appended to is written anew, whole and without the snapshots that are too old, so
that a publication never holds dead rows; readers see the old one or the new one.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from advprior.pipeline.publish import CODE_VERSION, STEP, publish, require_repo, view_named
from advprior.pipeline.publish_table import CHUNK_ROWS, ScoredArrays, validate, write_table
from advprior.store.arrays import Bool, Int
from advprior.store.contract import (
    CATALOG_FILE,
    INTEREST_MATRIX_FILE,
    INTERESTS_FILE,
    MATRIX_FILE,
    PRIOR_ROW,
    SNAPSHOT,
    TABLE_FILE,
    TAIL_FILE,
    TOP_INDEX_FILE,
    shuffled_source,
)
from advprior.store.errors import AdvpriorError
from advprior.store.matrix import MatrixWriter, matrix_path, open_matrix
from advprior.store.progress import tracked
from advprior.store.runs import (
    MANIFEST,
    is_current,
    manifest_digest,
    new_run,
    publish_version,
    read_manifest,
    require_unchanged,
    run_key,
)
from advprior.store.tables import read_parquet
from advprior.store.times import micros, moment_us

_ARRAYS = (MATRIX_FILE, TOP_INDEX_FILE, TAIL_FILE, INTEREST_MATRIX_FILE)
#: What the two must have in common: one matrix has one order of columns.
_SAME = ("catalog_version", "by", "top_k", "interests_version")


@dataclass(frozen=True)
class Appended:
    """What was done to a publication.

    Parameters
    ----------
    view : str
    rows : int
        Rows that came.
    added, dropped : int
        Snapshots that came, and that were too old to stay.
    snapshots : int
        Snapshots that are published now.
    """

    view: str
    rows: int
    added: int
    dropped: int
    snapshots: int


def append(priors: Path, repo: Path, *, name: str | None = None, keep: int | None = None) -> Appended | None:
    """Publish a score run's snapshots that are later than those of ``<repo>/data/prior_<name>``; None: there are none.

    What is not published yet is published whole.

    Parameters
    ----------
    priors, repo : Path
    name : str, optional
        What it is published as; the predictor's name by default.
    keep : int, optional
        Newest snapshots that stay published; all by default.

    Raises
    ------
    AdvpriorError
        ``PRI026`` when the two are of different catalogs or of another form, ``PRI010`` when the priors do not
        validate, ``RUN018`` when what is published was damaged, ``STO001`` when ``repo`` is no feature repository.
    """
    scored = read_manifest(priors, step="score", fix="advprior score RUN --tables TABLES --out PRIORS")
    require_repo(repo)
    name, view = view_named(scored, name)
    link = repo / "data" / view
    rows = read_parquet(priors / "rows.parquet", fix=f"advprior score … --out {priors}")
    if not (link / MANIFEST).is_file():
        publish(priors, repo, name=name)
        count = rows[SNAPSHOT].nunique()
        return Appended(view, len(rows), count, 0, count)
    config, inputs = {"view": view, "append": True, "keep": keep}, {"priors": manifest_digest(priors)}
    key = run_key(STEP, config, inputs, CODE_VERSION)
    if is_current(link, key):
        return None
    require_unchanged(link, fix=f"serve the one before: advprior rank rollback --repo {repo} --view {view}")
    current = read_manifest(link)
    _require_same(current["facts"], scored["facts"], name, priors, link)
    published = micros(read_parquet(link / TABLE_FILE, columns=[SNAPSHOT])[SNAPSHOT])
    fresh = rows[micros(rows[SNAPSHOT]) > published.max(initial=np.iinfo(np.int64).min)]
    moments = np.union1d(published, micros(fresh[SNAPSHOT]))
    stay = moments[-keep:] if keep else moments
    fresh = fresh[np.isin(micros(fresh[SNAPSHOT]), stay)]
    stays = np.isin(published, stay)
    if not len(fresh) and stays.all():
        return None
    arrays = ScoredArrays.open(priors)
    validate(rows, arrays, scored, priors)
    staged = link.parent / f".staged-{view}"
    shutil.rmtree(staged, ignore_errors=True)
    with new_run(staged, STEP, config=config, inputs=inputs, key=key) as run:
        added = run.path / ".added"
        added.mkdir()
        vectors = bool(current["facts"].get("vectors", True))
        write_table(added, fresh, arrays, fresh[PRIOR_ROW].to_numpy(), scored["facts"], vectors=vectors)
        old = _Part(link, link, stays)
        _merge(old, _Part(added, priors, np.ones(len(fresh), np.bool_)), run.path)
        shutil.rmtree(added)
        run.facts.update(_facts(current["facts"], scored, float(stays.mean()), priors))
        run.facts["appended"] = _still_published(run.facts["appended"], int(stay[0]))
        run.facts.update(predictor=name, rows=int(stays.sum()) + len(fresh), snapshots=len(stay))
    publish_version(staged, link)
    gone = len(np.setdiff1d(published, stay))
    return Appended(view, len(fresh), fresh[SNAPSHOT].nunique(), gone, len(stay))


def _require_same(current: dict[str, Any], new: dict[str, Any], name: str, priors: Path, link: Path) -> None:
    """``PRI026``: what is published and what would join it are not of one form."""
    differing = [key for key in _SAME if current.get(key) != new.get(key)]
    if not differing and not shuffled_source(name):
        return
    now = {key: current.get(key) for key in differing}
    raise AdvpriorError(
        "PRI026",
        "these priors cannot join those that are published",
        where=f"{priors}, published in {link}",
        actual=f"{ {key: new.get(key) for key in differing} }" if differing else f"{name} shuffles whole publications",
        expected=f"{now}: priors of two catalogs are never mixed" if differing else "priors of a predictor",
        fix=f"score every snapshot with this model (advprior score without --since and --last), then: "
        f"advprior publish PRIORS --repo {link.parents[1]} --as {name}",
    )


def _facts(current: dict[str, Any], scored: dict[str, Any], share: float, priors: Path) -> dict[str, Any]:
    """Of the newest score run, with the cost of all rows that are published."""
    facts = {key: value for key, value in scored["facts"].items() if key != "predictor"}
    for name in ("seconds", "cpu_seconds"):
        earlier, spent = current.get(f"score_{name}"), scored.get(name)
        facts[f"score_{name}"] = None if earlier is None or spent is None else round(earlier * share + spent, 2)
    part = {"model": scored["facts"]["model"], "last_snapshot": scored["facts"]["last_snapshot"], "from": priors.name}
    history = current.get("appended") or [
        {"model": current.get("model"), "last_snapshot": current.get("last_snapshot"), "from": "whole"}
    ]
    return {
        **facts,
        "source_predictor": scored["facts"]["predictor"],
        "online": current.get("online", True),
        "vectors": current.get("vectors", True),
        "appended": [*history, part],
    }


def _still_published(parts: list[dict[str, Any]], oldest_us: int) -> list[dict[str, Any]]:
    """Of what was appended, the parts of which a snapshot is still there: a list without an end would grow daily."""
    ends = [part["last_snapshot"] for part in parts]
    return [
        part
        for part, end in zip(parts, ends, strict=True)
        if end is None or moment_us(datetime.fromisoformat(end)) >= oldest_us
    ]


@dataclass(frozen=True)
class _Part:
    """Rows for a publication.

    Attributes
    ----------
    table, arrays : Path
        Folders with the table, and with the arrays that its rows point into.
    stays : bool [rows of the table]
        Which of them.
    """

    table: Path
    arrays: Path
    stays: Bool


def _merge(old: _Part, added: _Part, out: Path) -> None:
    """One publication of the rows of two that stay, in ``out``, with no row in its arrays that nothing points to.

    Raises
    ------
    AdvpriorError
        ``PRI026`` when one has arrays or columns that the other has not.
    """
    import pyarrow.parquet as pq

    fresh = len(added.stays)
    schema = pq.read_schema((added if fresh else old).table / TABLE_FILE)
    names = [name for name in _ARRAYS if matrix_path(old.arrays / name)]
    before, beside = (
        set(pq.read_schema(old.table / TABLE_FILE).names),
        {name for name in _ARRAYS if matrix_path(added.arrays / name)},
    )
    if fresh and (set(schema.names) != before or set(names) != beside):
        raise AdvpriorError(
            "PRI026",
            "these priors cannot join those that are published",
            where=str(old.table),
            actual=f"columns {sorted(before ^ set(schema.names))}, files {sorted(set(names) ^ beside)} in one only",
            expected="priors of one form",
            fix="publish whole: score every snapshot, then advprior publish without --append",
        )
    with ExitStack() as stack:
        table = stack.enter_context(pq.ParquetWriter(out / TABLE_FILE, schema, compression="zstd"))
        sources = {name: open_matrix(old.arrays / name) for name in names}
        written = {
            name: stack.enter_context(MatrixWriter(out / name, array.shape[1:], array.dtype))
            for name, array in sources.items()
        }
        start = 0
        for part in (old, added):
            if part.stays.any():
                start = _copy(part, written, table, start)
    for name in (CATALOG_FILE, INTERESTS_FILE):
        if (old.table / name).is_file():
            shutil.copyfile(old.table / name, out / name)


def _copy(part: _Part, written: Mapping[str, MatrixWriter], writer: Any, start: int) -> int:
    """Copy rows of one part, numbered anew from ``start`` on, in chunks; the number behind the last."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    at, stays = 0, part.stays
    arrays = {name: open_matrix(part.arrays / name) for name in written}
    table = pq.ParquetFile(part.table / TABLE_FILE)
    batches = table.iter_batches(CHUNK_ROWS)
    chunks = -(-len(stays) // CHUNK_ROWS)
    for batch in tracked(batches, "publish", f"{CHUNK_ROWS:,} rows", total=chunks):
        keep = stays[at : at + len(batch)]
        at += len(batch)
        if not keep.any():
            continue
        rows = pa.Table.from_batches([batch]).filter(pa.array(keep)).select(writer.schema.names).cast(writer.schema)
        pointers: Int = rows[PRIOR_ROW].to_numpy()
        place = rows.schema.get_field_index(PRIOR_ROW)
        numbers = pa.array(np.arange(start, start + len(rows)), pa.int64())
        writer.write_table(rows.set_column(place, writer.schema.field(place), numbers))
        for name, array in arrays.items():
            written[name].write(array[pointers])
        start += len(rows)
    table.close()
    return start
