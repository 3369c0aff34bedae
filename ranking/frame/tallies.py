"""What the checks of a frame count, summed over its parts: a check speaks of the whole frame, not of a part."""

from __future__ import annotations

from collections.abc import Callable

from advprior.store.arrays import Bool
from ranking.frame import checks

Check = Callable[[str, int, int], checks.Finding | None]
CUTOFF, NEWER, UNLISTED, LOST = (
    checks.late_cutoffs,
    checks.newer_rows,
    checks.check_in_catalog,
    checks.check_rows_joined,
)


class Tallies:
    """Impressions that a check objects to, and all that it looked at, by check and view.

    Examples
    --------
    >>> import numpy as np
    >>> tallies = Tallies()
    >>> for part in ([True, False], [True]):
    ...     tallies.add(NEWER, "ad_stats", np.array(part))
    >>> tallies.findings()[0].message
    '2 of 3 impressions carry a row of `ad_stats` that is newer than they are'
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[Check, str], tuple[int, int]] = {}

    def add(self, check: Check, of: str, objected: Bool) -> None:
        """Count a part's impressions; of NaT nothing is later."""
        self._sum(check, of, int(objected.sum()), len(objected))

    def update(self, other: Tallies) -> None:
        """Add what others counted."""
        for (check, of), (objected, total) in other._counts.items():
            self._sum(check, of, objected, total)

    def findings(self) -> list[checks.Finding]:
        """What the checks say, in the order in which they were first counted."""
        results = (check(of, *counts) for (check, of), counts in self._counts.items())
        return [finding for finding in results if finding is not None]

    def _sum(self, check: Check, of: str, objected: int, total: int) -> None:
        before = self._counts.get((check, of), (0, 0))
        self._counts[check, of] = (before[0] + objected, before[1] + total)
