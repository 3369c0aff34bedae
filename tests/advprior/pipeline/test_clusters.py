"""Semantic clusters: of what is written, of nothing from after finetune_end, refused where they cannot be made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_rand_score

from advprior.pipeline.clusters import ClusterOptions, build
from advprior.store.errors import AdvpriorError
from advprior.store.runs import new_run, read_manifest
from advprior.store.tables import load_tables, write_parquet
from tests.tiny import PLAN, tiny_tables

WORDS = ClusterOptions(base="lexical", number=4)
LATER = "a03/Soap"  # shown from finetune_end on, and its advertiser × category bought from then on
CUT = pd.Timestamp(PLAN.finetune_end)


def world() -> dict[str, pd.DataFrame]:
    """Products in words, whose first is that of the category; one ad comes later, with a department of its own."""
    tables = tiny_tables(users=12)
    ads, events, shown = (tables[name] for name in ("ads", "events", "impressions"))
    of_ad = events.advertiser_id + "/" + events.category
    tables["events"] = events[(events.timestamp >= CUT) | (of_ad != LATER)].assign(
        text=lambda table: table.category + " of the finest kind; " + table.category.str.lower() + " in a box",
        arrived=lambda table: table.timestamp + pd.Timedelta("1h"),
    )
    tables["impressions"] = shown[(shown.timestamp >= CUT) | (shown.ad_id != LATER)]
    tables["ads"] = ads.assign(department=np.where(ads.ad_id == LATER, "Drugstore", None))
    return {name: table.reset_index(drop=True) for name, table in tables.items()}


def write(folder: Path, tables: dict[str, pd.DataFrame], **facts: Any) -> Path:
    with new_run(folder, "data", config={}, inputs={}, key=str(folder)) as run:
        for name, table in tables.items():
            write_parquet(table, run.path / f"{name}.parquet")
        run.facts.update(time_plan=PLAN.to_json(), **facts)
    return folder


def clusters(tables: dict[str, pd.DataFrame]) -> pd.Series:
    return tables["ads"].set_index("ad_id").cluster


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clusters")
    assert build(write(folder / "tables", world()), folder / "words", WORDS)
    return folder


def test_what_reads_alike_is_in_one_cluster_and_all_else_is_as_it_was(made: Path) -> None:
    before, after = load_tables(made / "tables"), load_tables(made / "words")
    categories = after["ads"].category[after["ads"].ad_id != LATER]
    assert adjusted_rand_score(categories, after["ads"].cluster[categories.index]) > 0.5
    for name, table in before.items():
        pd.testing.assert_frame_equal(table, after[name].drop(columns="cluster", errors="ignore"))
    events = after["events"].assign(ad_id=lambda table: table.advertiser_id + "/" + table.category)
    assert events.cluster.tolist() == events.ad_id.map(clusters(after)).where(events.ad_id.notna(), None).tolist()
    facts = read_manifest(made / "words")["facts"]["clusters"]
    assert (facts["texts"], facts["later"], facts["shares"]["ads"]) == (len(before["ads"]) - 1, 1, 1.0)
    assert facts["words"]["encoder"] == "lexical"


def test_it_is_reused_until_an_option_or_the_tables_change(made: Path, tmp_path: Path) -> None:
    assert not build(made / "tables", made / "words", WORDS)
    assert build(made / "tables", tmp_path / "other", ClusterOptions(base="lexical", number=5))
    assert not clusters(load_tables(tmp_path / "other")).equals(clusters(load_tables(made / "words")))


def test_nothing_from_finetune_end_on_moves_a_cluster(made: Path, tmp_path: Path) -> None:
    """The tables as they were then have the same clusters; who comes later joins one."""
    past = world()
    past["ads"] = past["ads"][past["ads"].ad_id != LATER]
    for name in ("events", "impressions"):
        past[name] = past[name][past[name].timestamp < CUT]
    build(write(tmp_path / "past", past), tmp_path / "words", WORDS)
    then, now = clusters(load_tables(tmp_path / "words")), clusters(load_tables(made / "words"))
    pd.testing.assert_series_equal(then, now.drop(LATER))
    assert now[LATER] in set(then)


def test_the_placebo_has_the_same_sizes_and_says_nothing(made: Path, tmp_path: Path) -> None:
    build(made / "tables", tmp_path / "random", ClusterOptions(base="lexical", number=4, shuffled=True))
    ours, dealt = (clusters(load_tables(folder)).drop(LATER) for folder in (made / "words", tmp_path / "random"))
    assert sorted(ours.value_counts()) == sorted(dealt.value_counts())
    assert abs(adjusted_rand_score(ours, dealt)) < 0.4


def without_texts(tables: dict[str, pd.DataFrame]) -> None:
    tables["events"] = tables["events"].drop(columns="text")
    tables["ads"] = tables["ads"].drop(columns="department")


def with_a_column(tables: dict[str, pd.DataFrame]) -> None:
    tables["ads"] = tables["ads"].assign(cluster="1")


@pytest.mark.parametrize(
    ("change", "number", "code"),
    [(without_texts, 4, "DAT054"), (with_a_column, 4, "DAT053"), (lambda tables: None, 24, "DAT055")],
)
def test_what_cannot_be_clustered_is_refused_and_leaves_nothing(
    tmp_path: Path, change: Any, number: int, code: str
) -> None:
    tables = world()
    change(tables)
    with pytest.raises(AdvpriorError) as caught:
        build(write(tmp_path / "tables", tables), tmp_path / "out", ClusterOptions(base="lexical", number=number))
    assert caught.value.code == code
    assert [path.name for path in tmp_path.iterdir()] == ["tables"]


def test_tables_without_ads_are_refused(tmp_path: Path) -> None:
    tables = {name: table for name, table in world().items() if name in ("users", "advertisers", "events")}
    with pytest.raises(AdvpriorError, match="DAT045"):
        build(write(tmp_path / "tables", tables, purpose="predictor"), tmp_path / "out", WORDS)
