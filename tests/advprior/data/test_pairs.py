"""Pairs of advertiser and category in the place of advertisers: known by hand, and nothing from after the cut-off."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advprior.data.pairs import MOST_PRODUCTS, build, pair_tables
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


def described() -> dict[str, pd.DataFrame]:
    """The same with departments and words of products."""
    tables = small()
    tables["ads"] = tables["ads"].assign(department="Drugstore")
    words = ["Green Tea", "Tea Bags", "Olive Oil", "Hand Soap", "Tea Bags"]
    tables["events"] = tables["events"].assign(department=["Food", "Food", "Food", "Food", "Food"], text=words)
    return tables


def test_texts_by_hand():
    """What no ad says is counted; soap was not bought before the cut-off, so nothing is written of its products."""
    catalog = pair_tables(described(), CUT)["advertisers"].set_index("advertiser_id")
    assert catalog["text"].to_dict() == {
        "a / Soap": "Drugstore, Soap",
        "a / Tea": "Food, Tea: Green Tea",
        "b / Tea": "Food, Tea: Tea Bags",
    }
    assert catalog["department"].tolist() == ["Drugstore", "Food", "Food"]
    assert not {"text", "department"} & set(pair_tables(small(), CUT)["advertisers"])


def test_the_products_bought_most_come_first_and_not_too_many():
    tables = described()
    bought = [f"Tea {i:02d}" for i in range(12) for _ in range(1 + 2 * (i == 11))]
    events = pd.DataFrame({"user_id": "u", "advertiser_id": "a", "category": "Tea", "text": bought})
    tables["events"] = events.assign(timestamp=pd.Timestamp(CUT) - pd.Timedelta("1d"))
    text = pair_tables(tables, CUT)["advertisers"].set_index("advertiser_id")["text"]["a / Tea"]
    assert text == f"Tea: {'; '.join(['Tea 11', *(f'Tea {i:02d}' for i in range(MOST_PRODUCTS - 1))])}"


def test_an_advertisers_own_text_stands_in_where_no_product_is_named():
    tables = described()
    tables["advertisers"] = tables["advertisers"].assign(text=["soaps and teas", None])
    texts = pair_tables(tables, CUT)["advertisers"].set_index("advertiser_id")["text"]
    assert texts["a / Soap"] == "Drugstore, Soap: soaps and teas"
    assert texts["a / Tea"] == "Food, Tea: Green Tea"


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), arrived=st.booleans())
def test_no_text_knows_of_events_at_the_cut_off_or_after_it(seed: int, arrived: bool):
    """Texts, departments and the pairs themselves are those of the tables without the later events."""
    rng, n = np.random.default_rng(seed), 60
    hours = pd.to_timedelta(rng.integers(-30, 30, n), "h")
    events = pd.DataFrame(
        {
            "user_id": "u",
            "timestamp": pd.Timestamp(CUT) + hours,
            "advertiser_id": rng.choice(["a", "b", None], n),
            "category": rng.choice(["Tea", "Oil", "Soap", None], n),
            "department": rng.choice(["Food", "Drugstore", " ", None], n),
            "text": rng.choice(["Green Tea", "Tea Bags", "Oil; cold", "", None], n),
        }
    )
    late = events["timestamp"] >= CUT
    if arrived:  # what the log got to know of later counts later
        events["arrived"] = events["timestamp"] + pd.to_timedelta(rng.integers(0, 20, n), "h")
        late |= events["arrived"] >= CUT
    tables = described() | {"events": events}
    whole = pair_tables(tables, CUT)["advertisers"]
    pd.testing.assert_frame_equal(whole, pair_tables(tables | {"events": events[~late]}, CUT)["advertisers"])


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
