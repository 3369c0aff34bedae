"""The feature store of a refresh: definitions applied where they changed, and what is current put online."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from advprior.pipeline.process import environment, executable
from advprior.store.contract import (
    AD_STATS_VIEW,
    EVENT_TIMESTAMP,
    PRIOR_VIEW_PREFIX,
    TABLE_FILE,
    USER_HISTORY_VIEW,
    TimePlan,
)
from advprior.store.errors import AdvpriorError
from advprior.store.feast_import import light_feast_import
from advprior.store.runs import MANIFEST, digest, read_manifest, sha256_file
from advprior.store.tables import read_parquet

_APPLIED_FILE = "applied"
#: Snapshots that may still be in their view's time to live, and one more.
_SNAPSHOTS_BACK = 3
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def apply_if_changed(repo: Path, hidden: Path, say: Callable[[str], None]) -> bool:
    """`feast apply` where the definitions, or what is published for them to read, are not those of the last time.

    It takes seconds, and is how a new view or column gets in.

    Raises
    ------
    AdvpriorError
        ``STO009`` with what Feast said.
    """
    path, now = hidden / _APPLIED_FILE, _definitions(repo)
    registry = repo / "data" / "registry.db"
    if path.is_file() and path.read_text() == now and registry.exists():
        return False
    done = subprocess.run(
        executable(("feast", "-c", str(repo), "apply")), env=environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise AdvpriorError(
            "STO009",
            "feast apply failed",
            where=str(repo),
            actual=" ".join((done.stderr or done.stdout).split())[-600:],
            fix=f"feast -c {repo} apply",
        )
    path.write_text(now)
    say("refresh: definitions applied")
    return True


def _definitions(repo: Path) -> str:
    """Digest of all that `definitions.py` makes views of."""
    import pyarrow.parquet as pq

    files = {path.name: sha256_file(path) for path in sorted(repo.glob("*")) if path.suffix in (".py", ".yaml")}
    views = {}
    for table in sorted((repo / "data").glob(f"*/{TABLE_FILE}")):
        facts = read_manifest(table.parent)["facts"] if (table.parent / MANIFEST).is_file() else {}
        columns = {field.name: str(field.type) for field in pq.read_schema(table)}
        views[table.parent.name] = [columns, facts.get("online"), facts.get("snapshot_every_s")]
    return digest([str(repo.resolve()), files, views])


def materialize(repo: Path, until: datetime, plan: TimePlan) -> int:
    """Put online what is available by then, over whatever is there; the number of views.

    Redis would hold a row against one of the same time, so that a profile that was corrected, or got another column,
    never came online. Views of snapshots from the last few on, which hold every row that is in its time to live; all
    others from the beginning, since `feast materialize-incremental` leaves out profiles older than a year and rows
    published anew.
    """
    with light_feast_import():
        from feast import FeatureStore

        store = FeatureStore(repo_path=str(repo))
    if "skip_dedup" in type(store.config.online_store).model_fields:
        store.config.online_store.skip_dedup = True  # each entity comes once, and one refresh runs at a time
    views = [view.name for view in store.list_feature_views() if view.online]
    recent = [v for v in views if v in (USER_HISTORY_VIEW, AD_STATS_VIEW) or v.startswith(PRIOR_VIEW_PREFIX)]
    starts: dict[datetime, list[str]] = {}
    for view in views:
        start = _EPOCH
        if view in recent:
            newest = read_parquet(repo / "data" / view / TABLE_FILE, columns=[EVENT_TIMESTAMP])[EVENT_TIMESTAMP]
            available = newest[newest <= until]
            if len(available):
                start = available.max().to_pydatetime() - _SNAPSHOTS_BACK * plan.snapshot_every
        starts.setdefault(start, []).append(view)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Feast's own deprecations, once a view
        for start, names in starts.items():
            _quietly(store, start, until, names)
    return len(views)


def _quietly(store: Any, start: datetime, until: datetime, names: list[str]) -> None:
    """Feast prints a page of bars a view to our output: they go to the log, our lines stay readable."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            store.materialize(start_date=start, end_date=until, feature_views=names)
        except Exception:
            print(printed.getvalue()[-2000:], file=sys.stderr)
            raise
