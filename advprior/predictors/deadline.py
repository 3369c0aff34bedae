"""``max_minutes``: when a fit must be over, with all that belongs to it.

Encoding, the forwards of frozen layers and every stage of tuning share one deadline. What can stop early does (an
epoch, where validation then decides what is kept); what cannot be left half done is refused as soon as its first part
tells that it will not end in time.
"""

from __future__ import annotations

import time

from advprior.store.errors import AdvpriorError
from advprior.store.progress import Progress, duration

MEASURED = 3.0  # seconds of a loop that tell how long the rest will take


class Deadline:
    """The end of a fit's time.

    Parameters
    ----------
    minutes : float, optional
        From now on; no end without it.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self.minutes = minutes
        self._end = float("inf") if minutes is None else time.monotonic() + 60 * minutes

    @property
    def left(self) -> float:
        """Seconds left."""
        return self._end - time.monotonic()

    def require(self, progress: Progress, what: str) -> None:
        """Refuse a loop that will not end in time.

        Raises
        ------
        AdvpriorError
            ``PRI019``.
        """
        left = progress.left()
        if self.minutes is None or left is None:
            return
        if (left > self.left and progress.elapsed >= MEASURED) or (self.left <= 0 and progress.done < progress.total):
            raise AdvpriorError(
                "PRI019",
                "the fit would take longer than max_minutes",
                where=what,
                actual=f"about {duration(left)} more for this part, by its first {progress.done:,} of "
                f"{progress.total:,}; {duration(max(self.left, 1.0))} of {self.minutes:g} min left",
                expected="that all of the fit ends within max_minutes",
                fix="raise max_minutes, or make less: fewer users, fewer layers, a shorter context",
            )

    def part(self, stages: int) -> float | None:
        """Seconds for the next of so many stages, which share what is left alike; None without an end."""
        return None if self.minutes is None else max(self.left, 0.0) / max(stages, 1)
