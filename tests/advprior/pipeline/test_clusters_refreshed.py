"""Clusters of a log that goes on: new ads, new advertisers, renamed ones; what was published of the past stays."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from advprior.pipeline.cluster_texts import read_texts
from advprior.pipeline.clusters import ClusterOptions, build
from advprior.store.contract import TimePlan
from advprior.store.runs import new_run, read_manifest
from advprior.store.tables import load_tables, write_parquet
from tests.ranking.frame.no_future import changed, comparable, published
from tests.tiny import PLAN, START, WEEK, tiny_tables

WORDS = ClusterOptions(base="lexical", number=4)
MONTH, NEXT = START + 13 * WEEK, START + 17 * WEEK
#: Bought before it had an ad, of an advertiser × category that `finetune_end` knew nothing of.
WINE = "a05/Wine"


def log_until(moment: Any, *, renamed: bool = False) -> dict[str, pd.DataFrame]:
    """Tables as they were at a moment: who is in them has a row from then on only."""
    tables = tiny_tables(users=8, weeks=17)
    ads, events, shown = (tables[name] for name in ("ads", "events", "impressions"))
    at = START + 11 * WEEK + np.arange(40) * (5 * WEEK / 40)
    users = [f"u{i % 8:03d}" for i in range(40)]
    wine = pd.DataFrame({"user_id": users, "timestamp": pd.to_datetime(at), "advertiser_id": "a05", "category": "Wine"})
    more = pd.DataFrame(
        [
            (WINE, "a05", "Wine", "Cellar", 15),
            ("a03/Soap again", "a03", "Soap", "Bathroom", 14),
            ("a03/Soap once more", "a03", "Soap", "Bathroom", 14),
            ("a90/Tea", "a90", "Tea", None, 14),
        ],
        columns=["ad_id", "advertiser_id", "category", "department", "week"],
    )
    first = pd.Series(START + more.week.to_numpy() * WEEK, index=more.ad_id)
    late = ads.ad_id == "a03/Soap"
    ads = pd.concat([ads.assign(department=np.where(late, "Drugstore", None)), more.drop(columns="week")])
    new_rows = shown[shown.timestamp >= START + 15 * WEEK].head(40)
    new_rows = new_rows.assign(
        ad_id=np.resize(more.ad_id, 40), advertiser_id=np.resize(more.advertiser_id, 40), slate_id=np.arange(40) + 10**6
    )
    new_rows = new_rows.assign(impression_id=np.arange(40) + 10**6)
    cut = pd.Timestamp(PLAN.finetune_end)
    events = events[(events.timestamp >= cut) | (events.advertiser_id + "/" + events.category != "a03/Soap")]
    shown = pd.concat([shown[(shown.timestamp >= cut) | (shown.ad_id != "a03/Soap")], new_rows])
    events = pd.concat([events, wine.assign(value=1.0)])
    events = events.assign(text=events.category + " of the finest kind")
    shown, events = (t[t.timestamp < moment].reset_index(drop=True) for t in (shown, events))
    known = ~ads.ad_id.isin(first.index[first > moment])
    names = tables["advertisers"].assign(text=lambda t: t.name + " since 1900")
    if renamed:
        names = names.assign(name=lambda t: "The grand " + t.name + " of all", text="Soap and bread")
    if moment > MONTH:
        names = pd.concat([names, pd.DataFrame({"advertiser_id": ["a90"], "name": ["Tea"], "text": [None]})])
    return tables | {
        "advertisers": names.reset_index(drop=True),
        "ads": ads[known].reset_index(drop=True),
        "events": events,
        "impressions": shown,
    }


def write(folder: Path, tables: dict[str, pd.DataFrame], plan: TimePlan = PLAN) -> Path:
    with new_run(folder, "data", config={}, inputs={}, key=f"{folder}{len(tables['events'])}") as run:
        for name, table in tables.items():
            write_parquet(table, run.path / f"{name}.parquet")
        run.facts.update(time_plan=plan.to_json())
    return folder


@pytest.fixture(scope="module")
def month(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("month")
    build(write(folder / "tables", log_until(MONTH)), folder / "clusters", WORDS)
    published(folder / "clusters", folder / "repo")
    return folder


def of_ads(folder: Path) -> pd.Series:
    return load_tables(folder)["ads"].set_index("ad_id").cluster


@pytest.mark.parametrize("keep", [True, False])
def test_a_month_later_nothing_of_the_past_is_another(month: Path, tmp_path: Path, keep: bool) -> None:
    """New ads and advertisers join a cluster, and no published feature changes."""
    tables = write(tmp_path / "tables", log_until(NEXT, renamed=keep))
    out = tmp_path / "clusters"
    if keep:
        shutil.copytree(month / "clusters", out)
    assert build(tables, out, WORDS, keep=keep)
    then, now = of_ads(month / "clusters"), of_ads(out)
    pd.testing.assert_series_equal(now[then.index], then)
    assert now[WINE] in set(then)
    assert now["a90/Tea"] in set(then)
    assert read_manifest(out)["facts"]["clusters"]["later"] == 3
    of_later = (read_texts(folder, PLAN.finetune_end).later for folder in (month / "tables", tables))
    then_text, now_text = (table.set_index("advertiser_id").text["a03 / Soap"] for table in of_later)
    assert (then_text == now_text) is not keep  # of its first ad, and of what its advertiser says now
    was, are = (load_tables(folder)["events"] for folder in (month / "clusters", out))
    pd.testing.assert_frame_equal(are[are.timestamp < MONTH].reset_index(drop=True), was)
    if keep:
        after, snapshot = comparable(published(out, tmp_path / "after")), START + 12 * WEEK
        names = changed(after, comparable(month / "repo"), snapshot + PLAN.lag)
        # the share of an advertiser is one of all that are listed today
        assert [name for name in names if "advertiser_log_share" not in name] == []


def test_clusters_stay_where_a_proposed_time_plan_moves_and_other_options_start_anew(
    month: Path, tmp_path: Path
) -> None:
    """Random groups too; an earlier time plan would let them tell of what comes after it."""
    dealt, out = replace(WORDS, shuffled=True), tmp_path / "clusters"
    build(month / "tables", out, dealt)
    then = of_ads(out)
    for weeks, stay in ((0, True), (2, True), (-1, False)):
        plan = replace(PLAN, finetune_end=PLAN.finetune_end + weeks * WEEK)
        tables = write(tmp_path / f"tables {weeks}", log_until(NEXT), plan)
        build(tables, out, dealt, keep=True)
        assert of_ads(out)[then.index].equals(then) is stay
        cutoff = plan.finetune_end if weeks < 0 else PLAN.finetune_end
        assert read_manifest(out)["facts"]["clusters"]["cutoff"] == cutoff.isoformat()
    build(tables, out, replace(WORDS, number=3), keep=True)
    assert of_ads(out).nunique() == 3
