"""How often ads, their advertisers and categories were shown, answered and turned to, as of every snapshot.

Rows are counted by users, some of them or all, and added up (`AdRows`): no visit is of two users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pandas as pd

from advprior.store.arrays import Bool, Double, Int
from advprior.store.contract import AD_ID, CATEGORY, USER_ID
from advprior.store.times import DAY_US, counting_times, moment_us
from ranking.frame.moment_counts import MomentCounts, RowsBetween
from ranking.frame.numbering import HistoryIds
from ranking.frame.popularity import Outcomes, Tally, rates_of, totals_of
from ranking.frame.snapshots import Scalars, time_columns
from ranking.frame.streams import ADVERTISER, LEVELS, WINDOWS

MONTH_US = WINDOWS["4w"] * DAY_US
_NEVER = np.iinfo(np.int64).max


def moments_of(snapshots: Sequence[datetime]) -> Int:
    """Moments that popularity as of some snapshots is counted at: int array, ascending, microseconds since 1970."""
    at = np.array([moment_us(snapshot) for snapshot in snapshots], np.int64)
    return np.unique(np.concatenate([at, at - MONTH_US]))


@dataclass(frozen=True, eq=False)
class AdRows:
    """What some users' rows say of ads.

    Attributes
    ----------
    outcomes : mapping of str to RowsBetween
        By ad: what a `Tally` counts.
    events : mapping of str to RowsBetween
        By level, of its ids: one (user, time, id) is one occasion, however many rows it has.
    ads, first_shown : int arrays [shown ads]
        Which were shown, and when first.
    """

    outcomes: Mapping[str, RowsBetween]
    events: Mapping[str, RowsBetween]
    ads: Int
    first_shown: Int

    @classmethod
    def count(cls, ids: HistoryIds, events: pd.DataFrame, outcomes: Outcomes, moments: Int) -> AdRows:
        """Of events and impressions of the same users."""
        first = np.full(ids.sizes["ad_id"], _NEVER)
        np.minimum.at(first, outcomes.ad[outcomes.ad >= 0], outcomes.shown[outcomes.ad >= 0])
        ads = np.flatnonzero(first < _NEVER)
        parts = outcomes.parts()
        shown = {name: RowsBetween.count(outcomes.ad[rows], times, moments) for name, (rows, times) in parts.items()}
        return cls(shown, _occasions(ids, events, moments), ads, first[ads])


def _occasions(ids: HistoryIds, events: pd.DataFrame, moments: Int) -> dict[str, RowsBetween]:
    times, owner = counting_times(events), pd.factorize(events[USER_ID])[0]
    occasions = {}
    for level, codes in ids.event_codes(events).items():
        if level not in LEVELS:
            continue
        whole = codes >= 0
        distinct = pd.DataFrame({"u": owner[whole], "t": times[whole], "c": codes[whole]}).drop_duplicates()
        occasions[level] = RowsBetween.count(distinct["c"].to_numpy(), distinct["t"].to_numpy(), moments)
    return occasions


class AdCounts:
    """Outcomes of ads and their advertisers, and events of their advertisers, categories and pairs: sums of `AdRows`.

    Parameters
    ----------
    ids : HistoryIds
    moments : int array [M]
        See `moments_of`.
    clicks : bool
        Whether the log has any.
    """

    def __init__(self, ids: HistoryIds, moments: Int, *, clicks: bool) -> None:
        self.level = {level: ids.ads[level].to_numpy() for level in LEVELS}
        self._exist_from, self._advertised_from = ids.exist_from, ids.advertised_from
        self._advertisers = ids.sizes[ADVERTISER]
        names = ("impressions", "complete", "positives", *(("clicks",) if clicks else ()))
        self._shown = {name: MomentCounts(len(ids.ads), moments) for name in names}
        self.events = {level: MomentCounts(ids.sizes[level], moments) for level in LEVELS}
        self._first = np.full(len(ids.ads), _NEVER)
        self.places = {"": np.arange(len(ids.ads)), "advertiser_": self.level[ADVERTISER]}

    def add(self, rows: AdRows) -> None:
        """What further users' rows say."""
        for name, counts in self._shown.items():
            counts.add(rows.outcomes[name])
        for level, counts in self.events.items():
            counts.add(rows.events[level])
        self._first[rows.ads] = np.minimum(self._first[rows.ads], rows.first_shown)

    def exists(self, level: str, moment: int) -> Bool:
        """Which ids of a level exist at one of the moments: bool array.

        An advertiser that is listed today may have been unheard of then: for a share of all it exists from its first
        ad or event on.
        """
        if level == ADVERTISER:
            return (self._advertised_from <= moment) | (self.events[level].before(moment) > 0)
        return self._exist_from[level] <= moment

    def tallies(self) -> dict[str, Tally]:
        """Of ads, and of their advertisers."""
        advertiser, size = self.places["advertiser_"], self._advertisers
        of_advertisers = {name: counts.regrouped(advertiser, size) for name, counts in self._shown.items()}
        return {"": Tally(self._shown), "advertiser_": Tally(of_advertisers)}

    def totals(self, moment: int) -> dict[str, int]:
        """Outcomes of all ads before one of the moments, by name."""
        return totals_of(Tally(self._shown).within(moment, None))

    def days_since_first_shown(self, moment: int) -> Double:
        """Of each ad, float64 [ads]; NaN before."""
        return np.where(self._first < moment, (moment - self._first) / DAY_US, np.nan)


def _add_exposure(scalars: Scalars, tallies: Mapping[str, Tally], places: Mapping[str, Int], moment: int) -> None:
    """Impressions, positives and their rate of each ad and of its advertiser; clicks where the log has them."""
    for group, tally in tallies.items():
        everything, place = tally.within(moment, None), places[group]
        totals = totals_of(everything)
        for window, within in {"4w": tally.within(moment, MONTH_US), "all": everything}.items():
            for name in ("impressions", "positives", "clicks"):
                if name in within:
                    scalars.add(f"ad_{group}{name}_{window}", within[name][place])
            for name, rate in rates_of(within, totals).items():
                scalars.add(f"ad_{group}{name}_{window}", rate[place])


def _add_events(scalars: Scalars, counts: AdCounts, moment: int) -> None:
    """Events of each ad's pair, advertiser and category, and their log-share among those that exist."""
    for level in LEVELS:
        exists = counts.exists(level, moment)
        total = counts.events[level].before(moment)
        recent = total - counts.events[level].before(moment - MONTH_US)
        name, place = "" if level == "ad" else f"{level}_", counts.level[level]
        for window, count in (("4w", recent), ("all", total)):
            # counts grow with the data; a log-share does not, and is what a popularity prior says too
            # before anything exists there is none of it; the caller drops those rows
            share = np.log((count + 0.5) / max(count[exists].sum() + 0.5 * exists.sum(), 0.5))
            scalars.add(f"ad_{name}events_{window}", np.where(place < 0, np.nan, count[place]))
            scalars.add(f"ad_{name}log_share_{window}", np.where(place < 0, np.nan, share[place]))


def ad_stats(ads: pd.DataFrame, counts: AdCounts, snapshots: Sequence[datetime], lag: timedelta) -> pd.DataFrame:
    """Popularity of each ad, its advertiser and its category, as of each snapshot (snapshot-major).

    An ad that does not exist yet at a snapshot has a row too, which the caller drops: it means nothing.
    """
    scalars, tallies = Scalars(), counts.tallies()
    for moment in map(moment_us, snapshots):
        _add_exposure(scalars, tallies, counts.places, moment)
        _add_events(scalars, counts, moment)
        scalars.add("ad_days_since_first_shown", counts.days_since_first_shown(moment))
    return pd.DataFrame(
        {
            AD_ID: np.tile(ads[AD_ID].to_numpy(), len(snapshots)),
            **time_columns(snapshots, lag, len(ads)),
            "ad_category": np.tile(ads[CATEGORY].to_numpy(dtype=object), len(snapshots)),
            **scalars.columns(),
        }
    )
