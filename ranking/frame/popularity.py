"""Outcomes of impressions, their rates as of any moment, and how often each user answered.

An outcome, positive or negative, is complete once the label delay has passed since its impression. Rates are of
cohorts: impressions whose outcome is complete, and the positives among those. So a positive is not counted sooner than
the negatives beside it, and no rate exceeds one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import pandas as pd

from advprior.store.arrays import Bool, Float, Int
from advprior.store.contract import AD_ID, CLICKED, LABEL, TIMESTAMP, USER_ID
from advprior.store.times import DAY_US, micros
from ranking.frame.counts import CountsBefore, codes_of
from ranking.frame.snapshots import Scalars
from ranking.frame.streams import WINDOWS

_SMOOTHING = 20.0  # impressions' worth of the overall rate mixed into each rate


@dataclass(frozen=True)
class Outcomes:
    """Impressions: whose, of which ad, when they were shown, and their outcomes.

    Attributes
    ----------
    user, ad : int array [impressions]
        Places in their tables.
    shown, complete : int array [impressions]
        Microseconds since 1970: the impression, and when its outcome is complete.
    positive : bool array [impressions]
    clicked : bool array [impressions], optional
        None where the log has no clicks. A click counts from its impression's time.
    """

    user: Int
    ad: Int
    shown: Int
    complete: Int
    positive: Bool
    clicked: Bool | None

    @classmethod
    def of(cls, users: pd.DataFrame, ads: pd.DataFrame, impressions: pd.DataFrame, delay: timedelta) -> Outcomes:
        """From canonical tables; ``delay`` is how long after its impression an outcome is complete."""
        shown = micros(impressions[TIMESTAMP])
        return cls(
            codes_of(impressions[USER_ID], users[USER_ID]),
            codes_of(impressions[AD_ID], ads[AD_ID]),
            shown,
            shown + delay // timedelta(microseconds=1),
            (impressions[LABEL] == 1).to_numpy(),
            (impressions[CLICKED] == 1).to_numpy() if CLICKED in impressions else None,
        )

    def parts(self) -> dict[str, tuple[Any, Int]]:
        """What is counted of them, by name: which rows, and the time from which each of these counts."""
        whole = slice(None)
        parts = {
            "impressions": (whole, self.shown),
            "complete": (whole, self.complete),
            "positives": (self.positive, self.complete[self.positive]),
        }
        return parts | ({} if self.clicked is None else {"clicks": (self.clicked, self.shown[self.clicked])})


class Before(Protocol):
    """Rows per group strictly before a moment."""

    def before(self, moment: int) -> Int: ...


class Tally:
    """Impressions, complete outcomes, positives and clicks by group, before a moment.

    Parameters
    ----------
    counts : mapping of str to Before
        By the names of `Outcomes.parts`.
    """

    def __init__(self, counts: Mapping[str, Before]) -> None:
        self._counts = counts

    @classmethod
    def of(cls, outcomes: Outcomes, group: Int, size: int) -> Tally:
        """Of impressions by their group, 0 … size − 1; before any moment."""
        parts = outcomes.parts().items()
        return cls({name: CountsBefore(group[rows], times, size) for name, (rows, times) in parts})

    def within(self, moment: int, length: int | None) -> dict[str, Int]:
        """Counts of the last ``length`` microseconds before ``moment``, or of all time, by name."""
        return {
            name: count.before(moment) - (0 if length is None else count.before(moment - length))
            for name, count in self._counts.items()
        }


def rates_of(counts: Mapping[str, Int], totals: Mapping[str, int]) -> dict[str, Any]:
    """Smoothed rates: of positives among complete outcomes, and of clicks among impressions where there are clicks."""
    rates = {"rate": _smoothed("positives", "complete", counts, totals)}
    if "clicks" in counts:
        rates["click_rate"] = _smoothed("clicks", "impressions", counts, totals)
    return rates


def _smoothed(part: str, whole: str, counts: Mapping[str, Int], totals: Mapping[str, int]) -> Any:
    overall = totals[part] / max(totals[whole], 1)
    return (counts[part] + _SMOOTHING * overall) / (counts[whole] + _SMOOTHING)


def totals_of(counts: Mapping[str, Int]) -> dict[str, int]:
    """Sums over all groups, by name."""
    return {name: int(count.sum()) for name, count in counts.items()}


def rates_at(tally: Tally, moment: int, totals: Mapping[str, int]) -> dict[str, Float]:
    """How often each user answered what was shown, as of a snapshot: smoothed rates.

    Without them a column that tells users apart, a placebo's entropy for one, earns a lift by standing for
    the user's own rate.

    Parameters
    ----------
    tally : Tally
        Of users, all of them or some.
    moment : int
    totals : mapping of str to int
        All users' counts before the moment, by name.
    """
    everything, scalars = tally.within(moment, None), Scalars()
    for window, counts in {"12w": tally.within(moment, WINDOWS["12w"] * DAY_US), "all": everything}.items():
        scalars.add(f"activity_impressions_{window}", counts["impressions"])
        for name, rate in rates_of(counts, totals).items():
            scalars.add(f"activity_{name}_{window}", rate)
    return scalars.columns()
