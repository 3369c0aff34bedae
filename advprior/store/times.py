"""Moments as microseconds since 1970 UTC: whole numbers, so that "strictly before" is exact everywhere."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from advprior.store.arrays import Int
from advprior.store.contract import ARRIVED, TIMESTAMP

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
    snapshot changes nothing at or before it.

    >>> import pandas as pd
    >>> at = pd.to_datetime(["1970-01-02", "1970-01-02"], utc=True)
    >>> late = pd.to_datetime(["1970-01-03", None], utc=True)
    >>> counting_times(pd.DataFrame({"timestamp": at, "arrived": late})).tolist() == [2 * DAY_US, DAY_US]
    True
    """
    happened = micros(events[TIMESTAMP])
    if ARRIVED not in events:
        return happened
    # a missing time is the smallest integer
    return np.maximum(happened, micros(events[ARRIVED]))


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
