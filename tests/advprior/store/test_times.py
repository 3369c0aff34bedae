"""From when an event counts: never before it is known of, in its order, and whatever comes later."""

from __future__ import annotations

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from advprior.store.times import as_datetimes, counting_times

_ROWS = st.lists(
    st.tuples(st.sampled_from("uv"), st.integers(0, 6), st.one_of(st.none(), st.integers(0, 4))),
    min_size=1,
    max_size=12,
)


def events_of(rows: list[tuple[str, int, int | None]]) -> pd.DataFrame:
    """User, time and how much later the row arrived, in some unit."""
    time = np.array([happened for _, happened, _ in rows], np.int64) * 1000
    late = np.array([-1 if delay is None else delay for _, _, delay in rows], np.int64) * 1000
    at = [pd.Series(pd.DatetimeIndex(as_datetimes(column)).tz_localize("UTC")) for column in (time, time + late)]
    return pd.DataFrame({"user_id": [user for user, *_ in rows], "timestamp": at[0], "arrived": at[1].where(late >= 0)})


@given(_ROWS, st.integers(0, 10_000))
def test_what_counts_later_changes_nothing_before(rows: list[tuple[str, int, int | None]], moment: int) -> None:
    events = events_of(rows)
    times = counting_times(events)
    assert np.array_equal(counting_times(events[times < moment]), times[times < moment])


@given(_ROWS)
def test_events_keep_their_order_and_those_of_one_time_stay_together(rows: list[tuple[str, int, int | None]]) -> None:
    events = events_of(rows)
    times = counting_times(events)
    happened, arrived = (events[name].to_numpy("datetime64[us]").astype(np.int64) for name in ("timestamp", "arrived"))
    least = np.where(events["arrived"].isna(), happened, np.maximum(happened, arrived))
    assert ((times >= least) & (times < least + len(rows))).all()
    user = events["user_id"].to_numpy()
    together = (user[:, None] == user) & (least[:, None] == least)
    assert np.array_equal((times[:, None] < times)[together], (happened[:, None] < happened)[together])
