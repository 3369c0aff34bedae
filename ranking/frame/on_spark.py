"""A frame whose joins and parts Spark's workers make, and write: only what the checks count comes to the driver.

The workers share a disk with the driver, as `feature_repo/data` must lie on one anyway. Impressions are sorted there
first; Feast's Spark store joins all of them at once, each distinct key once a stretch of time (`ranking.frame.stored`);
then each worker makes some parts and writes them into the frame's folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from advprior.store.arrays import Int
from advprior.store.contract import TimePlan
from ranking.frame.part import FeastJoins, Part, PartMaker, Request, Source
from ranking.frame.parts import FrameParts
from ranking.frame.read import PART_FILE, ROW_GROUP
from ranking.frame.rows import PART_ROWS, read_rows
from ranking.frame.stored import StoredJoin, StoredJoins
from ranking.frame.workers import on_workers, spark_context

_PARTS_A_CORE = 2  # so that a slow part does not leave other cores idle for long


@dataclass(frozen=True, eq=False)
class Work:
    """What a worker needs to make any part.

    Attributes
    ----------
    folder : Path
        Of the impressions and what is joined: names the work.
    out : Path
        Folder of the frame's parts.
    """

    folder: Path
    out: Path
    request: Request
    plan: TimePlan
    refs: Mapping[str, str]
    keys: Sequence[str]
    joins: StoredJoins
    impressions: Path


@dataclass(frozen=True, eq=False)
class Task:
    """One part of it.

    Attributes
    ----------
    start, stop : int
        Rows.
    golden : int array
        See `ranking.frame.part.PartMaker.make`.
    """

    number: int
    start: int
    stop: int
    golden: Int


def write_parts(parts: FrameParts, out: Path) -> None:
    """Make and write all parts on the session of Feast's Spark store.

    Parameters
    ----------
    parts : FrameParts
        Opened; it is ready to be finished afterwards.
    out : Path
        An existing folder.

    Raises
    ------
    AdvpriorError
        What a worker refuses.
    """
    joins, source, rows = parts.source.joins, parts.source, parts.rows
    assert isinstance(joins, FeastJoins)
    # a worker has a working directory of its own, and Spark takes a relative path for a host
    impressions, request = rows.path.resolve(), source.request
    request = replace(request, tables=request.tables.resolve(), repo=request.repo.resolve())
    stored = StoredJoins(
        {
            weeks: [
                StoredJoin.make(parts.store, group, source.keys, impressions, timedelta(weeks=weeks))
                for group in groups
            ]
            for weeks, groups in joins.groups.items()
        }
    )
    context = spark_context(parts.store.config.offline_store)
    work = Work(
        impressions.parent,
        out.resolve(),
        request,
        source.plan,
        dict(source.refs),
        list(source.keys),
        stored,
        impressions,
    )
    for answer in on_workers(context, _made, work, list(_tasks(parts, context.defaultParallelism))):
        parts.add(*answer)


def _tasks(parts: FrameParts, cores: int) -> Iterator[Task]:
    """Parts of as many rows, some for each core."""
    size = max(min(PART_ROWS, -(-len(parts.rows) // (_PARTS_A_CORE * cores))), 1)
    for number, start in enumerate(range(0, len(parts.rows), size)):
        stop = min(start + size, len(parts.rows))
        yield Task(number, start, stop, parts.golden(start, stop))


_OPENED: dict[Path, Source] = {}  # of a worker process, which makes several parts


def _made(work: Work, task: Task) -> tuple[Any, Any]:
    """On a worker: make and write a part; its columns and counts."""
    import pyarrow.parquet as pq

    part = _part(work, task)
    pq.write_table(part.table, work.out / PART_FILE.format(task.number), row_group_size=ROW_GROUP)
    return part.features, part.sums


def _part(work: Work, task: Task) -> Part:
    if work.folder not in _OPENED:
        _OPENED.clear()
        _OPENED[work.folder] = Source.open(work.request, work.plan, work.refs, work.keys, work.joins)
    rows = read_rows(work.impressions, task.start, task.stop)
    return PartMaker(_OPENED[work.folder]).make(rows, task.golden)
