"""Moments as microseconds since 1970 UTC: whole numbers, so that "strictly before" is exact everywhere."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from advprior.store.arrays import Int
from advprior.store.contract import ARRIVED, TIMESTAMP, USER_ID

if TYPE_CHECKING:
    import pandas as pd

DAY_US = 86_400_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def micros(times: pd.Series[pd.Timestamp]) -> Int:
    """Microseconds since 1970 of a column of times with a zone, int64 [rows].

    >>> import pandas as pd
    >>> micros(pd.Series(pd.to_datetime(["1970-01-02"], utc=True))).tolist() == [DAY_US]
    True
    """
    return times.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy("datetime64[us]").astype(np.int64)


def counting_times(events: pd.DataFrame) -> Int:
    """Time from which each event counts, int64 [events]: when it happened, or when the log got to know of it if later.

    An event counts for a snapshot that is strictly later, in histories and in counts alike: so what arrives after a
    snapshot changes nothing at or before it. A log that is loaded once a night gives all of a user's events of a day
    one time of arrival: they keep their order, a microsecond apart, and those of one time stay of one time.

    >>> import pandas as pd
    >>> at = pd.to_datetime(["1970-01-02", "1970-01-01", "1970-01-02"], utc=True)
    >>> late = pd.to_datetime(["1970-01-03", "1970-01-03", None], utc=True)
    >>> events = pd.DataFrame({"user_id": "u", "timestamp": at, "arrived": late})
    >>> counting_times(events).tolist() == [2 * DAY_US + 1, 2 * DAY_US, DAY_US]
    True
    """
    import pandas as pd

    happened = micros(events[TIMESTAMP])
    if ARRIVED not in events:
        return happened
    counts = np.maximum(happened, micros(events[ARRIVED]))  # a missing time is the smallest integer
    if np.array_equal(counts, happened):
        return happened
    user = pd.factorize(events[USER_ID])[0]
    order = np.lexsort([happened, counts, user])
    later = np.diff(happened[order], prepend=0) != 0
    first = (np.diff(user[order], prepend=-1) != 0) | (np.diff(counts[order], prepend=0) != 0)
    first[:1] = True
    step = np.cumsum(later & ~first)
    rank = np.empty(len(order), np.int64)
    rank[order] = step - step[np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))]
    return counts + rank


def moment_us(moment: datetime) -> int:
    """Microseconds since 1970 of one moment with a zone, exactly.

    >>> moment_us(datetime(1970, 1, 2, tzinfo=UTC)) == DAY_US
    True
    """
    return (moment - _EPOCH) // timedelta(microseconds=1)


def as_datetimes(moments: Int) -> Any:
    """datetime64[us] of microseconds since 1970, without a copy.

    >>> str(as_datetimes(np.array([DAY_US]))[0])
    '1970-01-02T00:00:00.000000'
    """
    return moments.view("datetime64[us]")


def exact_times(moments: Int) -> pd.Series[pd.Timestamp]:
    """Microseconds since 1970 as a column of times in UTC; the largest integer is no time.

    >>> exact_times(np.array([DAY_US, np.iinfo(np.int64).max])).tolist()
    [Timestamp('1970-01-02 00:00:00+0000', tz='UTC'), NaT]
    """
    import pandas as pd

    times = np.where(moments == np.iinfo(np.int64).max, np.iinfo(np.int64).min, moments)  # which stands for NaT
    return pd.Series(pd.DatetimeIndex(times.view("datetime64[us]")).tz_localize("UTC"))
