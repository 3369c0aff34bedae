"""Segments against small frames written out by hand."""

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from ranking.evidence.segments import fewest, in_tail, segments_of


def rows(**columns):
    n = len(next(iter(columns.values())))
    base = {
        "user_id": np.resize(list("aabbccdd"), n),
        "advertiser_id": np.resize(list("xyxyxyxz"), n),
        "timestamp": pd.date_range("2024-01-01", periods=n, tz="UTC"),
    }
    return pd.DataFrame({**base, **columns})


def test_each_segment_by_hand():
    found = segments_of(
        rows(
            segment_never_ad=[True, False] * 4,
            activity_occasions_all=[5, 9, 1, 9, 7, 7, 8, 8],  # first seen: a 5, b 1, c 7, d 8
            ad_advertiser_events_all=[80, 19, 0, 0, 0, 0, 0, 1],  # first seen: x 80, y 19, z 1
            profile_age=["18", "18", None, None, None, None, None, None],
            profile_home=[None, None, None, None, None, None, "yes", "yes"],
        )
    )
    assert found["never_ad"].tolist() == [True, False] * 4
    assert found["few_events"].tolist() == [False] * 2 + [True] * 2 + [False] * 4
    assert found["tail_advertiser"].tolist() == [False, True] * 4
    assert found["profile_known"].tolist() == [True, True, False, False, False, False, True, True]
    assert (found["profile_unknown"] == ~found["profile_known"]).all()


def test_what_splits_nothing_or_is_not_there_gives_no_segment():
    assert segments_of(rows(segment_never_ad=[True] * 8)).keys() == {"never_ad"}
    same = rows(activity_occasions_all=np.ones(8), profile_age=["18"] * 8)
    assert segments_of(same) == {}


def test_equal_counts_stay_together_and_a_segment_that_separates_nothing_is_left_out():
    """Four of five users with one event each are no quarter; their share is what the segment holds."""
    users = [f"u{i:02d}" for i in range(20)]

    def few(counts):
        table = rows(activity_occasions_all=counts, user_id=users, advertiser_id=["x"] * 20)
        return segments_of(table).get("few_events")

    assert few([1] * 16 + [2] * 4) is None
    assert few([1] * 6 + [2] * 14).sum() == 6
    assert few([0] * 4 + [1] * 14 + [9] * 2).sum() == 4  # 90 % up to the quantile, 20 % below it: nearer a quarter
    equal = rows(ad_advertiser_purchases_all=[3.0] * 8)
    assert "tail_advertiser" not in segments_of(equal)


@given(st.lists(st.integers(0, 5), min_size=2, max_size=40))
def test_segments_do_not_depend_on_the_order_of_rows(counts):
    count = np.array(counts, dtype=float)
    order = np.random.default_rng(0).permutation(len(count))
    for part in (fewest, in_tail):
        assert (part(count)[order] == part(count[order])).all()
        chosen = part(count)
        assert not set(count[chosen]) & set(count[~chosen])
        assert not chosen.any() or chosen.all() or count[chosen].max() < count[~chosen].min()
    assert fewest(count).mean() <= 0.5
