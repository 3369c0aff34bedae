"""Every ad's features in memory: read in bulk from the online store, in the background, swapped in whole.

Reading a hundred ads a request would cost more than ranking them. What a request sees is one table, never half of two.
A refresh reads the ads that changed, by the times of their rows where the store gives these by themselves, and takes
the others over: what it costs follows what was written, not how many ads there are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from advprior.store.arrays import Int
from ranking.frame.gather import places
from ranking.service.catalogs import HistoryCatalog
from ranking.service.reader import OnlineReader
from ranking.service.rows import ServedView, ViewRow, in_time

#: Ads a read, and times of rows a read; between two reads the interpreter is free for requests.
_BATCH, _TIMES = 64, 512
#: Rest after a batch, as a multiple of its own time: a million ads take longer, never more of the processor.
_REST = 3.0


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
    read_us : int
        When the ads were last looked at; −1: never.
    keys : list of bytes, optional
        Of the ads in the store, once they are made.
    """

    ids: list[str]
    advertisers: list[str | None]
    categories: list[str | None]
    index: dict[str, int]
    values: dict[str, npt.NDArray[Any]]
    view_of: dict[str, str]
    available_us: dict[str, Int]
    read_us: int
    keys: list[bytes] | None = None
    _by_catalog: dict[tuple[str, Any], Any] = field(default_factory=dict)
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

        def make() -> Int:
            if catalog.ads == self.ids:
                at = np.append(np.arange(len(self.ids)), -1)
            else:
                place = {ad: i for i, ad in enumerate(catalog.ads)}
                at = np.array([*(place.get(ad, -1) for ad in self.ids), -1], dtype=np.int64)
            # a history published before its tables had departments numbers none
            numbers: Int = np.append(catalog.ids.get(numbering, np.full(len(catalog.ads), -1)), -1)[at]
            return numbers

        ids: Int = self.by_catalog((catalog.version, numbering), make)
        return ids

    def advertiser_index(self, version: str, advertisers: list[str]) -> Int:
        """Place of each ad's advertiser in a prior's catalog, int64 [ads + 1]."""
        # by advertiser, or by advertiser × category where the catalog lists those
        index: Int = self.by_catalog(
            (version, "advertisers"),
            lambda: np.append(places(advertisers, self.advertisers, self.categories), np.int64(-1)),
        )
        return index

    def category_index(self, version: str, categories: list[str]) -> Int:
        """Place of each ad's category among a prior's interests, int64 [ads + 1]."""

        def make() -> Int:
            place = {name: i for i, name in enumerate(categories)}
            at = [-1 if name is None else place.get(name, -1) for name in self.categories]
            return np.array([*at, -1], dtype=np.int64)

        index: Int = self.by_catalog((version, f"interests {len(categories)}"), make)
        return index

    def cached(self, owner: Any, make: Callable[[], Any]) -> Any:
        """What was worked out from these ads for an owner before, or is now."""
        made = self._made  # `keep_made` may put another one in its place meanwhile
        if owner not in made:
            made[owner] = make()
        return made[owner]

    def keep_made(self, owners: Container[Any]) -> None:
        """Forget what was worked out for others than these, such as for a ranker that no longer serves."""
        self._made = {owner: made for owner, made in self._made.items() if owner in owners}

    def as_of(self, now_us: int) -> AdTable:
        """The same ads, found unchanged at a later look; what was worked out from them stays."""
        return replace(self, read_us=now_us)

    def keep_catalogs(self, versions: Container[str]) -> None:
        """Forget places in catalogs of other versions than these."""
        self._by_catalog = {key: value for key, value in self._by_catalog.items() if key[0] in versions}

    def by_catalog(self, key: tuple[str, Any], make: Callable[[], Any]) -> Any:
        """What was worked out from a catalog and the ads' ids, not their values; the key begins with its version."""
        by_catalog = self._by_catalog  # `keep_catalogs` may put another one in its place meanwhile
        if key not in by_catalog:
            by_catalog[key] = make()
        return by_catalog[key]

    def _take_over(self, old: AdTable) -> None:
        """Values of the ads that another table has, too."""
        if same := same_ads(old, self):
            self._by_catalog, self.keys = old._by_catalog, old.keys
        rows = np.arange(len(self.ids)) if same else old.rows(self.ids)
        at = np.flatnonzero(rows >= 0)
        for name in self.values.keys() & old.values.keys():
            self.values[name][at] = old.values[name][rows[at]]
        for name in self.available_us.keys() & old.available_us.keys():
            self.available_us[name][at] = old.available_us[name][rows[at]]


def read_ads(reader: OnlineReader, catalog: HistoryCatalog, now_us: int, *, pause_s: float = 0.0) -> AdTable:
    """Read all ads of a catalog from the online store.

    Parameters
    ----------
    pause_s : float
        Between batches, at least, so that reading does not hold up requests; 0: none.
    """
    table = AdTable.unread(reader, catalog)
    _read(table, reader, np.arange(len(table.ids)), pause_s)
    table.read_us = now_us
    return table


def refreshed(
    old: AdTable, reader: OnlineReader, catalog: HistoryCatalog, now_us: int, *, pause_s: float = 0.0
) -> AdTable:
    """The ads as they are now, of a table that was read before: only rows whose time changed are read.

    Parameters
    ----------
    old : AdTable
        Read by the same reader; it is left as it is.
    pause_s : float
        Between batches, at least, so that reading does not hold up requests; 0: none.

    Returns
    -------
    AdTable
        With all that was worked out from the old one, where nothing changed.
    """
    table = AdTable.unread(reader, catalog)
    table._take_over(old)
    changed = _changed(table, reader, pause_s)
    if not len(changed) and same_ads(old, table):
        return old.as_of(now_us)
    for values in table.values.values():  # a row that is gone leaves nothing behind
        values[changed] = None if values.dtype == object else np.nan
    for moments in table.available_us.values():
        moments[changed] = -1
    _read(table, reader, changed, pause_s)
    table.read_us = now_us
    return table


def same_ads(one: AdTable, other: AdTable) -> bool:
    """Whether two tables list the same ads, of the same advertisers and categories."""
    return (one.ids, one.advertisers, one.categories) == (other.ids, other.advertisers, other.categories)


def _changed(table: AdTable, reader: OnlineReader, pause_s: float) -> Int:
    """Rows of the table whose time is another one in the store; all where it does not give times by themselves."""
    table.keys = table.keys or reader.ad_keys(table.ids)
    if table.keys is None:
        return np.arange(len(table.ids))
    changed = []
    for start in range(0, len(table.ids), _TIMES):
        begin = time.perf_counter()
        times = reader.ad_times(table.keys[start : start + _TIMES])
        others = [table.available_us[name][start : start + len(at)] != at for name, at in times.items()]
        changed.append(start + np.flatnonzero(np.any(others, axis=0)))
        _rest(begin, pause_s)
    return np.concatenate(changed) if changed else np.zeros(0, dtype=np.int64)


def _read(table: AdTable, reader: OnlineReader, rows: Int, pause_s: float) -> None:
    """Read some ads into their rows."""
    for start in range(0, len(rows), _BATCH):
        begin = time.perf_counter()
        places_of = rows[start : start + _BATCH].tolist()
        for name, read in reader.read_ads([table.ids[at] for at in places_of]).items():
            view = reader.views[name]
            for at, row in zip(places_of, read, strict=True):
                if not isinstance(row, ViewRow):
                    continue
                table.available_us[name][at] = row.available_us
                for feature, column in view.columns.items():
                    value = row.text(feature) if feature in view.text else row.number(feature)
                    if value is not None:
                        table.values[column][at] = value
        _rest(begin, pause_s)


def _rest(begin: float, pause_s: float) -> None:
    """Leave the interpreter to requests, after a batch that began then."""
    if pause_s:
        time.sleep(max(pause_s, _REST * (time.perf_counter() - begin)))
