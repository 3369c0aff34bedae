"""Pairs of advertiser and category in the place of advertisers: known by hand, and nothing from after the cut-off."""

from __future__ import annotations

from datetime import UTC, datetime

import pandas as pd
import pytest

from advprior.data.pairs import build, pair_tables
from advprior.store.errors import AdvpriorError
from advprior.store.runs import read_manifest
from advprior.store.tables import load_tables
from tests.tiny import write_tiny

CUT = datetime(2024, 2, 1, tzinfo=UTC)


def small() -> dict[str, pd.DataFrame]:
    at = pd.to_datetime(["2024-01-01", "2024-01-02", "2024-03-01", "2024-03-02", "2024-01-03"], utc=True)
    return {
        "users": pd.DataFrame({"user_id": ["u"]}),
        "advertisers": pd.DataFrame({"advertiser_id": ["a", "b"], "name": ["Ann", "Bob"]}),
        "ads": pd.DataFrame({"ad_id": ["x"], "advertiser_id": ["a"], "category": ["Soap"]}),
        "events": pd.DataFrame(
            {
                "user_id": ["u"] * 5,
                "timestamp": at,
                "advertiser_id": ["a", "b", "b", "a", None],
                "category": ["Tea", "Tea", "Oil", "Soap", "Tea"],
            }
        ),
    }


def test_pairs_are_those_of_ads_and_those_bought_before_the_cut_off():
    made = pair_tables(small(), CUT)
    catalog = made["advertisers"]
    assert catalog["advertiser_id"].tolist() == ["a / Soap", "a / Tea", "b / Tea"]
    assert catalog["name"].tolist() == ["Soap, by Ann", "Tea, by Ann", "Tea, by Bob"]
    assert made["ads"]["advertiser_id"].tolist() == ["a / Soap"]
    # Bob's oil was first bought after the cut-off, the last event has no advertiser
    assert made["events"]["advertiser_id"].tolist() == ["a / Tea", "b / Tea", None, "a / Soap", None]


def test_tables_without_categories_have_no_pairs():
    tables = small()
    tables["events"] = tables["events"].drop(columns="category")
    with pytest.raises(AdvpriorError) as caught:
        pair_tables(tables, CUT)
    assert caught.value.code == "DAT050"


def test_a_run_folder_that_a_predictor_reads_and_that_is_reused(tmp_path):
    tables = write_tiny(tmp_path / "tables")
    assert build(tables, tmp_path / "pairs")
    assert not build(tables, tmp_path / "pairs")
    made = load_tables(tmp_path / "pairs", "users", "advertisers", "events")
    known = set(made["advertisers"]["advertiser_id"])
    assert known
    assert set(made["events"]["advertiser_id"].dropna()) <= known
    assert not (tmp_path / "pairs" / "impressions.parquet").exists()
    facts = read_manifest(tmp_path / "pairs", step="data")["facts"]
    assert facts["pairs"]
    assert facts["time_plan"] == read_manifest(tables)["facts"]["time_plan"]
