"""The service's idea of now: the system's clock, or one set to another moment to replay a past day."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from advprior.store.times import moment_us


class Clock:
    """A clock that runs on from a given moment; without one, the system's.

    Parameters
    ----------
    start : datetime, optional
        With a zone. What the clock shows when it is made.

    Examples
    --------
    >>> clock = Clock(datetime(2018, 1, 1, tzinfo=UTC))
    >>> clock.now().year
    2018
    """

    def __init__(self, start: datetime | None = None) -> None:
        self._offset_us = 0 if start is None else moment_us(start) - time.time_ns() // 1000

    def now_us(self) -> int:
        """Microseconds since 1970, UTC."""
        return time.time_ns() // 1000 + self._offset_us

    def now(self) -> datetime:
        """The same as a time with a zone."""
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=self.now_us())

    def skew(self, by: timedelta) -> None:
        """Set the clock forward (or back), as a wrong machine clock would be."""
        self._offset_us += by // timedelta(microseconds=1)
