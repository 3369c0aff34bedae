"""Every ad's features in memory: read in bulk from the online store, in the background, swapped in whole.

Reading a hundred ads a request would cost more than ranking them. What a request sees is one table, never half of two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from advprior.store.arrays import Int
from ranking.frame.gather import places
from ranking.service.catalogs import HistoryCatalog
from ranking.service.reader import OnlineReader
from ranking.service.rows import ServedView, ViewRow, in_time

#: Ads a read; between two reads the interpreter is free for requests.
_BATCH = 64


@dataclass
class AdTable:
    """Ads in rows; one row more at the end stands for an ad that is not in the catalog (index −1).

    Attributes
    ----------
    ids, advertisers, categories : per ad
    index : ad id to row
    values : dict of column to array [ads + 1]
        float64 (NaN: missing) or object (text, None).
    available_us : dict of view to int64 [ads + 1]
        When each ad's row became available; −1 where it has none.
    """

    ids: list[str]
    advertisers: list[str | None]
    categories: list[str | None]
    index: dict[str, int]
    values: dict[str, npt.NDArray[Any]]
    view_of: dict[str, str]
    available_us: dict[str, Int]
    read_us: int
    _by_catalog: dict[tuple[str, str], Any] = field(default_factory=dict)
    _made: dict[Any, Any] = field(default_factory=dict)
    _moments: dict[str, list[int]] | None = None

    @classmethod
    def unread(cls, reader: OnlineReader, catalog: HistoryCatalog) -> AdTable:
        """The ads of a catalog before anything is read of them; ``read_us`` is −1."""
        n = len(catalog.ads)
        values: dict[str, npt.NDArray[Any]] = {}
        view_of: dict[str, str] = {}
        for name in reader.ad_views:
            view = reader.views[name]
            for feature, column in view.columns.items():
                text = feature in view.text
                values[column] = np.full(n + 1, None if text else np.nan, dtype=object if text else np.float64)
                view_of[column] = name
        available = {name: np.full(n + 1, -1, dtype=np.int64) for name in reader.ad_views}
        index = {ad: i for i, ad in enumerate(catalog.ads)}
        return cls(catalog.ads, catalog.advertisers, catalog.categories, index, values, view_of, available, -1)

    def rows(self, ad_ids: Sequence[str]) -> Int:
        """Row of each ad, −1 where it is not in the table."""
        get = self.index.get
        return np.fromiter((get(ad, -1) for ad in ad_ids), dtype=np.int64, count=len(ad_ids))

    def late_views(self, views: Mapping[str, ServedView], now_us: int) -> list[str]:
        """Views some of whose rows the join would not take now; rows of one refresh share one or two moments."""
        if self._moments is None:
            self._moments = {name: np.unique(at[at >= 0]).tolist() for name, at in self.available_us.items()}
        return [n for n, moments in self._moments.items() if any(in_time(t, views[n], now_us) for t in moments)]

    def history_ids(self, catalog: HistoryCatalog, numbering: str) -> Int:
        """Id of each ad at a numbering of a history's catalog, int64 [ads + 1]."""
        key = (catalog.version, numbering)
        if key not in self._by_catalog:
            place = {ad: i for i, ad in enumerate(catalog.ads)}
            at = np.array([*(place.get(ad, -1) for ad in self.ids), -1], dtype=np.int64)
            # a history published before its tables had departments numbers none
            ids = catalog.ids.get(numbering, np.full(len(catalog.ads), -1))
            self._by_catalog[key] = np.append(ids, -1)[at]
        of_ads: Int = self._by_catalog[key]
        return of_ads

    def advertiser_index(self, version: str, advertisers: list[str]) -> Int:
        """Place of each ad's advertiser in a prior's catalog, int64 [ads + 1]."""
        key = (version, "advertisers")
        if key not in self._by_catalog:  # by advertiser, or by advertiser × category where the catalog lists those
            of_ads = places(advertisers, self.advertisers, self.categories)
            self._by_catalog[key] = np.append(of_ads, np.int64(-1))
        index: Int = self._by_catalog[key]
        return index

    def category_index(self, version: str, categories: list[str]) -> Int:
        """Place of each ad's category among a prior's interests, int64 [ads + 1]."""
        return self._places((version, f"interests {len(categories)}"), self.categories, categories)

    def cached(self, key: Any, make: Callable[[], Any]) -> Any:
        """What was worked out from these ads before, or is now."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _places(self, key: tuple[str, str], of_ads: list[str | None], names: list[str]) -> Int:
        if key not in self._by_catalog:
            place = {name: i for i, name in enumerate(names)}
            at = [-1 if name is None else place.get(name, -1) for name in of_ads]
            self._by_catalog[key] = np.array([*at, -1], dtype=np.int64)
        index: Int = self._by_catalog[key]
        return index


def read_ads(reader: OnlineReader, catalog: HistoryCatalog, now_us: int, *, pause_s: float = 0.0) -> AdTable:
    """Read all ads of a catalog from the online store.

    Parameters
    ----------
    pause_s : float
        Between batches, so that reading does not hold up requests.
    """
    table = AdTable.unread(reader, catalog)
    for start in range(0, len(catalog.ads), _BATCH):
        batch = catalog.ads[start : start + _BATCH]
        for name, rows in reader.read_ads(batch).items():
            view = reader.views[name]
            for at, row in enumerate(rows, start):
                if not isinstance(row, ViewRow):
                    continue
                table.available_us[name][at] = row.available_us
                for feature, column in view.columns.items():
                    value = row.text(feature) if feature in view.text else row.number(feature)
                    if value is not None:
                        table.values[column][at] = value
        if pause_s:
            time.sleep(pause_s)
    table.read_us = now_us
    return table
