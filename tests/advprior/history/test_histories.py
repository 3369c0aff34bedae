"""Histories are strictly before, occasions are ties, and targets equal a brute-force loop."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advprior.history.catalog import Catalog
from advprior.history.histories import Histories, build_histories, profile_text, recode
from advprior.history.targets import dense, first_occasion, next_advertisers, quality
from advprior.store.errors import AdvpriorError
from tests.tiny import tiny_tables


def histories_of(events: list[list[tuple[int, int]]]) -> Histories:
    """Histories from [(time, advertiser), ...] a user."""
    rows = [sorted(set(user)) for user in events]
    flat = [row for user in rows for row in user]
    return Histories(
        tuple(f"u{i}" for i in range(len(rows))),
        ("",) * len(rows),
        np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64),
        np.asarray([t for t, _ in flat], np.int64),
        np.asarray([a for _, a in flat], np.int64),
    )


EVENTS = st.lists(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 4)), max_size=12), min_size=1, max_size=5)


@settings(max_examples=80, deadline=None)
@given(EVENTS, st.integers(0, 12), st.lists(st.tuples(st.integers(0, 4), st.integers(-5, 60)), min_size=1, max_size=8))
def test_targets_equal_a_loop(events: list, horizon: int, points: list) -> None:
    histories = histories_of(events)
    user = np.asarray([u % len(events) for u, _ in points], np.int64)
    after = np.asarray([t for _, t in points], np.int64)
    offsets, advertiser = next_advertisers(histories, user, after, horizon)
    first_offsets, first = next_advertisers(histories, user, after, first_occasion(histories, user, after, horizon))
    for p in range(len(points)):
        within = [(t, a) for t, a in events[user[p]] if after[p] < t <= after[p] + horizon]
        assert advertiser[offsets[p] : offsets[p + 1]].tolist() == sorted({a for _, a in within})
        expected = sorted({a for t, a in within if t == min(within)[0]})
        assert first[first_offsets[p] : first_offsets[p + 1]].tolist() == expected


def test_first_targets_by_hand() -> None:
    """Two at the same first time share; what comes later in the horizon does not count; nothing is nothing."""
    histories = histories_of([[(1, 0), (5, 3), (5, 1), (6, 2)]])
    user = np.zeros(4, np.int64)
    after = np.asarray([1, 5, 6, 0])
    offsets, first = next_advertisers(histories, user, after, first_occasion(histories, user, after, 7))
    assert [first[a:b].tolist() for a, b in pairwise(offsets)] == [[1, 3], [2], [], [0]]


def test_many_users_over_many_years() -> None:
    """User and time in one 64-bit key of microseconds overflow from some 20,000 users over 14 years."""
    year, users = 365 * 86_400_000_000, 60_000
    offsets = np.arange(users + 1, dtype=np.int64) * 2
    time = np.tile(np.asarray([0, 14 * year], np.int64), users)
    histories = Histories(("",) * users, ("",) * users, offsets, time, np.tile(np.asarray([0, 1], np.int64), users))
    user = np.arange(users, dtype=np.int64)
    offsets, advertiser = next_advertisers(histories, user, np.zeros(users, np.int64), 15 * year)
    assert np.diff(offsets).tolist() == [1] * users
    assert (advertiser == 1).all()
    offsets, _ = next_advertisers(histories, user, np.zeros(users, np.int64), 13 * year)
    assert (offsets == 0).all()


@settings(max_examples=50, deadline=None)
@given(EVENTS, st.integers(0, 45))
def test_before_is_strict(events: list, cutoff: int) -> None:
    cut = histories_of(events).before(cutoff)
    for user, rows in enumerate(events):
        part = cut.rows(user)
        found = list(zip(cut.time[part].tolist(), cut.advertiser[part].tolist(), strict=True))
        assert found == sorted({(t, a) for t, a in rows if t < cutoff})


def test_histories_keep_users_without_events_and_drop_events_of_nobody() -> None:
    tables = tiny_tables(users=5)
    catalog = Catalog.from_table(tables["advertisers"])
    events = tables["events"].query("user_id != 'u003'")
    histories = build_histories(tables["users"], events, catalog)
    assert histories.users == tuple(sorted(tables["users"].user_id))
    assert histories.rows(3) == slice(histories.offsets[3], histories.offsets[3])
    known = events.dropna(subset=["advertiser_id"]).drop_duplicates(["user_id", "timestamp", "advertiser_id"])
    assert len(histories.time) == len(known)


def test_profile_leaves_out_what_is_missing() -> None:
    users = pd.DataFrame({"user_id": ["a", "b"], "profile_age": ["18-34", None], "profile_home_town": [None, np.nan]})
    assert profile_text(users) == ["Age: 18-34", ""]
    assert profile_text(users[["user_id"]]) == ["", ""]  # tables without a profile column: a line each all the same


def test_quality_by_hand() -> None:
    log_probs = np.log(np.asarray([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.4, 0.3, 0.3]], np.float32))
    truth = dense(np.asarray([0, 1, 3, 3]), np.asarray([1, 0, 2]), 3)
    found = quality(log_probs, truth)
    assert found["points"] == 2  # the third point has no target
    assert found["nll"] == pytest.approx(-(np.log(0.3) + np.log(0.1) + np.log(0.8)) / 3, rel=1e-5)
    assert found["recall@5"] == 1.0


def test_catalog_refuses_an_advertiser_without_name() -> None:
    table = pd.DataFrame({"advertiser_id": ["a", "b"], "name": ["Tea", " "]})
    with pytest.raises(AdvpriorError, match=r"PRI001(.|\n)*found: +b\n"):
        Catalog.from_table(table)


def test_catalog_names_what_changed() -> None:
    old, new = Catalog(("a", "b"), ("Tea", "Bread")), Catalog(("a", "c"), ("Coffee", "Soap"))
    with pytest.raises(AdvpriorError) as caught:
        old.require_same(new, where="here", fix="refit")
    assert caught.value.code == "PRI002"
    assert "1 added (c)" in str(caught.value.actual)
    assert "1 removed (b)" in str(caught.value.actual)
    assert "1 renamed (a)" in str(caught.value.actual)


DETAILED = pd.DataFrame(
    [
        ("u", 1, "a", "Tea", 2.0, "Green tea"),
        ("u", 1, "a", "Bread", 3.0, "Bun"),
        ("u", 1, "a", "Tea", 2.0, "Green tea"),
        ("u", 2, "b", None, 1.0, None),
        ("v", 1, "b", "Tea", 4.0, " "),
        ("v", 3, "a", "Soap", 0.5, "Bar"),
    ],
    columns=["user_id", "day", "advertiser_id", "category", "value", "text"],
)


def detailed(events: pd.DataFrame) -> Histories:
    events = events.assign(timestamp=pd.to_datetime(events["day"], unit="D", utc=True))
    users = pd.DataFrame({"user_id": ["v", "u"], "profile_skin": ["oily", "dry"], "profile_eye": [None, "blue"]})
    return build_histories(users, events, Catalog(("a", "b"), ("Tea house", "Bakery")))


def test_what_is_known_of_a_row_by_hand() -> None:
    histories = detailed(DETAILED)
    assert histories.advertiser.tolist() == [0, 1, 1, 0]
    said = [histories.texts[code] if code >= 0 else None for code in histories.text]
    assert said == ["Bun; Green tea", None, None, "Bar"]
    assert histories.texts == ("Bar", "Bun; Green tea")  # what no row holds alone is not kept
    assert [histories.categories[c] if c >= 0 else None for c in histories.category] == ["Bread", None, "Tea", "Soap"]
    assert histories.value.tolist() == [7.0, 1.0, 4.0, 0.5]
    assert histories.value.dtype == np.float32
    assert histories.text.dtype == histories.category.dtype == np.int32
    assert histories.profile_fields == ("skin", "eye")
    assert histories.profile_levels == (("dry", "oily"), ("blue",))
    assert histories.profile_codes.tolist() == [[0, 0], [1, -1]]


def test_the_order_of_the_tables_does_not_matter() -> None:
    here = detailed(DETAILED)
    for seed in range(5):
        there = detailed(DETAILED.sample(frac=1, random_state=seed))
        for name in ("offsets", "time", "advertiser", "text", "category", "value", "profile_codes"):
            np.testing.assert_array_equal(getattr(here, name), getattr(there, name))
        assert (here.texts, here.categories) == (there.texts, there.categories)


def test_before_keeps_what_is_known_of_the_rows_it_keeps() -> None:
    day = 86_400_000_000
    cut = detailed(DETAILED).before(2 * day)
    assert cut.advertiser.tolist() == [0, 1]
    assert [cut.texts[c] if c >= 0 else None for c in cut.text] == ["Bun; Green tea", None]
    assert cut.value.tolist() == [7.0, 4.0]
    assert cut.profile_codes.tolist() == [[0, 0], [1, -1]]


def test_tables_without_detail_give_none() -> None:
    histories = detailed(DETAILED[["user_id", "day", "advertiser_id"]])
    assert len(histories.time) == 4
    assert len(histories.text) == len(histories.category) == len(histories.value) == 0
    assert (histories.texts, histories.categories) == ((), ())
    assert len(histories.before(0).text) == 0
    nobody = detailed(DETAILED.iloc[:0])
    assert len(nobody.time) == 0
    assert nobody.offsets.tolist() == [0, 0, 0]


def test_codes_of_other_levels() -> None:
    codes = np.asarray([[0], [1], [-1]], np.int32)
    assert recode(codes, ("x", "y"), ("y", "z")).tolist() == [[-1], [0], [-1]]
