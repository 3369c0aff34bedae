"""Segments against small frames written out by hand."""

import numpy as np
import pandas as pd

from ranking.evidence.segments import segments_of


def rows(**columns):
    n = len(next(iter(columns.values())))
    base = {
        "user_id": list("aabbccdd")[:n],
        "advertiser_id": list("xyxyxyxz")[:n],
        "timestamp": pd.date_range("2024-01-01", periods=n, tz="UTC"),
    }
    return pd.DataFrame({**base, **columns})


def test_each_segment_by_hand():
    found = segments_of(
        rows(
            segment_never_ad=[True, False] * 4,
            activity_occasions_all=[5, 9, 1, 9, 7, 7, 8, 8],  # first seen: a 5, b 1, c 7, d 8
            ad_advertiser_purchases_all=[80, 19, 0, 0, 0, 0, 0, 1],  # first seen: x 80, y 19, z 1
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
