"""Back to what was served before, by one command: the previous publication's newest rows, over the newer ones.

`feast materialize` cannot do it: Redis keeps a row against an older one, and sqlite would mix. Here rows are written
as they are; each carries its own snapshot and catalog version, so a request in the middle sees one or the other.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from advprior.store.contract import CREATED_TIMESTAMP, EVENT_TIMESTAMP, SNAPSHOT, TABLE_FILE
from advprior.store.errors import AdvpriorError
from advprior.store.progress import tracked
from advprior.store.runs import MANIFEST
from ranking.frame.join import open_store
from ranking.frame.preflight import check_published
from ranking.frame.views import view_folder

_BATCH = 1000


@dataclass(frozen=True)
class RolledBack:
    """What is served now."""

    view: str
    rows: int
    snapshot: datetime
    version: str
    swapped: bool


def previous_version(repo: Path, view: str) -> Path | None:
    """The publication before the current one, if it still exists."""
    link = view_folder(repo, view)
    current = link.resolve()
    versions = [
        p for p in link.parent.glob(f".versions/{view}-*") if p.resolve() != current and (p / MANIFEST).is_file()
    ]
    return max(versions, key=lambda p: p.stat().st_mtime, default=None)


def roll_back(repo: Path, view: str, now: datetime, snapshot: datetime | None = None) -> RolledBack:
    """Serve a view's earlier rows again.

    Parameters
    ----------
    now : datetime
        Rows that become available later are left out.
    snapshot : datetime, optional
        Of the current publication. Default: the newest of the previous publication; without one, the newest but one
        of the current.

    Raises
    ------
    AdvpriorError
        ``STO003`` when the view is not published, ``SRV007`` when there is nothing to go back to.
    """
    check_published(repo, [view])
    link = view_folder(repo, view)
    folder = None if snapshot is not None else previous_version(repo, view)
    source = folder or link.resolve()
    table = pd.read_parquet(source / TABLE_FILE, columns=[EVENT_TIMESTAMP, *_snapshot_column(source)])
    available = table[table[EVENT_TIMESTAMP] <= pd.Timestamp(now)]
    # profiles have no snapshots: each user's one row is as of when the user came into being
    snapshots = sorted(available[SNAPSHOT].unique() if SNAPSHOT in table else available[EVENT_TIMESTAMP].nlargest(1))
    if snapshot is not None:
        wanted = pd.Timestamp(snapshot) if pd.Timestamp(snapshot) in snapshots else None
    else:
        wanted = (snapshots[-1:] if folder else snapshots[-2:-1] or [None])[0] if snapshots else None
    if wanted is None:
        raise AdvpriorError(
            "SRV007",
            "there is nothing to go back to",
            where=str(source),
            actual=f"{len(snapshots)} snapshots until {now}",
            expected=f"snapshot {snapshot}" if snapshot else "an earlier publication or snapshot",
            fix="name one of its snapshots with --snapshot, or publish the earlier priors again",
        )
    if folder is not None:
        _point(link, folder)
    rows = _write(repo, view, source, pd.Timestamp(wanted))  # without snapshots: all rows until then
    return RolledBack(view, rows, pd.Timestamp(wanted).to_pydatetime(), source.name, folder is not None)


def _snapshot_column(folder: Path) -> list[str]:
    import pyarrow.parquet as pq

    return [SNAPSHOT] if SNAPSHOT in pq.read_schema(folder / TABLE_FILE).names else []


def _point(link: Path, folder: Path) -> None:
    """Make a kept version the current one, as publishing does: by one rename."""
    beside = link.with_name(f".{link.name}.{os.getpid()}.link")
    beside.unlink(missing_ok=True)
    beside.symlink_to(Path(".versions") / folder.name)
    os.replace(beside, link)
    os.utime(folder)


def _write(repo: Path, view: str, folder: Path, moment: pd.Timestamp) -> int:
    """Write one snapshot's rows, or all rows until then, into the online store, over whatever it holds."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    from feast.utils import _convert_arrow_to_proto

    store = open_store(repo)
    config, table = store.config, store.get_feature_view(view)
    if "skip_dedup" in type(config.online_store).model_fields:
        config.online_store.skip_dedup = True  # Redis: do not hold a row against an older one
    online = store._get_provider().online_store
    column, belongs = (SNAPSHOT, pc.equal) if _snapshot_column(folder) else (EVENT_TIMESTAMP, pc.less_equal)
    keys = {key.name: key.dtype.to_value_type() for key in table.entity_columns}
    names = [*keys, *(field.name for field in table.features), EVENT_TIMESTAMP, CREATED_TIMESTAMP]
    data: Any = pq.read_table(folder / TABLE_FILE, columns=list(dict.fromkeys([*names, column])))
    data = data.filter(belongs(data[column], moment.to_pydatetime())).select(names)
    for batch in tracked(data.to_batches(_BATCH), f"roll back {view}", "batch"):
        online.online_write_batch(config, table, _convert_arrow_to_proto(batch, table, keys), None)
    return int(data.num_rows)
