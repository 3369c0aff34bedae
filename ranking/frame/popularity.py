"""How often ads were shown, answered and turned to as of every snapshot, and how often each user answered.

An outcome, positive or negative, is complete once the label delay has passed since its impression. Rates are of
cohorts: impressions whose outcome is complete, and the positives among those. So a positive is not counted sooner than
the negatives beside it, and no rate exceeds one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.arrays import Bool, Float, Int
from advprior.store.contract import AD_ID, CATEGORY, CLICKED, LABEL, TIMESTAMP, USER_ID
from advprior.store.times import DAY_US, counting_times, micros, moment_us
from ranking.frame.counts import CountsBefore, codes_of
from ranking.frame.numbering import HistoryIds
from ranking.frame.snapshots import Scalars, time_columns
from ranking.frame.streams import LEVELS, WINDOWS

_SMOOTHING = 20.0  # impressions' worth of the overall rate mixed into each rate
_MONTH_US = WINDOWS["4w"] * DAY_US


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


class Tally:
    """Impressions, clicks, complete outcomes and positives by group, before any moment.

    Parameters
    ----------
    outcomes : Outcomes
    group : int array [impressions]
        Group of each, 0 … size − 1.
    size : int
    """

    def __init__(self, outcomes: Outcomes, group: Int, size: int) -> None:
        won, clicked = outcomes.positive, outcomes.clicked
        self.shown = CountsBefore(group, outcomes.shown, size)
        self.complete = CountsBefore(group, outcomes.complete, size)
        self.positives = CountsBefore(group[won], outcomes.complete[won], size)
        self.clicks = None if clicked is None else CountsBefore(group[clicked], outcomes.shown[clicked], size)

    def within(self, moment: int, length: int | None) -> dict[str, Int]:
        """Counts of the last ``length`` microseconds before ``moment``, or of all time, by name."""
        counts = {"impressions": self.shown, "complete": self.complete, "positives": self.positives}
        if self.clicks is not None:
            counts["clicks"] = self.clicks
        return {
            name: count.before(moment) - (0 if length is None else count.before(moment - length))
            for name, count in counts.items()
        }


def _rates(counts: dict[str, Int], everything: dict[str, Int]) -> dict[str, Any]:
    """Smoothed rates: of positives among complete outcomes, and of clicks among impressions where there are clicks."""
    rates = {"rate": _smoothed("positives", "complete", counts, everything)}
    if "clicks" in counts:
        rates["click_rate"] = _smoothed("clicks", "impressions", counts, everything)
    return rates


def _smoothed(part: str, whole: str, counts: dict[str, Int], everything: dict[str, Int]) -> Any:
    overall = everything[part].sum() / max(everything[whole].sum(), 1)
    return (counts[part] + _SMOOTHING * overall) / (counts[whole] + _SMOOTHING)


def own_rates(users: int, outcomes: Outcomes, snapshots: Sequence[datetime]) -> dict[str, Float]:
    """How often each user answered what was shown, as of each snapshot (snapshot-major): smoothed rates.

    Without them a column that tells users apart, a placebo's entropy for one, earns a lift by standing for
    the user's own rate.
    """
    tally = Tally(outcomes, outcomes.user, users)
    scalars = Scalars()
    for moment in map(moment_us, snapshots):
        for name, values in rates_at(tally, moment).items():
            scalars.add(name, values)
    return scalars.columns()


def rates_at(tally: Tally, moment: int) -> dict[str, Float]:
    """`own_rates` of one snapshot, of the users' tally."""
    everything, scalars = tally.within(moment, None), Scalars()
    for window, counts in {"12w": tally.within(moment, WINDOWS["12w"] * DAY_US), "all": everything}.items():
        scalars.add(f"activity_impressions_{window}", counts["impressions"])
        for name, rate in _rates(counts, everything).items():
            scalars.add(f"activity_{name}_{window}", rate)
    return scalars.columns()


class AdCounts:
    """Outcomes of ads and their advertisers, and events of their advertisers, categories and pairs.

    Parameters
    ----------
    ads, events : DataFrame
        Canonical tables.
    ids : HistoryIds
    outcomes : Outcomes
    """

    def __init__(self, ads: pd.DataFrame, ids: HistoryIds, events: pd.DataFrame, outcomes: Outcomes) -> None:
        self.level = {level: ids.ads[level].to_numpy() for level in LEVELS}
        advertiser, n_advertisers = self.level["advertiser"], ids.sizes["advertiser"]
        self.tally = {
            "": Tally(outcomes, outcomes.ad, len(ads)),
            "advertiser_": Tally(outcomes, advertiser[outcomes.ad], n_advertisers),
        }
        self.places = {"": np.arange(len(ads)), "advertiser_": advertiser}
        self.first_shown = self.tally[""].shown.first()
        self.events = _occasions(ids, events)
        self.exist_from = ids.exist_from


def _occasions(ids: HistoryIds, events: pd.DataFrame) -> dict[str, CountsBefore]:
    """Events by level: one (user, time, id) is one occasion, however many rows it has."""
    times, owner = counting_times(events), pd.factorize(events[USER_ID])[0]
    occasions = {}
    for level, codes in ids.event_codes(events).items():
        if level not in LEVELS:
            continue
        whole = codes >= 0
        distinct = pd.DataFrame({"u": owner[whole], "t": times[whole], "c": codes[whole]}).drop_duplicates()
        occasions[level] = CountsBefore(distinct["c"].to_numpy(), distinct["t"].to_numpy(), ids.sizes[level])
    return occasions


def _add_exposure(scalars: Scalars, counts: AdCounts, moment: int) -> None:
    """Impressions, positives and their rate of each ad and of its advertiser; clicks where the log has them."""
    for group, tally in counts.tally.items():
        everything, place = tally.within(moment, None), counts.places[group]
        for window, within in {"4w": tally.within(moment, _MONTH_US), "all": everything}.items():
            for name in ("impressions", "positives", "clicks"):
                if name in within:
                    scalars.add(f"ad_{group}{name}_{window}", within[name][place])
            for name, rate in _rates(within, everything).items():
                scalars.add(f"ad_{group}{name}_{window}", rate[place])


def _add_events(scalars: Scalars, counts: AdCounts, moment: int) -> None:
    """Events of each ad's pair, advertiser and category, and their log-share among those that exist."""
    for level in LEVELS:
        exists = counts.exist_from[level] <= moment
        total = counts.events[level].before(moment)
        recent = total - counts.events[level].before(moment - _MONTH_US)
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
    scalars = Scalars()
    for moment in map(moment_us, snapshots):
        _add_exposure(scalars, counts, moment)
        _add_events(scalars, counts, moment)
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
