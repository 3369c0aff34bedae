"""Columns as databases and writers unload them, in canonical types: nothing is lost, and what would be stays."""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from advprior.data.conversion_types import canonical_column
from tests.advprior.data.own_tables import refused, run, write_own


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("user_id", pd.Series([2**63 + 1, 7], dtype="uint64"), ["9223372036854775809", "7"]),
        ("user_id", pd.Series([b"m\xc3\xbc", None]), ["mü", None]),
        ("user_id", pd.Series([uuid.UUID(int=7), uuid.UUID(int=8)]), [str(uuid.UUID(int=7)), str(uuid.UUID(int=8))]),
        ("ad_id", pd.Series([b"\xff" * 16]), ["ffffffff-ffff-ffff-ffff-ffffffffffff"]),
        ("advertiser_id", pd.Categorical([3, None, 3]), ["3", None, "3"]),
        ("advertiser_id", pd.Categorical([2**60 + 1, None]), [str(2**60 + 1), None]),
        ("impression_id", pd.Series([2.0, 3.0]), [2, 3]),
        ("impression_id", pd.Series([str(uuid.UUID(int=i)) for i in (9, 2)]), [0, 1]),
        ("slate_id", pd.Series([2**64 - 1, 0, 2**64 - 1], dtype="uint64"), [0, 1, 0]),
        ("label", pd.Series(["1", "0"]), [1, 0]),
        ("label", pd.array([True, False], dtype="boolean"), [1, 0]),
        ("value", pd.Series([True, False]), [1.0, 0.0]),
        ("profile_height", pd.Series([1.75, None, 2.0]), ["1.75", None, "2"]),
        ("profile_member", pd.Series([True, None], dtype=object), ["yes", None]),
        ("profile_born", pd.Series([dt.date(2000, 2, 1), None]), ["2000-02-01", None]),
        ("profile_seen", pd.Series(pd.to_datetime(["2024-01-01T05:00Z"])), ["2024-01-01T05:00:00+00:00"]),
        ("context_price", pd.Series([Decimal("0.5"), Decimal("2")]), [0.5, 2.0]),
        ("context_rank", pd.array([4, 2], dtype="Int64"), [4.0, 2.0]),
        ("label_time", pd.Series([pd.NaT], dtype="datetime64[us]"), [None]),
        ("arrived", pd.Series([None], dtype=object), [None]),
        ("timestamp", pd.Series([dt.date(9999, 12, 31)]), [pd.Timestamp("9999-12-31", tz="UTC", unit="us")]),
    ],
)
def test_what_writers_make_of_a_column_is_undone(name, values, expected):
    made = canonical_column(name, pd.Series(values), "UTC")
    assert [None if value is None or value is pd.NaT else value for value in made] == expected


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("slate_id", [{"a": 1}, {"a": 2}]),
        ("impression_id", [1.5, 2.0]),
        ("impression_id", pd.array([1, None], dtype="Int64")),
        ("label", ["yes", "no"]),
        ("user_id", [b"\xff", b"\xfe"]),
        ("user_id", [True, False]),
        ("context_x", [[1], [2]]),
        ("timestamp", ["2024-01-01", "2024-01-02"]),
    ],
)
def test_what_would_be_lost_stays_for_the_check_to_report(name, values):
    own = pd.Series(values)
    pd.testing.assert_series_equal(canonical_column(name, own, None), own)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1))
def test_rows_share_an_unsigned_id_after_the_conversion_exactly_if_before(ids):
    made = canonical_column("slate_id", pd.Series(np.array(ids, dtype="uint64")), None)
    assert made.dtype == np.int64
    assert (made >= 0).all()
    assert [made.tolist().index(i) for i in made] == [ids.index(i) for i in ids]


def test_only_ids_no_name_and_no_category(tmp_path, tables, capsys):
    for name, column in (("advertisers", "name"), ("ads", "category"), ("events", "category")):
        tables[name] = tables[name].drop(columns=column)
    mapping = write_own(tmp_path / "own", tables)
    code, _, err = run(capsys, "--mapping", mapping, "--out", tmp_path / "out")
    assert code == 0
    assert "advertisers: no names" in err
    assert "ads: no category, so all of them are of one, 'all'" in err
    assert set(pd.read_parquet(tmp_path / "out/events.parquet")["category"]) == {"all"}


def test_numbers_that_no_feature_holds(tmp_path, tables, capsys):
    tables["events"].loc[3, "value"] = 1e300
    tables["impressions"]["context_placement"] = np.where(np.arange(len(tables["impressions"])) == 5, np.inf, 1.0)
    mapping = write_own(tmp_path / "own", tables)
    parts = ("events.value: infinite, or beyond 1e+29", "1e+300", "[1 row: 3]", "context_placement", "[1 row: 5]")
    refused(capsys, tmp_path, mapping, "DAT013", *parts)


@pytest.mark.parametrize(
    "value", [pd.Timestamp("2024-01-01", tz="UTC"), b"\xff\x00", pd.Timedelta(hours=1), dt.date(2024, 1, 1)]
)
def test_context_that_no_request_can_bring(tmp_path, tables, capsys, value):
    tables["impressions"]["context_placement"] = [value] * len(tables["impressions"])
    parts = ("context_placement", "a number, a flag or text")
    refused(capsys, tmp_path, write_own(tmp_path / "own", tables), "DAT004", *parts)


def test_names_that_differ_in_case_only(tmp_path, tables, capsys):
    mapping = write_own(tmp_path / "own", tables)
    raw = yaml.safe_load(mapping.read_text())
    raw["tables"]["users"]["profile"]["Age"] = "where"
    mapping.write_text(yaml.safe_dump(raw))
    refused(capsys, tmp_path, mapping, "DAT015", "users.profile_age", "upper and lower case")


def test_ids_that_no_request_can_hold(tmp_path, tables, capsys):
    for table in tables.values():
        if "user_id" in table:
            table["user_id"] = table["user_id"].replace("u000", "x" * 1025)
    refused(capsys, tmp_path, write_own(tmp_path / "own", tables), "DAT021", "users.user_id: longer than 1,024")


@pytest.mark.parametrize("first", ["lacks a column", "is empty", "has whole numbers"])
def test_the_first_part_of_a_folder_does_not_decide_for_all(tmp_path, tables, capsys, first):
    mapping = write_own(tmp_path / "own", tables)
    file = tmp_path / "own" / "events.parquet"
    events = pd.read_parquet(file)
    file.unlink()
    file.mkdir()
    head, rest = events.head(5), events.iloc[5:]
    head = {
        "lacks a column": head.drop(columns="category"),
        "is empty": head.head(0),
        "has whole numbers": head.assign(spent=range(5)),
    }[first]
    head.to_parquet(file / "0.parquet", index=False)
    rest.to_parquet(file / "1.parquet", index=False)
    code, _, err = run(capsys, "--mapping", mapping, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    made = pd.read_parquet(tmp_path / "out" / "events.parquet")
    assert len(made) == len(head) + len(rest)
    assert made["category"].tail(len(rest)).tolist() == rest["category"].tolist()
    assert made["value"].tail(len(rest)).tolist() == rest["spent"].tolist()
