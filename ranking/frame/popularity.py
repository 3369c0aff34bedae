"""How often ads were shown, taken and bought as of every snapshot, and how often each user took what was shown.

A label is an outcome after its impression: it counts from when it was known, never from when the ad was shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.arrays import Float, Int
from advprior.store.contract import AD_ID, CATEGORY, LABEL, TIMESTAMP, USER_ID
from advprior.store.times import DAY_US, micros, moment_us
from ranking.frame.counts import CountsBefore, codes_of
from ranking.frame.numbering import HistoryIds
from ranking.frame.snapshots import Scalars, time_columns
from ranking.frame.streams import LEVELS, WINDOWS

_SMOOTHING = 20.0  # impressions' worth of the overall rate mixed into each rate
_MONTH_US = WINDOWS["4w"] * DAY_US


@dataclass(frozen=True)
class Outcomes:
    """Impressions and their positive labels, with the time at which each label was known.

    Attributes
    ----------
    impressions, positives : pandas.DataFrame
        All impressions, and those of label 1.
    known_at : int array [positives]
        Microseconds since 1970.
    """

    impressions: pd.DataFrame
    positives: pd.DataFrame
    known_at: Int

    @classmethod
    def of(
        cls, users: pd.DataFrame, ids: HistoryIds, events: pd.DataFrame, impressions: pd.DataFrame, delay: timedelta
    ) -> Outcomes:
        """From canonical tables; ``delay`` as in `known_from`."""
        positives = impressions.loc[impressions[LABEL] == 1, [USER_ID, AD_ID, TIMESTAMP]]
        return cls(impressions, positives, known_from(positives, events, ids, users, delay))


def known_from(
    positives: pd.DataFrame, events: pd.DataFrame, ids: HistoryIds, users: pd.DataFrame, delay: timedelta
) -> Int:
    """When each positive label was known, microseconds: an aggregate may count it only after.

    A label is an outcome *after* the impression, so counting it from the impression's time would leak. It is
    known with the first event of that user with that advertiser and category at or after the impression; an
    outcome that no event shows is taken as known after ``delay``.

    Returns
    -------
    int array [positives]
        In the order of ``positives``, which are impressions.
    """
    size = ids.sizes["ad"]
    codes = ids.event_codes(events)["ad"]
    matched = codes >= 0
    group = (codes_of(events[USER_ID], users[USER_ID]) * size + codes)[matched]
    moments, rank = np.unique(micros(events[TIMESTAMP])[matched], return_inverse=True)
    stride = len(moments) + 1
    if len(users) * size >= np.iinfo(np.int64).max // stride:
        raise OverflowError("too many users × ads × times for one 64-bit key")
    keys = np.unique(group * stride + rank)
    shown = micros(positives[TIMESTAMP])
    fallback = shown + delay // timedelta(microseconds=1)
    if not len(keys):
        return fallback
    pair = ids.ads["ad"].reindex(positives[AD_ID]).to_numpy(np.int64)
    wanted = codes_of(positives[USER_ID], users[USER_ID]) * size + pair
    at = np.searchsorted(keys, wanted * stride + np.searchsorted(moments, shown))
    nearest = np.minimum(at, len(keys) - 1)
    same = (at < len(keys)) & (keys[nearest] // stride == wanted) & (pair >= 0)
    event = moments[np.minimum(keys[nearest] % stride, len(moments) - 1)]
    return np.where(same, np.maximum(event, shown), fallback)


def _rate(taken: Any, seen: Any, overall: float) -> Any:
    return (taken + _SMOOTHING * overall) / (seen + _SMOOTHING)


def own_rates(users: pd.DataFrame, outcomes: Outcomes, snapshots: Sequence[datetime]) -> dict[str, Float]:
    """How often each user took what was shown, as of each snapshot (snapshot-major): smoothed rates.

    Without them a column that tells users apart, a placebo's entropy for one, earns a lift by standing for
    the user's own rate.
    """
    n, shown, positives = len(users), outcomes.impressions, outcomes.positives
    impressions = CountsBefore(codes_of(shown[USER_ID], users[USER_ID]), micros(shown[TIMESTAMP]), n)
    won = CountsBefore(codes_of(positives[USER_ID], users[USER_ID]), outcomes.known_at, n)
    scalars = Scalars()
    for moment in map(moment_us, snapshots):
        all_seen, all_taken = impressions.before(moment), won.before(moment)
        overall = all_taken.sum() / max(all_seen.sum(), 1)
        since = moment - WINDOWS["12w"] * DAY_US
        recent = all_seen - impressions.before(since), all_taken - won.before(since)
        for window, (seen, taken) in {"12w": recent, "all": (all_seen, all_taken)}.items():
            scalars.add(f"activity_impressions_{window}", seen)
            scalars.add(f"activity_rate_{window}", _rate(taken, seen, overall))
    return scalars.columns()


class AdCounts:
    """Impressions, positives and purchases of ads, their advertisers and categories, before any moment."""

    def __init__(
        self, users: pd.DataFrame, ads: pd.DataFrame, ids: HistoryIds, events: pd.DataFrame, outcomes: Outcomes
    ) -> None:
        impressions = outcomes.impressions
        shown_ad = codes_of(impressions[AD_ID], ads[AD_ID])
        positive_ad = shown_ad[(impressions[LABEL] == 1).to_numpy()]
        shown = micros(impressions[TIMESTAMP])
        self.level = {level: ids.ads[level].to_numpy() for level in LEVELS}
        advertiser, n_advertisers = self.level["advertiser"], ids.sizes["advertiser"]
        self.impressions = {
            "": CountsBefore(shown_ad, shown, len(ads)),
            "advertiser_": CountsBefore(advertiser[shown_ad], shown, n_advertisers),
        }
        self.positives = {
            "": CountsBefore(positive_ad, outcomes.known_at, len(ads)),
            "advertiser_": CountsBefore(advertiser[positive_ad], outcomes.known_at, n_advertisers),
        }
        self.first_shown = self.impressions[""].first()
        self.places = {"": np.arange(len(ads)), "advertiser_": advertiser}
        self.purchases = _purchases(users, ids, events)


def _purchases(users: pd.DataFrame, ids: HistoryIds, events: pd.DataFrame) -> dict[str, CountsBefore]:
    """Purchases by level: one (user, time, id) is one, however many rows the basket has."""
    times, owner = micros(events[TIMESTAMP]), codes_of(events[USER_ID], users[USER_ID])
    purchases = {}
    for level, codes in ids.event_codes(events).items():
        bought = codes >= 0
        baskets = pd.DataFrame({"u": owner[bought], "t": times[bought], "c": codes[bought]}).drop_duplicates()
        purchases[level] = CountsBefore(baskets["c"].to_numpy(), baskets["t"].to_numpy(), ids.sizes[level])
    return purchases


def _add_exposure(scalars: Scalars, counts: AdCounts, moment: int) -> None:
    """Impressions, positives and their rate of each ad and of its advertiser."""
    since = moment - _MONTH_US
    overall = counts.positives[""].before(moment).sum() / max(counts.impressions[""].before(moment).sum(), 1)
    for group, place in counts.places.items():
        all_seen, all_won = counts.impressions[group].before(moment), counts.positives[group].before(moment)
        recent = (
            all_seen - counts.impressions[group].before(since),
            all_won - counts.positives[group].before(since),
        )
        for window, (seen, won) in {"4w": recent, "all": (all_seen, all_won)}.items():
            scalars.add(f"ad_{group}impressions_{window}", seen[place])
            scalars.add(f"ad_{group}positives_{window}", won[place])
            scalars.add(f"ad_{group}rate_{window}", _rate(won[place], seen[place], overall))


def _add_purchases(scalars: Scalars, counts: AdCounts, moment: int) -> None:
    """Purchases of each ad's pair, advertiser and category, and their log-share."""
    for level in LEVELS:
        total = counts.purchases[level].before(moment)
        recent = total - counts.purchases[level].before(moment - _MONTH_US)
        name, place = "" if level == "ad" else f"{level}_", counts.level[level]
        for window, count in (("4w", recent), ("all", total)):
            # counts grow with the data; a log-share does not, and is what a popularity prior says too
            share = np.log((count + 0.5) / (count.sum() + 0.5 * len(count)))
            scalars.add(f"ad_{name}purchases_{window}", np.where(place < 0, np.nan, count[place]))
            scalars.add(f"ad_{name}log_share_{window}", np.where(place < 0, np.nan, share[place]))


def ad_stats(ads: pd.DataFrame, counts: AdCounts, snapshots: Sequence[datetime], lag: timedelta) -> pd.DataFrame:
    """Popularity of each ad, its advertiser and its category, as of each snapshot (snapshot-major)."""
    scalars = Scalars()
    for moment in map(moment_us, snapshots):
        _add_exposure(scalars, counts, moment)
        _add_purchases(scalars, counts, moment)
        shown_before = (counts.first_shown >= 0) & (counts.first_shown < moment)
        since = np.where(shown_before, (moment - counts.first_shown) / DAY_US, np.nan)
        scalars.add("ad_days_since_first_shown", since)
    return pd.DataFrame(
        {
            AD_ID: np.tile(ads[AD_ID].to_numpy(), len(snapshots)),
            **time_columns(snapshots, lag, len(ads)),
            "ad_category": np.tile(ads[CATEGORY].to_numpy(dtype=object), len(snapshots)),
            **scalars.columns(),
        }
    )
