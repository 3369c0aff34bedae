"""What the numbers in a row mean: catalogs by version, and the mean prior of each snapshot.

A row says by which catalog its ids and its vector are numbered. Rows of two catalogs stand side by side in the store
while it is being refreshed, so every version that is still published is read here, and a row of another one is not
used. Published folders never change, so each is read once.

One snapshot may be published twice with other values, when a predictor was trained anew. A row's own vector then tells
which publication it is of, so that it is never weighed against the mean of another.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from advprior.store.arrays import Double, Int
from advprior.store.contract import (
    AD_ID,
    CATALOG_FILE,
    INTERESTS_FILE,
    PRIOR_ROW,
    SNAPSHOT,
    TABLE_FILE,
    USER_HISTORY_VIEW,
)
from advprior.store.runs import MANIFEST
from advprior.store.times import micros
from ranking.frame.gather import PriorFiles, mean_probability
from ranking.frame.numbering import HISTORY_IDS, ids_of_ads

log = logging.getLogger("advprior.service")
#: Snapshots whose mean prior is worked out ahead: the newest, and one that a rollback goes to.
_AHEAD = 2
#: What is no longer published is remembered for the rows that are still in the store: so many catalogs of a view,
#: snapshots of a catalog, and publications of a snapshot. Without a limit a service would grow with every refresh.
_CATALOGS, _SNAPSHOTS, _PUBLICATIONS = 6, 16, 4


@dataclass(frozen=True)
class HistoryCatalog:
    """Ids of a history: of each ad, by numbering.

    Attributes
    ----------
    ads : list of ad ids
    advertisers, categories : lists of str or None, per ad
    ids : dict of numbering to int64 [ads], −1 where the ad has none
    names : dict of level of events to the name of each id; of an ad's level ``advertiser|category``
    """

    version: str
    ads: list[str]
    advertisers: list[str | None]
    categories: list[str | None]
    ids: dict[str, Int]
    names: dict[str, list[str]]

    @classmethod
    def read(cls, folder: Path) -> HistoryCatalog:
        """Read what `rank features` published."""
        about: dict[str, Any] = json.loads((folder / HISTORY_IDS).read_text())
        of_ad, names = about["ads"], about["advertisers"]
        advertisers = [names[i] if i >= 0 else None for i in of_ad["advertiser"]]
        categories = [about["categories"][i] if i >= 0 else None for i in of_ad["category"]]
        ids = {numbering: ids_of_ads(about, numbering) for numbering in about["sizes"]}
        of_ads = [""] * int(about["sizes"]["ad"])
        for i, advertiser, category in zip(ids["ad"].tolist(), advertisers, categories, strict=True):
            if i >= 0:
                of_ads[i] = f"{advertiser}|{category}"
        by_level = {"advertiser": list(names), "category": list(about["categories"]), "ad": of_ads}
        return cls(str(about.get("version", "")), list(of_ad[AD_ID]), advertisers, categories, ids, by_level)


@dataclass(frozen=True)
class Published:
    """One publication of a snapshot: its mean probability per advertiser, and its rows.

    The files stay mapped, so that they can be asked when they are no longer in the repository.
    """

    publication: str
    mean: Double
    files: PriorFiles

    def holds(self, pointer: float | None, vector: npt.NDArray[np.float32]) -> bool:
        """Whether a row's vector is the one that this publication has at the row's pointer."""
        rows = self.files.log_probs
        return pointer is not None and 0 <= pointer < len(rows) and np.array_equal(rows[int(pointer)], vector)


@dataclass
class PriorCatalog:
    """A catalog of advertisers, and what was published of each snapshot: the oldest first.

    ``names`` are what people call the advertisers; ``interests`` the categories of the vector of interests, where the
    predictor has one.
    """

    version: str
    advertisers: list[str]
    names: dict[str, str] = field(default_factory=dict)
    interests: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    snapshots: dict[int, list[Published]] = field(default_factory=dict)


class Catalogs:
    """Every published version of the history's and the priors' catalogs.

    Parameters
    ----------
    repo : Path
        Feature repository.
    prior_views : sequence of str
    """

    def __init__(self, repo: Path, prior_views: list[str]) -> None:
        self._data = Path(repo) / "data"
        self._prior_views = list(prior_views)
        self.histories: dict[str, HistoryCatalog] = {}
        self.newest: HistoryCatalog | None = None
        self.priors: dict[str, dict[str, PriorCatalog]] = {view: {} for view in prior_views}
        self._seen: dict[Path, HistoryCatalog | PriorCatalog] = {}
        self._moments: dict[Path, Int] = {}
        self._worked_out: set[tuple[Path, int]] = set()
        self._links_seen: list[str] = []
        self._wanted: set[tuple[str, str, int]] = set()
        self.wanted = threading.Event()

    @property
    def links(self) -> tuple[str, ...]:
        """What was published at the last refresh."""
        return tuple(self._links_seen)

    def moved(self) -> bool:
        """Whether something was published since the last refresh: a look at links, no more."""
        return self._links() != self._links_seen

    def refresh(self, now_us: int) -> None:
        """Take in what was published since; a folder that cannot be read is logged and left out."""
        self._links_seen = self._links()
        folders = self._folders(USER_HISTORY_VIEW)
        histories = dict(self.histories)
        for folder in folders:
            if (history := self._once(folder, HistoryCatalog.read)) is not None:
                histories.pop(history.version, None)  # put in anew: the last ones are those that stay
                histories[history.version] = history
                self.newest = history  # the current one comes last
        self.histories = _newest(histories, _CATALOGS)
        for view in self._prior_views:
            folders += self._refresh_priors(view, now_us)
        while self._wanted:
            self._work_out_wanted(*self._wanted.pop())
        self._seen = {folder: catalog for folder, catalog in self._seen.items() if folder in folders}
        self._moments = {folder: moments for folder, moments in self._moments.items() if folder in folders}
        self._worked_out = {(folder, at) for folder, at in self._worked_out if folder in folders}
        self._let_go()
        self.wanted.clear()

    def _let_go(self) -> None:
        """Of every publication that is remembered a file stays open; what was read of it need not stay."""
        for by_version in self.priors.values():
            for catalog in by_version.values():
                for published in catalog.snapshots.values():
                    for one in published:
                        one.files.let_go()

    def versions(self) -> set[str]:
        """Of all catalogs that are remembered."""
        priors = (version for by_version in self.priors.values() for version in by_version)
        return {*self.histories, *priors}

    def publications(self, views: Sequence[str]) -> list[str]:
        """Where the views' links point to; a view that is no link never moves."""
        return [os.path.realpath(self._data / view) for view in views]

    def _links(self) -> list[str]:
        return self.publications((USER_HISTORY_VIEW, *self._prior_views))

    def prior(self, view: str, version: str) -> PriorCatalog | None:
        """The catalog that a row's vector is ordered by."""
        return self.priors.get(view, {}).get(version)

    def name_of(self, advertiser: str) -> str | None:
        """What people call an advertiser, by the newest prior catalog that lists it; None where none does."""
        for catalogs in self.priors.values():
            for catalog in reversed(catalogs.values()):
                if advertiser in catalog.names:
                    return catalog.names[advertiser]
        return None

    def published(
        self, view: str, version: str, snapshot_us: int, pointer: float | None, vector: npt.NDArray[np.float32]
    ) -> Published | None:
        """The publication that a row is of; None (and looked for soon) when it was not read yet.

        Parameters
        ----------
        pointer : the row's ``prior_row``
        vector : the row's log-probabilities as stored
        """
        catalog = self.prior(view, version)
        published = [] if catalog is None else catalog.snapshots.get(snapshot_us, [])
        # files are only looked into where publications differ in what they say of a snapshot
        of_row = published[0] if len(published) == 1 else None
        if len(published) > 1:
            of_row = next((one for one in published if one.holds(pointer, vector)), None)
        if of_row is None:
            self._wanted.add((view, version, snapshot_us))
            self.wanted.set()
        return of_row

    def _folders(self, view: str) -> list[Path]:
        """Published versions of a view, the current one last."""
        link = self._data / view
        current = link.resolve()
        older = sorted(self._data.glob(f".versions/{view}-*"), key=lambda p: p.stat().st_mtime)
        folders = [folder for folder in older if folder.resolve() != current]
        return [folder for folder in [*folders, current] if (folder / MANIFEST).is_file()]

    def _once(self, folder: Path, read: Any) -> Any:
        if folder not in self._seen:
            try:
                self._seen[folder] = read(folder)
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("a published folder cannot be read", extra={"folder": str(folder), "error": str(error)})
                return None
        return self._seen[folder]

    def _refresh_priors(self, view: str, now_us: int) -> list[Path]:
        """Take in new publications; each catalog is swapped whole, once its means are worked out."""
        by_version: dict[str, PriorCatalog] = {}
        folders = self._folders(view)
        for folder in folders:
            published: PriorCatalog | None = self._once(folder, _read_prior)
            if published is not None:
                of_version = by_version.setdefault(
                    published.version, PriorCatalog(published.version, published.advertisers)
                )
                # those of the newest publication
                of_version.names, of_version.interests = published.names, published.interests
                of_version.folders.append(folder)
        catalogs = dict(self.priors[view])
        for version, new in by_version.items():
            old = catalogs.pop(version, None)
            if old is not None and old.folders == new.folders:
                new = old
            elif old is not None:
                # rows of older snapshots may still be in the store: what was read of them stays
                new.snapshots = dict(old.snapshots)
            for snapshot in sorted({*self._newest_snapshots(new, now_us), *new.snapshots}):
                self._work_out(new, snapshot)
            newest = sorted(new.snapshots)[-_SNAPSHOTS:]
            self._worked_out -= {(f, at) for f in new.folders for at in set(new.snapshots) - set(newest)}
            new.snapshots = {snapshot: new.snapshots[snapshot] for snapshot in newest}
            catalogs[version] = new
        self.priors[view] = _newest(catalogs, _CATALOGS)
        return folders

    def _newest_snapshots(self, catalog: PriorCatalog, now_us: int) -> list[int]:
        newest: set[int] = set()
        for folder in catalog.folders:
            moments = self._moments_of(folder)
            newest.update(moments[moments <= now_us][-_AHEAD:].tolist())
        return sorted(newest)[-_AHEAD:]

    def _moments_of(self, folder: Path) -> Int:
        """Snapshots of a publication, ascending; none when it cannot be read."""
        if folder not in self._moments:
            try:
                table = _columns(folder, [SNAPSHOT])
            except (OSError, ValueError) as error:
                log.warning("a published folder cannot be read", extra={"folder": str(folder), "error": str(error)})
                return np.zeros(0, np.int64)
            self._moments[folder] = np.unique(micros(table[SNAPSHOT]))
        return self._moments[folder]

    def _work_out_wanted(self, view: str, version: str, snapshot_us: int) -> None:
        catalog = self.prior(view, version)
        if catalog is not None:
            self._work_out(catalog, snapshot_us)

    def _work_out(self, catalog: PriorCatalog, snapshot_us: int) -> None:
        """Add what publications say of a snapshot, where they differ from those that were read before."""
        published = list(catalog.snapshots.get(snapshot_us, []))
        for folder in catalog.folders:
            if (folder, snapshot_us) in self._worked_out or snapshot_us not in self._moments_of(folder):
                continue
            if (new := _read_snapshot(folder, snapshot_us, catalog.advertisers)) is None:
                continue
            self._worked_out.add((folder, snapshot_us))
            if not any(np.allclose(new.mean, one.mean, rtol=1e-9, atol=0.0) for one in published):
                published.append(new)
        if published:
            catalog.snapshots[snapshot_us] = published[-_PUBLICATIONS:]


def _read_prior(folder: Path) -> PriorCatalog:
    about: dict[str, Any] = json.loads((folder / CATALOG_FILE).read_text())
    interests: list[str] = []
    if (folder / INTERESTS_FILE).is_file():
        listed = json.loads((folder / INTERESTS_FILE).read_text())["advertisers"]
        interests = [entry["advertiser_id"] for entry in listed]
    ids = [one["advertiser_id"] for one in about["advertisers"]]
    names = {one["advertiser_id"]: str(one.get("name") or one["advertiser_id"]) for one in about["advertisers"]}
    return PriorCatalog(str(about["version"]), ids, names, interests)


def _columns(folder: Path, names: list[str]) -> pd.DataFrame:
    """Columns of a published table, read on this thread: Arrow's own would each keep memory of their own."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(folder / TABLE_FILE) as file:
        table: pd.DataFrame = file.read(names, use_threads=False).to_pandas(use_threads=False)
        return table


def _read_snapshot(folder: Path, snapshot_us: int, advertisers: list[str]) -> Published | None:
    """A publication's own mean of a snapshot."""
    try:
        table = _columns(folder, [PRIOR_ROW, SNAPSHOT])
        moments = micros(table[SNAPSHOT])
        of_snapshot = moments == snapshot_us
        files = replace(PriorFiles.open(folder), advertisers=advertisers)  # one list for all snapshots of a catalog
        mean = mean_probability(files, table[PRIOR_ROW].to_numpy(np.int64)[of_snapshot], moments[of_snapshot])[1][0]
        return Published(folder.name.rpartition("-")[2], mean, files)
    except (OSError, ValueError, IndexError) as error:
        log.warning("a published folder cannot be read", extra={"folder": str(folder), "error": str(error)})
        return None


def _newest(by_version: dict[str, Any], count: int) -> dict[str, Any]:
    """What was put in last."""
    return dict(list(by_version.items())[-count:])
