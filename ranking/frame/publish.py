"""Publishing the baseline's views: profiles, users' histories and ads' popularity, each swapped in by one rename."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd

from advprior.store.contract import (
    AD_ID,
    ADS,
    ADVERTISER_ID,
    ADVERTISERS,
    ARRIVED,
    CATALOG_VERSION,
    CATEGORY,
    CLICKED,
    CLUSTER,
    DEPARTMENT,
    EVENTS,
    IMPRESSIONS,
    LABEL,
    TABLE_FILE,
    TIMESTAMP,
    USER_ID,
    USER_PROFILE_VIEW,
    USERS,
    VALUE,
)
from advprior.store.offline import SPARK, STORE_FILE, offline_kind, store_config
from advprior.store.progress import tracked
from advprior.store.runs import manifest_digest, new_run, publish_version, run_key
from advprior.store.tables import (
    TABLES_FIX,
    load_label_delay,
    load_tables,
    load_time_plan,
    parquet_columns,
    read_parquet,
    require_impressions,
    write_parquet_parts,
)
from advprior.store.times import moment_us
from ranking.frame.baseline import Source, WholeLog
from ranking.frame.log_blocks import LogInBlocks
from ranking.frame.preflight import FEATURES_VERSION, features_run_key
from ranking.frame.snapshots import snapshots_to_keep
from ranking.frame.standing import last_snapshot
from ranking.frame.stream_counts import log_streams
from ranking.frame.user_blocks import BLOCK_USERS, UserBlocks
from ranking.frame.views import BASELINE_VIEWS, view_folder
from ranking.frame.workers import run_here, spark_runner

#: Rows of events and impressions up to which all are counted at once: half a gigabyte a million.
ROWS_IN_MEMORY = 2_000_000
#: What is counted of the two tables that may be long.
_COUNTED = {
    EVENTS: (USER_ID, ADVERTISER_ID, CATEGORY, DEPARTMENT, CLUSTER, VALUE, TIMESTAMP, ARRIVED),
    IMPRESSIONS: (USER_ID, AD_ID, TIMESTAMP, LABEL, CLICKED),
}
_LISTED = {USERS: USER_ID, ADVERTISERS: ADVERTISER_ID, ADS: AD_ID}
_IDS = (USER_ID, AD_ID, ADVERTISER_ID, CATEGORY)
#: A dictionary of ids only: trying one for each column of numbers and lists took most of the time, and more bytes.
_WRITING: dict[str, Any] = {"use_dictionary": [USER_ID, AD_ID, CATALOG_VERSION, "ad_category"], "compression": "zstd"}


def publish_features(tables: Path, repo: Path, *, anew: bool = False) -> dict[str, int]:
    """Build and publish ``user_profile``, ``user_history`` and ``ad_stats``; returns rows per view.

    Each view is written whole beside the old one and then swapped in by one rename. Rows of snapshots whose past has
    not changed are taken over from what is published. A long log is counted in blocks of users; where
    ``feature_store.yaml`` names Spark, its workers do so.

    Parameters
    ----------
    tables, repo : Path
    anew : bool
        Count every snapshot again, and every block.
    """
    tables, building = Path(tables), Path(repo) / "data" / ".building"
    rows = {}
    with _opened(tables, Path(repo), building, anew=anew) as source:
        # in blocks each pass tells how far it is: a third of the views is not a third of the time
        views = tracked(BASELINE_VIEWS, "features", "view") if isinstance(source, WholeLog) else BASELINE_VIEWS
        for view in views:
            link, out = view_folder(repo, view), building / view
            rows[view] = _write(source, tables, view, None if anew else link, out)
            publish_version(out, link)
    with suppress(OSError):  # an interrupted run may have left something there
        building.rmdir()
    return rows


def _write(source: Source, tables: Path, view: str, current: Path | None, out: Path) -> int:
    """Write one view; its number of rows."""
    inputs, key = {"tables": manifest_digest(tables)}, features_run_key(tables, view)
    with new_run(out, f"rank features {view}", config={}, inputs=inputs, key=key) as run:
        parts = source.parts(view, run.path, current)
        rows = write_parquet_parts(parts, run.path / TABLE_FILE, **({} if view == USER_PROFILE_VIEW else _WRITING))
        run.facts.update(
            rows=rows,
            snapshots=[s.isoformat() for s in source.snapshots],
            snapshot_every_s=source.plan.snapshot_every.total_seconds(),
            lag_s=source.plan.lag.total_seconds(),
        )
        if view != USER_PROFILE_VIEW and source.snapshots:
            run.facts["past"] = source.past.until(moment_us(source.snapshots[-1]))
    return rows


@contextmanager
def _opened(tables: Path, repo: Path, building: Path, *, anew: bool) -> Iterator[Source]:
    """The tables, ready to be counted in one go or in blocks of users; one process at a time.

    What a stopped process has counted in blocks is gone on from where the tables are the same, and removed else.
    """
    require_impressions(tables)
    loaded = load_tables(tables, *_LISTED)
    listed = {name: loaded[name].sort_values(id_, kind="stable", ignore_index=True) for name, id_ in _LISTED.items()}
    columns = {name: _columns(tables / f"{name}.parquet", counted) for name, counted in _COUNTED.items()}
    on_spark = (repo / STORE_FILE).is_file() and offline_kind(store_config(repo)) == SPARK
    in_blocks = on_spark or sum(_rows(tables / f"{name}.parquet") for name in _COUNTED) > ROWS_IN_MEMORY
    key = run_key("blocks of users", {"size": BLOCK_USERS}, {"tables": manifest_digest(tables)}, FEATURES_VERSION)
    out, goes_on = building / "log", in_blocks and not anew
    with new_run(out, "blocks of users", config={}, inputs={}, key=key, resume=goes_on) as run:
        plan, label_delay = load_time_plan(tables), load_label_delay(tables)
        if not in_blocks:
            log = {name: _coded(tables / f"{name}.parquet", wanted) for name, wanted in columns.items()}
            yield WholeLog(listed | log, plan, label_delay)
        else:
            # by the tables' name: workers of a driver that was killed on others write on for a while
            folder = run.path.resolve() / key
            published = [last_snapshot(view_folder(repo, view)) for view in BASELINE_VIEWS]
            moments = [*snapshots_to_keep(plan)[-1:], *published]
            yield LogInBlocks(
                listed,
                plan,
                label_delay,
                folder=tables,
                blocks=UserBlocks(folder, len(listed[USERS]), BLOCK_USERS, _IDS),
                columns=columns,
                all_streams=log_streams(columns[IMPRESSIONS]),
                run=spark_runner(repo) if on_spark else run_here,
                past_moments=sorted({moment_us(moment) for moment in moments if moment is not None}),
            )
            shutil.rmtree(folder)
    shutil.rmtree(out)


def _columns(path: Path, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Those of some columns that a table has."""
    read_parquet(path, columns=[], fix=TABLES_FIX)
    names = parquet_columns(path)
    return tuple(name for name in wanted if name in names)


def _rows(path: Path) -> int:
    import pyarrow.dataset as ds

    return int(ds.dataset(path, format="parquet").count_rows())


def _coded(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """What is counted of a table, ids as categories: a text a row is what costs."""
    table = read_parquet(path, columns=columns, coded=_IDS, fix=TABLES_FIX)
    return table.assign(**{c: table[c].astype("category") for c in _IDS if c in table}).reset_index(drop=True)
