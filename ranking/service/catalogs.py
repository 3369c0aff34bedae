"""What the numbers in a row mean: catalogs by version, and the mean prior of each snapshot.

A row says by which catalog its ids and its vector are numbered. Rows of two catalogs stand side by side in the store
while it is being refreshed, so every version that is still published is known here, and a row of an unknown one is not
used. Published folders never change, so each is read once.
"""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from feature_repo.contract import (
    AD_ID,
    CATALOG_FILE,
    INTERESTS_FILE,
    PRIOR_ROW,
    SNAPSHOT,
    TABLE_FILE,
    USER_HISTORY_VIEW,
)
from feature_repo.runs import MANIFEST
from ranking.counts import Ints, micros
from ranking.gather import PriorFiles, mean_probability
from ranking.history import HISTORY_IDS, LEVELS

log = logging.getLogger("advprior.service")
#: Snapshots whose mean prior is worked out ahead: the newest, and one that a rollback goes to.
_AHEAD = 2

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class HistoryCatalog:
    """Ids of a history: of each ad, per level.

    Attributes
    ----------
    ads : list of ad ids
    advertisers, categories : lists of str or None, per ad
    ids : dict of level to int64 [ads], −1 where the ad has none
    names : dict of level to the name of each id; of an ad's level ``advertiser|category``
    """

    version: str
    ads: list[str]
    advertisers: list[str | None]
    categories: list[str | None]
    ids: dict[str, Ints]
    names: dict[str, list[str]]

    @classmethod
    def read(cls, folder: Path) -> HistoryCatalog:
        """Read what `rank features` published."""
        about: dict[str, Any] = json.loads((folder / HISTORY_IDS).read_text())
        of_ad, names = about["ads"], about["advertisers"]
        advertisers = [names[i] if i >= 0 else None for i in of_ad["advertiser"]]
        categories = [about["categories"][i] if i >= 0 else None for i in of_ad["category"]]
        ids = {level: np.array(of_ad[level], dtype=np.int64) for level in LEVELS}
        pairs = [""] * int(about["sizes"]["ad"])
        for i, advertiser, category in zip(ids["ad"].tolist(), advertisers, categories, strict=True):
            if i >= 0:
                pairs[i] = f"{advertiser}|{category}"
        both = {"advertiser": list(names), "category": list(about["categories"]), "ad": pairs}
        return cls(str(about.get("version", "")), list(of_ad[AD_ID]), advertisers, categories, ids, both)


@dataclass
class PriorCatalog:
    """A catalog of advertisers, and the mean probability of each over the users of a snapshot.

    ``interests`` are the categories of the vector of interests, where the predictor has one.
    """

    version: str
    advertisers: list[str]
    interests: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    means: dict[int, Doubles] = field(default_factory=dict)


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
        self._moments: dict[Path, Ints] = {}
        self._wanted: set[tuple[str, str, int]] = set()
        self.wanted = threading.Event()

    def refresh(self, now_us: int) -> None:
        """Take in what was published since; a folder that cannot be read is logged and left out."""
        for folder in self._folders(USER_HISTORY_VIEW):
            if (history := self._once(folder, HistoryCatalog.read)) is not None:
                self.histories[history.version] = history
                self.newest = history  # the current one comes last
        for view in self._prior_views:
            self._refresh_priors(view, now_us)
        while self._wanted:
            self._mean(*self._wanted.pop())
        self.wanted.clear()

    def prior(self, view: str, version: str) -> PriorCatalog | None:
        """The catalog that a row's vector is ordered by."""
        return self.priors.get(view, {}).get(version)

    def mean(self, view: str, version: str, snapshot_us: int) -> Doubles | None:
        """Mean probability per advertiser; None (and worked out soon) when it is not known yet."""
        known = self.prior(view, version)
        if known is None or snapshot_us not in known.means:
            self._wanted.add((view, version, snapshot_us))
            self.wanted.set()
            return None
        return known.means[snapshot_us]

    def _folders(self, view: str) -> list[Path]:
        """Published versions of a view, the current one last."""
        link = self._data / view
        current = link.resolve()
        older = sorted(self._data.glob(f".versions/{view}-*"), key=lambda p: p.stat().st_mtime)
        found = [folder for folder in older if folder.resolve() != current]
        return [folder for folder in [*found, current] if (folder / MANIFEST).is_file()]

    def _once(self, folder: Path, read: Any) -> Any:
        if folder not in self._seen:
            try:
                self._seen[folder] = read(folder)
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("a published folder cannot be read", extra={"folder": str(folder), "error": str(error)})
                return None
        return self._seen[folder]

    def _refresh_priors(self, view: str, now_us: int) -> None:
        """Take in new publications; each catalog is swapped whole, once its means are worked out."""
        by_version: dict[str, PriorCatalog] = {}
        for folder in self._folders(view):
            found: PriorCatalog | None = self._once(folder, _read_prior)
            if found is not None:
                mine = by_version.setdefault(found.version, PriorCatalog(found.version, found.advertisers))
                mine.interests = found.interests  # the newest publication's
                mine.folders.append(folder)
        for version, new in by_version.items():
            old = self.priors[view].get(version)
            if old is not None and old.folders == new.folders:
                new = old
            # rows of older snapshots may still be in the store: what was known of them stays known
            wanted = {*self._newest_snapshots(new, now_us), *(old.means if old is not None else ())}
            for snapshot in sorted(wanted - set(new.means)):
                _work_out(new, snapshot)
            if old is not None:
                for snapshot, mean in old.means.items():
                    new.means.setdefault(snapshot, mean)
            self.priors[view][version] = new

    def _newest_snapshots(self, known: PriorCatalog, now_us: int) -> list[int]:
        newest: set[int] = set()
        for folder in known.folders:
            if folder not in self._moments:
                table = pd.read_parquet(folder / TABLE_FILE, columns=[SNAPSHOT])
                self._moments[folder] = np.unique(micros(table[SNAPSHOT]))
            moments = self._moments[folder]
            newest.update(moments[moments <= now_us][-_AHEAD:].tolist())
        return sorted(newest)[-_AHEAD:]

    def _mean(self, view: str, version: str, snapshot_us: int) -> None:
        known = self.prior(view, version)
        if known is not None and snapshot_us not in known.means:
            _work_out(known, snapshot_us)


def _read_prior(folder: Path) -> PriorCatalog:
    about: dict[str, Any] = json.loads((folder / CATALOG_FILE).read_text())
    interests: list[str] = []
    if (folder / INTERESTS_FILE).is_file():
        listed = json.loads((folder / INTERESTS_FILE).read_text())["advertisers"]
        interests = [entry["advertiser_id"] for entry in listed]
    return PriorCatalog(str(about["version"]), [one["advertiser_id"] for one in about["advertisers"]], interests)


def _work_out(known: PriorCatalog, snapshot_us: int) -> None:
    """The mean prior of a snapshot, from the newest publication that has it."""
    for folder in reversed(known.folders):
        try:
            table = pd.read_parquet(folder / TABLE_FILE, columns=[PRIOR_ROW, SNAPSHOT])
            moments = micros(table[SNAPSHOT])
            mine = moments == snapshot_us
            if mine.any():
                rows = table[PRIOR_ROW].to_numpy(np.int64)[mine]
                known.means[snapshot_us] = mean_probability(PriorFiles.open(folder), rows, moments[mine])[1][0]
                return
        except (OSError, ValueError) as error:
            log.warning("a published folder cannot be read", extra={"folder": str(folder), "error": str(error)})
