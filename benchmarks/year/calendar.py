"""What happens on which day of the year: refits, faults, plants. The same things in a short year, closer together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Calendar:
    """Days from 0 on.

    Parameters
    ----------
    days : int
    week, month : int
        Days between two rankers, and between two predictors.
    kills : tuple of int
        On which the refresh is killed.
    schema, lift, drift : int
        From when on the log has more columns, the treatment gains, and requests come from another placement.
    corrupt : int
        On which a publication is damaged on the disk.
    bad_rankers : tuple of int
        On which a ranker of shuffled labels, and one of inverted labels, is offered.
    other_prior : int
        Of the refit with which the predictor becomes another one by mistake.
    """

    days: int
    week: int
    month: int
    kills: tuple[int, ...]
    schema: int
    lift: int
    drift: int
    corrupt: int
    bad_rankers: tuple[int, int]
    other_prior: int

    @classmethod
    def of(cls, days: int, rng: np.random.Generator) -> Calendar:
        """A calendar for so many days; those of the kills are drawn."""
        week, month = (7, 28) if days >= 2 * 28 else (4, 8)

        def at(share: float, every: int = 1) -> int:
            return max(every, round(share * days / every) * every)

        corrupt = at(0.55) + 1
        free = [day for day in range(2, days - 1) if day % week and day not in (corrupt, corrupt + 1)]
        kills = tuple(sorted(int(day) for day in rng.choice(free, 3, replace=False)))
        bad = at(0.3, week), at(0.65, week)
        other = (round(0.85 * days) - 1) // month * month
        return cls(days, week, month, kills, at(0.42), at(0.5), at(0.7), corrupt, bad, other)

    def trains(self, day: int) -> bool:
        """Whether a ranker is trained."""
        return day > 0 and day % self.week == 0

    def refits(self, day: int) -> bool:
        """Whether a predictor is fitted."""
        return day > 0 and day % self.month == 0
