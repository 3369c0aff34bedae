"""What published features were counted from, as one digest: where it is unchanged, they need not be counted again.

Features of a snapshot are made of what counts strictly before it. The digest is of exactly that, up to one snapshot:
rows that come later, or arrived later, leave it as it is; a row that is corrected, removed or moved into the past
changes it, and so does whatever decides how rows are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from advprior.store.arrays import Bool, Int
from advprior.store.runs import digest
from ranking.frame.numbering import HistoryIds
from ranking.frame.popularity import Outcomes
from ranking.frame.stream_counts import StreamRows
from ranking.frame.streams import AD, PAIR

Hashes = npt.NDArray[np.uint64]

# the constants of SplitMix64 (Steele, Lea, Flood 2014): each bit of a row moves every bit of its hash
_ODD, _FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True, eq=False)
class PastRows:
    """Rows of some users, or of all, that features are counted from.

    Parameters
    ----------
    users, ads : sequence of str
        In the order of the rows' owners and of the ads' places.
    ids : HistoryIds
    events : StreamRows
    outcomes : Outcomes
    """

    users: Any
    ads: Any
    ids: HistoryIds
    events: StreamRows
    outcomes: Outcomes

    def sums(self, moment: int) -> RowSums:
        """Of the rows that count strictly before a moment."""
        user, of_ad = _of_texts(self.users), _of_ads(self.ids, self.ads, moment)
        return RowSums(tuple(self._of_events(moment, user)), tuple(self._of_outcomes(moment, user, of_ad)))

    def _of_events(self, moment: int, user: Hashes) -> list[int]:
        rows, names = self.events, _of_names(self.ids, self.ads, moment)
        codes = [names[numbering][code] for numbering, code in rows.codes.items() if numbering in names]
        told = [rows.told_from.get(numbering) for numbering in rows.codes if numbering in names]
        codes = [c if t is None else np.where(t <= moment, c, np.uint64(0)) for c, t in zip(codes, told, strict=True)]
        value = rows.value.astype(np.float64).view(np.uint64)
        return _sum(rows.times < moment, np.append(user, np.uint64(0))[rows.owner], _whole(rows.times), value, *codes)

    def _of_outcomes(self, moment: int, user: Hashes, of_ad: Hashes) -> list[int]:
        """An outcome is known once it is complete; a click with its impression."""
        rows, nobody = self.outcomes, np.uint64(0)
        owner, ad = np.append(user, nobody)[rows.user], np.append(of_ad, nobody)[rows.ad]
        known = rows.positive & (rows.complete < moment)
        clicked = np.zeros(len(known), np.bool_) if rows.clicked is None else rows.clicked
        return _sum(
            rows.shown < moment, owner, ad, _whole(rows.shown), known.astype(np.uint64), clicked.astype(np.uint64)
        )


@dataclass(frozen=True)
class RowSums:
    """Number of rows and sum of their hashes, of some users: those of others can be added.

    >>> RowSums((1, 2**64 - 1), (0, 0)) + RowSums((1, 2), (3, 4))
    RowSums(events=(2, 1), outcomes=(3, 4))
    """

    events: tuple[int, ...] = (0, 0)
    outcomes: tuple[int, ...] = (0, 0)

    def __add__(self, other: RowSums) -> RowSums:
        return RowSums(_added(self.events, other.events), _added(self.outcomes, other.outcomes))


def _added(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    return tuple((a + b) % 2**64 for a, b in zip(left, right, strict=True))


@dataclass(frozen=True, eq=False)
class Past:
    """All that features are counted from.

    Parameters
    ----------
    users, ads : sequence of str
    users_from, ads_from : int arrays
        Microseconds since 1970 from which each exists.
    ids : HistoryIds
    rows : callable
        `RowSums` of all users' rows before a moment.
    settings : mapping
        How it is counted.
    """

    users: Any
    ads: Any
    users_from: Int
    ads_from: Int
    ids: HistoryIds
    rows: Callable[[int], RowSums]
    settings: Mapping[str, Any]
    _digests: dict[int, str] = field(default_factory=dict)

    def until(self, moment: int) -> str:
        """Digest of what is known strictly before a moment, and of who exists then; worked out once."""
        if moment not in self._digests:
            self._digests[moment] = self._until(moment)
        return self._digests[moment]

    def _until(self, moment: int) -> str:
        user, of_ad, rows = _of_texts(self.users), _of_ads(self.ids, self.ads, moment), self.rows(moment)
        sums = {
            "users": _sum(self.users_from <= moment, user, _whole(self.users_from)),
            "ads": _sum(self.ads_from <= moment, of_ad, _whole(self.ads_from)),
            "events": list(rows.events),
            "outcomes": list(rows.outcomes),
        }
        return digest([dict(self.settings), sums])


def _of_ads(ids: HistoryIds, ads: Any, moment: int) -> Hashes:
    """Of each ad with its advertiser and category, department and cluster."""
    names = _of_names(ids, ads, moment)
    return _mixed(*(names[numbering][ids.ads[numbering].to_numpy()] for numbering in names))


def _of_names(ids: HistoryIds, ads: Any, moment: int) -> dict[str, Hashes]:
    """Hash of each id's name by numbering; 0, as for no id, where it does not exist yet."""
    names = {"advertiser": ids.advertisers, "category": ids.categories, AD: ads, **ids.groupings}
    return {
        numbering: np.append(np.where(ids.exist_from[numbering] <= moment, _of_texts(names[numbering]), 0), 0).astype(
            np.uint64
        )
        for numbering in ids.sizes
        if numbering != PAIR  # it is an advertiser and a category
    }


def _of_texts(names: Any) -> Hashes:
    return pd.util.hash_array(np.asarray(list(names), object), categorize=False).astype(np.uint64)


def _whole(values: Int) -> Hashes:
    return values.astype(np.int64).view(np.uint64)


def _mixed(*columns: Hashes) -> Hashes:
    """One hash a row of several columns, which tells them apart."""
    out = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        out = (out ^ column) + _ODD
        out = (out ^ (out >> np.uint64(30))) * _FIRST
        out = (out ^ (out >> np.uint64(27))) * _SECOND
        out ^= out >> np.uint64(31)
    return out


def _sum(chosen: Bool, *columns: Hashes) -> list[int]:
    """How many rows are chosen, and the sum of their hashes: of the rows, whatever their order."""
    hashes = _mixed(*(column[chosen] for column in columns))
    return [len(hashes), int(hashes.sum(dtype=np.uint64))]
