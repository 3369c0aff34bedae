"""The numbers behind a history's keys: which advertiser, category, pair and ad an id means, and the ids of each ad."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.arrays import Int
from advprior.store.contract import AD_ID, ADVERTISER_ID, CATEGORY
from advprior.store.runs import digest
from ranking.frame.counts import codes_of
from ranking.frame.streams import AD, ADVERTISER, CLUSTER, DEPARTMENT, LEVELS, NUMBERINGS, PAIR, Stream
from ranking.frame.streams import CATEGORY as OF_CATEGORY

HISTORY_IDS = "history_ids.json"
#: What ads may belong to beside their category, by the column of ads and events that says it, and by what an event
#: that says none itself belongs to one: as the first ad of its category, or of its advertiser × category.
_GROUPED_BY = {DEPARTMENT: OF_CATEGORY, CLUSTER: PAIR}


class HistoryIds:
    """The catalogs behind history keys, and the ids of each ad.

    Attributes
    ----------
    sizes : dict[str, int]
        Number of ids per numbering; a key is ``history_row · size + id``.
    ads : pandas.DataFrame
        Indexed by ad_id; a column of ids per numbering (−1: the ad has no such thing).
    exist_from : dict[str, int array]
        Microseconds since 1970 from which each id of a numbering exists: a category, a department, a cluster and a
        pair with the first of its ads. Before, an event matches none of them, as if their ads were not listed yet.
    advertised_from : int array [advertisers]
        Microseconds since 1970 from which each advertiser has an ad.
    groupings : dict of str to list of str
        Departments and clusters of the ads, by numbering; those that no ad has are not numbered.

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
        named = {column: _distinct(ads[column]) for column in _GROUPED_BY if column in ads}
        self.groupings = {numbering: names for numbering, names in named.items() if names}
        self._of_first: dict[str, tuple[Int, Int]] = {}
        for numbering, names in self.groupings.items():
            ids[numbering] = self.ads[numbering] = codes_of(_stripped(ads[numbering]), names)
            self.sizes[numbering] = len(names)
            order = np.zeros(len(ads), np.int64) if ads_from is None else ads_from
            by = _GROUPED_BY[numbering]
            self._of_first[numbering] = _first_of(ids[by], ids[numbering], order, self.sizes[by])
        self.exist_from = {name: np.zeros(size, np.int64) for name, size in self.sizes.items()}
        self.advertised_from = np.zeros(len(self.advertisers), np.int64)
        if ads_from is not None:
            self.advertised_from = _oldest(ads_from, a, len(self.advertisers))
            for name in (OF_CATEGORY, PAIR, *self.groupings):
                self.exist_from[name] = _oldest(ads_from, ids[name], self.sizes[name])

    def pair_codes(self, advertiser: Int, category: Int) -> Int:
        """Ids of advertiser × category, −1 where no ad has it."""
        wanted = advertiser * (len(self.categories) + 1) + category
        codes = codes_of(wanted, self._pairs)
        return np.where((advertiser >= 0) & (category >= 0), codes, -1)

    def event_codes(self, events: pd.DataFrame) -> dict[str, Int]:
        """Ids of each event by numbering, −1 where it has none.

        Where events have no departments, an event's is that of its category's first ad, so that no later ad changes it;
        where they have no clusters, that of the first ad of its advertiser × category.
        """
        a, c = codes_of(events[ADVERTISER_ID], self.advertisers), codes_of(events[CATEGORY], self.categories)
        ids = {ADVERTISER: a, OF_CATEGORY: c, PAIR: self.pair_codes(a, c)}
        for numbering, names in self.groupings.items():
            if numbering in events:
                ids[numbering] = codes_of(_stripped(events[numbering]), names)
            else:
                ids[numbering] = np.append(self._of_first[numbering][0], np.int64(-1))[ids[_GROUPED_BY[numbering]]]
        return ids

    def told_from(self, events: pd.DataFrame, codes: dict[str, Int]) -> dict[str, Int]:
        """Microseconds since 1970 from which an ad tells each event's department or cluster, where no event says it.

        Parameters
        ----------
        events : DataFrame
        codes : dict of str to int array
            Of `event_codes`.

        Returns
        -------
        dict of str to int array [events]
            By numbering; 0 where an event has none.
        """
        of_ads = (numbering for numbering in self.groupings if numbering not in events)
        return {n: np.append(self._of_first[n][1], np.int64(0))[codes[_GROUPED_BY[n]]] for n in of_ads}

    def ad_codes(self, ads: pd.Series[Any]) -> dict[str, Int]:
        """Ids of each of some ads by numbering, −1 where it has none."""
        at = codes_of(ads, self.ads.index)
        return {name: np.append(self.ads[name].to_numpy(), np.int64(-1))[at] for name in self.sizes}

    def to_json(self, streams: Iterable[Stream]) -> dict[str, Any]:
        """What lies beside the arrays, so that a reader needs nothing else; ``version`` is the digest of the rest."""
        of_ads = {level: self.ads[level].tolist() for level in (*LEVELS, *self.groupings)}
        about: dict[str, Any] = {
            "sizes": self.sizes,
            "advertisers": self.advertisers,
            "categories": self.categories,
            "ads": {AD_ID: self.ads.index.tolist(), **of_ads},  # the number of an ad itself is its place
            "streams": {stream.name: list(stream.quantities) for stream in streams},
        }
        about |= {f"{numbering}s": names for numbering, names in self.groupings.items()}
        return {"version": digest(about), **about}


def _stripped(column: pd.Series[Any]) -> pd.Series[Any]:
    return column.astype(object).str.strip()


def _distinct(column: pd.Series[Any]) -> list[str]:
    """Values in alphabetical order, without what is missing or blank."""
    return sorted(value for value in _stripped(column).dropna().unique().tolist() if value)


def _first_of(group: Int, value: Int, moments: Int, size: int) -> tuple[Int, Int]:
    """Value (≥ 0) of each group's first row by moment, of several at once the smallest, and that moment; −1 and 0
    where a group has none.

    >>> values, since = _first_of(np.array([0, 0, 0, 2]), np.array([3, 2, 1, -1]), np.array([5, 5, 9, 0]), 3)
    >>> values.tolist(), since.tolist()
    ([2, -1, -1], [5, 0, 0])
    """
    order = np.lexsort([value, moments, group])
    order = order[(group[order] >= 0) & (value[order] >= 0)]
    groups, first = np.unique(group[order], return_index=True)
    out, since = np.full(size, -1, np.int64), np.zeros(size, np.int64)
    out[groups], since[groups] = value[order][first], moments[order][first]
    return out, since


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
