"""The job of `rank frame` with polars' `join_asof` in the place of Feast: what the frame's cost is held against.

    python -m benchmarks.scale.frame_polars TABLES REPO OUT

The same rows, joins, gathered counts and priors, segments and files, without checks or a manifest. Polars joins; what
is gathered by pointer afterwards is gathered by the same functions, part by part.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import polars as pl

from advprior.store.contract import (
    AD_ID,
    AD_STATS_VIEW,
    ADVERTISER_ID,
    CATALOG_VERSION,
    CATEGORY,
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    HISTORY_ROW,
    IMPRESSION_ID,
    PRIOR_ROW,
    SLATE_ID,
    SNAPSHOT,
    TABLE_FILE,
    TIMESTAMP,
    USER_HISTORY_VIEW,
    USER_ID,
    USER_PROFILE_VIEW,
    prior_view,
)
from advprior.store.tables import load_time_plan
from benchmarks.scale.frame_world import SEEN
from ranking.frame.columns import HistoryColumns, PriorColumns, Shown, clock_columns
from ranking.frame.rows import PART_ROWS, split_of
from ranking.frame.views import view_folder

TTL = "14d"


def impressions(tables: Path) -> pl.DataFrame:
    """The frame's rows, sorted, with what their user never had before."""
    plan, events = load_time_plan(tables), pl.scan_parquet(tables / "events.parquet")
    rows = pl.scan_parquet(tables / "impressions.parquet").filter(
        pl.col(TIMESTAMP).is_between(plan.finetune_end, plan.end, closed="left")
    )
    rows = rows.join(pl.scan_parquet(tables / "ads.parquet").select(AD_ID, CATEGORY), on=AD_ID, how="left")
    for name, keys in (
        ("segment_never_advertiser", [USER_ID, ADVERTISER_ID]),
        ("segment_never_ad", [USER_ID, ADVERTISER_ID, CATEGORY]),
    ):
        first = events.group_by(keys).agg(pl.col(TIMESTAMP).min().alias("earliest"))
        never = (pl.col("earliest") >= pl.col(TIMESTAMP)).fill_null(True).alias(name)
        rows = rows.join(first, on=keys, how="left").with_columns(never).drop("earliest")
    return rows.sort(TIMESTAMP, SLATE_ID, IMPRESSION_ID).collect()


def as_of(rows: pl.DataFrame, repo: Path) -> pl.DataFrame:
    """Every view's scalars and pointers: the newest row not later than the impression, within its time to live."""
    views = {USER_PROFILE_VIEW: USER_ID, USER_HISTORY_VIEW: USER_ID, AD_STATS_VIEW: AD_ID}
    for view, key in (views | {prior_view(name): USER_ID for name in SEEN}).items():
        path = view_folder(repo, view) / TABLE_FILE
        kinds = pl.read_parquet_schema(path)
        left_out = (CREATED_TIMESTAMP, CATALOG_VERSION)
        names = [name for name, kind in kinds.items() if not isinstance(kind, pl.List) and name not in left_out]
        right = pl.read_parquet(path, columns=names).sort(EVENT_TIMESTAMP)
        others = [name for name in names if name not in (key, EVENT_TIMESTAMP)]
        right = right.rename({name: f"{view}__{name}" for name in others})
        rows = rows.join_asof(
            right,
            left_on=TIMESTAMP,
            right_on=EVENT_TIMESTAMP,
            by=key,
            strategy="backward",
            tolerance=None if view == USER_PROFILE_VIEW else TTL,
            check_sortedness=False,
        ).drop(EVENT_TIMESTAMP, strict=False)
    return rows


def gathered(part: pl.DataFrame, history: HistoryColumns, priors: dict[str, PriorColumns], split: Any) -> pl.DataFrame:
    """A part of the frame with the counts and priors behind its pointers."""

    def pointer(name: str) -> Any:
        return part[name].fill_null(-1).to_numpy()

    moments = part[TIMESTAMP].dt.replace_time_zone(None).to_numpy()
    ads, advertisers, categories = (
        part[name].cast(pl.Categorical).to_pandas() for name in (AD_ID, ADVERTISER_ID, CATEGORY)
    )
    columns: dict[str, Any] = {"split": split} | clock_columns(moments)
    for group in history.of(pointer(f"{USER_HISTORY_VIEW}__{HISTORY_ROW}"), ads, moments).values():
        columns |= group
    for name, prior in priors.items():
        snapshot = part[f"{prior_view(name)}__{SNAPSHOT}"].dt.replace_time_zone(None).to_numpy()
        shown = Shown(advertisers, categories, moments)
        columns |= prior.of(pointer(f"{prior_view(name)}__{PRIOR_ROW}"), snapshot.astype("datetime64[us]"), shown)[0]
    return part.with_columns(**{name: pl.Series(values) for name, values in columns.items()})


def main() -> None:
    tables, repo, out = map(Path, sys.argv[1:])
    rows = impressions(tables)
    if out.name == "rows":  # the cost of everything before the join
        return
    rows = as_of(rows, repo)
    plan = load_time_plan(tables)
    split = split_of(rows[TIMESTAMP].dt.epoch("us").to_numpy(), plan)
    history, priors = HistoryColumns.open(repo), {name: PriorColumns.open(repo, name) for name in SEEN}
    out.mkdir()
    for number, start in enumerate(range(0, len(rows), PART_ROWS)):
        part = gathered(rows.slice(start, PART_ROWS), history, priors, split[start : start + PART_ROWS])
        floats = part.with_columns(pl.col(pl.Float64).cast(pl.Float32)).fill_nan(None)
        floats.write_parquet(out / f"part-{number:05d}.parquet", compression="snappy")


if __name__ == "__main__":
    main()
