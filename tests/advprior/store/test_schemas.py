"""Every way a table can be wrong: its code, its place, its rows; and that sound tables pass in silence."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pandas as pd
import pytest

from advprior.store.columns import schema
from advprior.store.contract import TABLES
from advprior.store.errors import AdvpriorError
from advprior.store.problems import PROBLEMS, TablesError
from advprior.store.schemas import validate_tables
from tests.tiny import PLAN, tiny_tables


@pytest.fixture
def tables() -> dict[str, pd.DataFrame]:
    made = tiny_tables(users=6, weeks=30)
    for name in ("events", "impressions"):
        made[name]["timestamp"] = made[name]["timestamp"].astype("datetime64[us, UTC]")
    return made


def problems(tables: dict[str, pd.DataFrame]) -> list[tuple[str, str, str, tuple[int, ...], int]]:
    with pytest.raises(TablesError) as caught:
        validate_tables(tables)
    return [(p.code, p.table, p.column, p.rows, p.count) for p in caught.value.problems]


def test_sound_tables_pass_without_a_word(tables):
    assert validate_tables(tables, plan=PLAN) == []


def test_the_schemas_are_pandera_schemas_that_accept_their_tables(tables):
    for name in TABLES:
        assert len(schema(name).validate(tables[name], lazy=True)) == len(tables[name])


def drop_timestamp(t):
    t["events"] = t["events"].drop(columns="timestamp")


def text_value(t):
    t["events"]["value"] = t["events"]["value"].astype(str)


def one_number_among_ids(t):
    t["users"].loc[2, "user_id"] = 7


def text_timestamps(t):
    t["impressions"]["timestamp"] = t["impressions"]["timestamp"].astype(str)


def another_zone(t):
    t["events"]["timestamp"] = t["events"]["timestamp"].dt.tz_convert("Europe/Berlin")


def numeric_profile(t):
    t["users"]["profile_age"] = 30.5


def missing_user(t):
    t["events"].loc[[1, 4], "user_id"] = None


def missing_time(t):
    t["events"].loc[[0], "timestamp"] = pd.NaT


def duplicate_user(t):
    t["users"] = pd.concat([t["users"], t["users"].iloc[[1, 3]]], ignore_index=True)


def duplicate_impression(t):
    t["impressions"].loc[5, "impression_id"] = 2


def no_ads(t):
    t["ads"] = t["ads"].iloc[:0]


def nameless(t):
    t["advertisers"].loc[[3], "name"] = None
    t["advertisers"].loc[5, "name"] = "  "


def naive_times(t):
    t["impressions"]["timestamp"] = t["impressions"]["timestamp"].dt.tz_localize(None)


def label_two(t):
    t["impressions"].loc[[8, 9], "label"] = 2


def unknown_advertiser(t):
    t["impressions"].loc[[7], "advertiser_id"] = "nobody"


def unknown_ad(t):
    t["impressions"].loc[[7], "ad_id"] = "no such ad"


def unknown_event_user(t):
    t["events"].loc[[3], "user_id"] = "stranger"


def unknown_event_advertiser(t):
    t["events"].loc[[6], "advertiser_id"] = "nobody"


def ad_of_nobody(t):
    t["ads"].loc[[1], "advertiser_id"] = "nobody"
    t["impressions"] = t["impressions"][t["impressions"]["ad_id"] != t["ads"].ad_id[1]].reset_index(drop=True)


def infinite_value(t):
    t["events"].loc[[2], "value"] = np.inf


def field_with_a_colon(t):
    t["users"] = t["users"].rename(columns={"profile_age": "profile_xdm:age"})


def two_underscores(t):
    t["impressions"] = t["impressions"].rename(columns={"context_placement": "context_page__slot"})


def slate_of_two_users(t):
    first, second = t["impressions"]["slate_id"].drop_duplicates()[:2]
    users = t["users"]["user_id"]
    t["impressions"].loc[t["impressions"]["slate_id"] == first, "user_id"] = users[0]
    t["impressions"].loc[t["impressions"]["slate_id"] == second, "user_id"] = users[1]
    t["impressions"]["slate_id"] = t["impressions"]["slate_id"].replace(second, first)


def time_that_says_never(t):
    t["events"].loc[[4], "timestamp"] = pd.Timestamp("9999-12-31", tz="UTC").as_unit("us")


def with_times(t):
    """Every optional column, sound."""
    day = pd.Timedelta(days=1)
    events, shown = t["events"], t["impressions"]
    t["users"]["known_from"] = events["timestamp"].min() - day
    t["ads"]["known_from"] = pd.Series(pd.NaT, t["ads"].index, dtype="datetime64[us, UTC]")
    events["arrived"] = (events["timestamp"] + day).where(events.index % 2 == 0)
    events["kind"] = "visit"
    shown["clicked"] = shown["label"]
    shown["label_time"] = (shown["timestamp"] + 7 * day).where(shown["label"] == 1)
    for table, column in ((t["users"], "known_from"), (events, "arrived"), (shown, "label_time")):
        table[column] = table[column].astype("datetime64[us, UTC]")


def arrived_early(t):
    with_times(t)
    t["events"].loc[[2, 4], "arrived"] = t["events"]["timestamp"] - pd.Timedelta(seconds=1)


def clicked_twice(t):
    with_times(t)
    t["impressions"].loc[[3], "clicked"] = 2


def row_of(t, label):
    return [int(np.flatnonzero(t["impressions"]["label"] == label)[0])]


def label_before_its_impression(t):
    with_times(t)
    t["impressions"].loc[row_of(t, 1), "label_time"] = t["impressions"]["timestamp"] - pd.Timedelta(seconds=1)


def label_too_late(t):
    with_times(t)
    t["impressions"].loc[row_of(t, 1), "label_time"] += pd.Timedelta(seconds=1)


def label_time_of_a_negative(t):
    with_times(t)
    t["impressions"].loc[row_of(t, 0), "label_time"] = t["impressions"]["timestamp"]


def naive_arrivals(t):
    with_times(t)
    t["events"]["arrived"] = t["events"]["arrived"].dt.tz_localize(None)


def ad_that_was_always_there(t):
    with_times(t)
    t["ads"].loc[[1], "known_from"] = pd.Timestamp("1900-01-01", tz="UTC").as_unit("us")


CASES = [
    (arrived_early, ("DAT018", "events", "arrived", (2, 4), 2)),
    (naive_arrivals, ("DAT009", "events", "arrived", (), 0)),
    (ad_that_was_always_there, ("DAT017", "ads", "known_from", (1,), 1)),
    (clicked_twice, ("DAT010", "impressions", "clicked", (3,), 1)),
    (field_with_a_colon, ("DAT015", "users", "profile_xdm:age", (), 0)),
    (two_underscores, ("DAT015", "impressions", "context_page__slot", (), 0)),
    (slate_of_two_users, ("DAT016", "impressions", "slate_id", (8, 9, 10, 11, 12), 8)),
    (time_that_says_never, ("DAT017", "events", "timestamp", (4,), 1)),
    (drop_timestamp, ("DAT003", "events", "timestamp", (), 0)),
    (text_value, ("DAT004", "events", "value", (), 0)),
    (text_timestamps, ("DAT004", "impressions", "timestamp", (), 0)),
    (another_zone, ("DAT004", "events", "timestamp", (), 0)),
    (numeric_profile, ("DAT004", "users", "profile_age", (), 0)),
    (one_number_among_ids, ("DAT004", "users", "user_id", (), 0)),
    (missing_user, ("DAT005", "events", "user_id", (1, 4), 2)),
    (missing_time, ("DAT005", "events", "timestamp", (0,), 1)),
    (duplicate_user, ("DAT006", "users", "user_id", (6, 7), 2)),
    (duplicate_impression, ("DAT006", "impressions", "impression_id", (5,), 1)),
    (no_ads, ("DAT007", "ads", "", (), 0)),
    (nameless, ("DAT008", "advertisers", "name", (3, 5), 2)),
    (naive_times, ("DAT009", "impressions", "timestamp", (), 0)),
    (label_two, ("DAT010", "impressions", "label", (8, 9), 2)),
    (unknown_ad, ("DAT011", "impressions", "ad_id", (7,), 1)),
    (unknown_event_user, ("DAT011", "events", "user_id", (3,), 1)),
    (unknown_event_advertiser, ("DAT011", "events", "advertiser_id", (6,), 1)),
    (ad_of_nobody, ("DAT011", "ads", "advertiser_id", (1,), 1)),
    (infinite_value, ("DAT013", "events", "value", (2,), 1)),
]


LABEL_CASES = [
    (label_before_its_impression, ("DAT018", 1)),
    (label_too_late, ("DAT019", 1)),
    (label_time_of_a_negative, ("DAT019", 0)),
]


@pytest.mark.parametrize(("damage", "expected"), LABEL_CASES, ids=[damage.__name__ for damage, _ in LABEL_CASES])
def test_a_label_comes_about_within_its_delay(tables, damage, expected):
    damage(tables)
    code, label = expected
    assert problems(tables) == [(code, "impressions", "label_time", tuple(row_of(tables, label)), 1)]


def test_optional_columns_pass_and_another_delay_lets_later_labels_pass(tables):
    label_too_late(tables)
    assert validate_tables(tables, plan=PLAN, label_delay=timedelta(days=8)) == []


def test_rows_earlier_than_their_user_or_ad_warn_with_their_count(tables):
    with_times(tables)
    user, shown = tables["events"]["user_id"][0], tables["impressions"]
    tables["users"].loc[tables["users"]["user_id"] == user, "known_from"] = shown["timestamp"].max()
    tables["ads"]["known_from"] = shown["timestamp"].min()
    early = sum(
        int((t["timestamp"][t["user_id"] == user] < shown["timestamp"].max()).sum()) for t in (tables["events"], shown)
    )
    assert validate_tables(tables) == [
        f"users.known_from: {early:,} rows of events and impressions are earlier than it; "
        "until then they are users without features and priors"
    ]


@pytest.mark.parametrize(("damage", "expected"), CASES, ids=[damage.__name__ for damage, _ in CASES])
def test_one_problem_is_one_error_with_its_code_and_place(tables, damage, expected):
    damage(tables)
    assert problems(tables) == [expected]
    with pytest.raises(AdvpriorError) as caught:
        validate_tables(tables, where="my tables", fix="correct them")
    assert caught.value.code == expected[0]
    assert PROBLEMS[expected[0]] in str(caught.value)
    assert ".".join(part for part in expected[1:3] if part) in str(caught.value)
    assert "my tables" in str(caught.value)
    assert "correct them" in str(caught.value)


def test_unknown_advertiser_in_impressions_is_told_with_its_value_and_row(tables):
    unknown_advertiser(tables)
    # it is not the ad's advertiser either, and both are true
    assert problems(tables) == [
        ("DAT011", "impressions", "advertiser_id", (7,), 1),
        ("DAT012", "impressions", "advertiser_id", (7,), 1),
    ]
    with pytest.raises(TablesError, match=r"(?s)DAT020.*not in advertisers: 'nobody' \[1 row: 7\]"):
        validate_tables(tables)


def test_an_impression_of_another_advertiser_than_its_ads_is_refused(tables):
    shown = tables["impressions"]
    other = "a00" if shown.advertiser_id[4] != "a00" else "a01"
    shown.loc[4, "advertiser_id"] = other
    assert problems(tables) == [("DAT012", "impressions", "advertiser_id", (4,), 1)]


def test_all_problems_come_at_once(tables):
    for damage in (drop_timestamp, duplicate_user, nameless, label_two, unknown_ad):
        damage(tables)
    with pytest.raises(TablesError) as caught:
        validate_tables(tables)
    assert {p.code for p in caught.value.problems} == {"DAT003", "DAT006", "DAT008", "DAT010", "DAT011"}
    assert caught.value.code == "DAT020"
    for place in ("events.timestamp", "users.user_id", "advertisers.name", "impressions.label", "impressions.ad_id"):
        assert place in str(caught.value)


def test_only_the_first_rows_are_shown_and_all_are_counted(tables):
    tables["impressions"]["label"] = np.int8(3)
    count = len(tables["impressions"])
    assert problems(tables) == [("DAT010", "impressions", "label", (0, 1, 2, 3, 4), count)]
    with pytest.raises(TablesError, match=rf"\[{count:,} rows: 0, 1, 2, 3, 4, …\]"):
        validate_tables(tables)


def test_times_outside_the_plan_and_empty_periods_only_warn(tables):
    tables["events"].loc[[0], "timestamp"] = pd.Timestamp(PLAN.start - timedelta(days=1))
    shown = tables["impressions"]
    tables["impressions"] = shown[shown["timestamp"] < PLAN.valid_end]
    warnings = validate_tables(tables, plan=PLAN)
    assert len(warnings) == 2
    assert "events.timestamp: 1 of" in warnings[0]
    assert "none in the test period" in warnings[1]


def test_equal_names_and_unknown_columns_warn(tables):
    tables["advertisers"].loc[1, "name"] = tables["advertisers"].name[0]
    tables["users"]["shoe_size"] = "42"
    warnings = validate_tables(tables)
    assert [w.split(":")[0] for w in warnings] == ["users", "advertisers.name"]
    assert "shoe_size" in warnings[0]


def test_many_broken_rows_are_reported_without_a_loop_over_them(tables):
    import time

    count = 300_000
    shown = tables["impressions"]
    big = shown.iloc[np.arange(count) % len(shown)].reset_index(drop=True)
    big["impression_id"] = np.arange(count)
    tables["impressions"] = big
    started = time.process_time()
    assert validate_tables(tables) == []
    big["advertiser_id"] = "nobody"
    big["label"] = np.int8(9)
    assert [p[4] for p in problems(tables)] == [count] * 2 + [count]
    assert time.process_time() - started < 30  # under one second; a Python loop over rows takes a minute and more


@pytest.mark.parametrize("name", ["ads", "impressions"])
def test_one_of_ads_and_impressions_alone_is_a_missing_table(tables, name):
    del tables[name]
    assert problems(tables) == [("DAT014", name, "", (), 0)]


@pytest.mark.parametrize("name", ["users", "advertisers", "events"])
def test_the_tables_of_a_predictor_are_all_needed(tables, name):
    for gone in ("ads", "impressions"):
        del tables[gone]
    assert validate_tables(tables) == []
    del tables[name]
    assert ("DAT014", name, "", (), 0) in problems(tables)


def test_an_empty_impressions_table_is_no_absent_one(tables):
    tables["impressions"] = tables["impressions"].iloc[:0]
    assert problems(tables) == [("DAT007", "impressions", "", (), 0)]
