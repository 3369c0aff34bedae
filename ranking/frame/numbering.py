"""The numbers behind a history's keys: which advertiser, category, pair and ad an id means, and the ids of each ad."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.arrays import Int
from advprior.store.contract import AD_ID, ADVERTISER_ID, CATEGORY, DEPARTMENT
from advprior.store.runs import digest
from ranking.frame.counts import codes_of
from ranking.frame.streams import AD, ADVERTISER, LEVELS, NUMBERINGS, PAIR, Stream
from ranking.frame.streams import CATEGORY as OF_CATEGORY
from ranking.frame.streams import DEPARTMENT as OF_DEPARTMENT

HISTORY_IDS = "history_ids.json"


class HistoryIds:
    """The catalogs behind history keys, and the ids of each ad.

    Attributes
    ----------
    sizes : dict[str, int]
        Number of ids per numbering; a key is ``history_row · size + id``.
    ads : pandas.DataFrame
        Indexed by ad_id; a column of ids per numbering (−1: the ad has no such thing).
    exist_from : dict[str, int array]
        Microseconds since 1970 from which each id of a numbering exists: a category, a department and a pair with the
        first of its ads. Before, an event matches none of them, as if their ads were not listed yet.
    departments : list of str
        Those of the ads, empty where they have none: departments are then not numbered.

    Parameters
    ----------
    advertisers : sequence of str
    ads : DataFrame
    ads_from : int array [ads], optional
        See `advprior.store.existence.ads_exist_from`; without it every ad exists always.
    """

    def __init__(self, advertisers: Sequence[str], ads: pd.DataFrame, ads_from: Int | None = None) -> None:
        self.advertisers = list(advertisers)
        self.categories = sorted(ads[CATEGORY].dropna().unique().tolist())
        a, c = codes_of(ads[ADVERTISER_ID], self.advertisers), codes_of(ads[CATEGORY], self.categories)
        self._pairs = np.unique((a * (len(self.categories) + 1) + c)[(a >= 0) & (c >= 0)])
        counts = (len(self.advertisers), len(self.categories), len(self._pairs), len(ads))
        self.sizes = dict(zip(NUMBERINGS, counts, strict=True))
        ids = {ADVERTISER: a, OF_CATEGORY: c, PAIR: self.pair_codes(a, c), AD: np.arange(len(ads), dtype=np.int64)}
        self.ads = pd.DataFrame(ids, index=pd.Index(ads[AD_ID], name="of"))
        self.departments = _distinct(ads[DEPARTMENT]) if DEPARTMENT in ads else []
        if self.departments:
            ids[OF_DEPARTMENT] = codes_of(_stripped(ads[DEPARTMENT]), self.departments)
            self.sizes[OF_DEPARTMENT] = len(self.departments)
            self.ads[OF_DEPARTMENT] = ids[OF_DEPARTMENT]
            order = np.zeros(len(ads), np.int64) if ads_from is None else ads_from
            self._of_category = _first_of(c, ids[OF_DEPARTMENT], order, len(self.categories))
        self.exist_from = {name: np.zeros(size, np.int64) for name, size in self.sizes.items()}
        if ads_from is not None:
            for name in (OF_CATEGORY, PAIR, OF_DEPARTMENT):
                if name in ids:
                    self.exist_from[name] = _oldest(ads_from, ids[name], self.sizes[name])

    def pair_codes(self, advertiser: Int, category: Int) -> Int:
        """Ids of advertiser × category, −1 where no ad has it."""
        wanted = advertiser * (len(self.categories) + 1) + category
        codes = codes_of(wanted, self._pairs)
        return np.where((advertiser >= 0) & (category >= 0), codes, -1)

    def event_codes(self, events: pd.DataFrame) -> dict[str, Int]:
        """Ids of each event by numbering, −1 where it has none.

        Where events have no departments, an event's is that of its category's first ad, so that no later ad changes it.
        """
        a, c = codes_of(events[ADVERTISER_ID], self.advertisers), codes_of(events[CATEGORY], self.categories)
        ids = {ADVERTISER: a, OF_CATEGORY: c, PAIR: self.pair_codes(a, c)}
        if self.departments:
            by_category = np.append(self._of_category, np.int64(-1))[c]
            own = DEPARTMENT in events
            ids[OF_DEPARTMENT] = codes_of(_stripped(events[DEPARTMENT]), self.departments) if own else by_category
        return ids

    def ad_codes(self, ads: pd.Series[Any]) -> dict[str, Int]:
        """Ids of each of some ads by numbering, −1 where it has none."""
        at = codes_of(ads, self.ads.index)
        return {name: np.append(self.ads[name].to_numpy(), np.int64(-1))[at] for name in self.sizes}

    def to_json(self, streams: Iterable[Stream]) -> dict[str, Any]:
        """What lies beside the arrays, so that a reader needs nothing else; ``version`` is the digest of the rest."""
        of_ads = {level: self.ads[level].tolist() for level in (*LEVELS, OF_DEPARTMENT) if level in self.sizes}
        about: dict[str, Any] = {
            "sizes": self.sizes,
            "advertisers": self.advertisers,
            "categories": self.categories,
            "ads": {AD_ID: self.ads.index.tolist(), **of_ads},  # the number of an ad itself is its place
            "streams": {stream.name: list(stream.quantities) for stream in streams},
        }
        if self.departments:
            about["departments"] = self.departments
        return {"version": digest(about), **about}


def _stripped(column: pd.Series[Any]) -> pd.Series[Any]:
    return column.astype(object).str.strip()


def _distinct(column: pd.Series[Any]) -> list[str]:
    """Values in alphabetical order, without what is missing or blank."""
    return sorted(value for value in _stripped(column).dropna().unique().tolist() if value)


def _first_of(group: Int, value: Int, moments: Int, size: int) -> Int:
    """Value (≥ 0) of each group's first row by moment, of several at once the smallest; −1 where a group has none.

    >>> _first_of(np.array([0, 0, 0, 2]), np.array([3, 2, 1, -1]), np.array([5, 5, 9, 0]), 3).tolist()
    [2, -1, -1]
    """
    order = np.lexsort([value, moments, group])
    order = order[(group[order] >= 0) & (value[order] >= 0)]
    groups, first = np.unique(group[order], return_index=True)
    out = np.full(size, -1, np.int64)
    out[groups] = value[order][first]
    return out


def _oldest(moments: Int, ids: Int, size: int) -> Int:
    """The oldest of the moments of each id."""
    oldest = np.full(size, np.iinfo(np.int64).max)
    np.minimum.at(oldest, ids[ids >= 0], moments[ids >= 0])
    return oldest


def load_history_ids(folder: Path) -> dict[str, Any]:
    """The catalogs beside a published history."""
    ids: dict[str, Any] = json.loads((Path(folder) / HISTORY_IDS).read_text())
    return ids


def ids_of_ads(about: dict[str, Any], numbering: str) -> Int:
    """Id of each ad of the catalog at a numbering, of what `HistoryIds.to_json` wrote: int64 [ads].

    >>> ids_of_ads({"ads": {"ad_id": ["x", "y"], "advertiser": [0, 0]}}, "ad_id").tolist()
    [0, 1]
    """
    of_ads = about["ads"]
    return np.arange(len(of_ads[AD_ID])) if numbering == AD else np.array(of_ads[numbering], dtype=np.int64)
