"""What the towers read: each user's past as sparse tokens at each snapshot, and what each ad is made of.

A user's tokens are the advertisers, categories and advertiser × category pairs of their events strictly before a
snapshot, each once with a fading weight and once with an even one, and their profile. Everything is read off the
tables at the time plan's snapshots, with its lag, exactly as the store's own history is: an event counts once it has
arrived, and a user who does not exist yet is nobody.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from advprior.store.arrays import Int
from advprior.store.contract import (
    AD_ID,
    ADVERTISER_ID,
    CATEGORY,
    EVENTS,
    LABEL,
    PROFILE_PREFIX,
    TIMESTAMP,
    USER_ID,
    USERS,
    TimePlan,
)
from advprior.store.existence import load_users_exist_from
from advprior.store.tables import load_tables
from advprior.store.times import DAY_US, counting_times, micros, moment_us
from ranking.frame.counts import codes_of, compact
from ranking.frame.fading import FADES, fading
from ranking.frame.read import SPLITS

if TYPE_CHECKING:
    import pandas as pd

LEVELS = ("advertiser", "category", "pair")


@dataclass(frozen=True)
class Vocabulary:
    """Names of what users and ads are described by, in index order: saved beside the towers' arrays.

    Parameters
    ----------
    advertisers, categories : tuple of str
    pairs : tuple of str
        ``advertiser|category``, as ads have them.
    ads : tuple of str
    profiles : tuple of str
        ``field=value``.
    """

    advertisers: tuple[str, ...]
    categories: tuple[str, ...]
    pairs: tuple[str, ...]
    ads: tuple[str, ...]
    profiles: tuple[str, ...]

    @classmethod
    def of(cls, users: pd.DataFrame, ads: pd.DataFrame) -> Vocabulary:
        """From the tables of users and ads."""
        return cls(
            tuple(sorted(ads[ADVERTISER_ID].dropna().astype(str).unique())),
            tuple(sorted(ads[CATEGORY].dropna().astype(str).unique())),
            tuple(sorted(set(_pairs(ads)) - {""})),
            tuple(sorted(ads[AD_ID].astype(str))),
            tuple(sorted({value for values in _profiles(users).values() for value in values if value})),
        )

    @property
    def sizes(self) -> dict[str, int]:
        """Number of names per level of a user's history."""
        return {"advertiser": len(self.advertisers), "category": len(self.categories), "pair": len(self.pairs)}

    @property
    def user_tokens(self) -> int:
        """Columns of the users' matrix."""
        return len(FADES) * sum(self.sizes.values()) + len(self.profiles)

    def codes(self, table: pd.DataFrame) -> dict[str, Int]:
        """Index of advertiser, category and pair of each row of a table, −1 where it has none that is known."""
        return {
            "advertiser": codes_of(table[ADVERTISER_ID].astype(object), self.advertisers),
            "category": codes_of(table[CATEGORY].astype(object), self.categories),
            "pair": codes_of(_pairs(table), self.pairs),
        }

    def ad_tokens(self, ads: pd.DataFrame) -> Int:
        """Tokens of each ad, int [ads, 4]: its id, pair, advertiser, category; −1 for one that is not known.

        An ad that no fit has seen is still its advertiser and its category.
        """
        by_level, start, columns = self.codes(ads), 0, []
        for codes, size in (
            (codes_of(ads[AD_ID].astype(object), self.ads), len(self.ads)),
            *((by_level[level], self.sizes[level]) for level in ("pair", "advertiser", "category")),
        ):
            columns.append(np.where(codes >= 0, codes + start, -1))
            start += size
        return np.stack(columns, axis=1)

    def to_json(self) -> dict[str, list[str]]:
        """JSON form."""
        return {name: list(getattr(self, name)) for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, data: Mapping[str, Sequence[str]]) -> Vocabulary:
        """What `to_json` wrote."""
        return cls(**{name: tuple(data[name]) for name in cls.__dataclass_fields__})


class Pasts:
    """Users' tokens as of any snapshot.

    Parameters
    ----------
    users, events : DataFrame
        Canonical tables.
    vocabulary : Vocabulary
    exist_from : int array [users], optional
        See `advprior.store.existence.users_exist_from`: before, a user is nobody, without tokens. Default: always.
    """

    def __init__(
        self, users: pd.DataFrame, events: pd.DataFrame, vocabulary: Vocabulary, exist_from: Int | None = None
    ) -> None:
        self.ids = users[USER_ID].astype(str).tolist()
        self.vocabulary = vocabulary
        self.exist_from = np.zeros(len(users), np.int64) if exist_from is None else exist_from
        self._times = counting_times(events)
        owner = codes_of(events[USER_ID].astype(object), self.ids)
        self._levels = []
        for level, codes in vocabulary.codes(events).items():
            size = vocabulary.sizes[level]
            rows = np.flatnonzero((codes >= 0) & (owner >= 0))
            cells, place = compact((owner[rows], len(self.ids)), (codes[rows], max(size, 1)))
            self._levels.append((size, rows, cells, place))
        columns, users_of = [], []
        for values in _profiles(users).values():
            codes = codes_of(values, vocabulary.profiles)
            given = np.flatnonzero(codes >= 0)
            users_of.append(given)
            columns.append(codes[given])
        at = (np.concatenate(users_of), np.concatenate(columns)) if columns else (np.array([], int), np.array([], int))
        shape = (len(self.ids), len(vocabulary.profiles))
        self._profile = sparse.csr_matrix((np.ones(len(at[0]), np.float32), at), shape=shape)

    @classmethod
    def load(cls, tables: Path, vocabulary: Vocabulary) -> Pasts:
        """Of every user of finished canonical tables, from when they exist."""
        loaded = load_tables(tables, USERS, EVENTS)
        users = loaded[USERS]
        exist_from = load_users_exist_from(tables, users[USER_ID].astype(str).tolist())
        return cls(users, loaded[EVENTS], vocabulary, exist_from)

    def at(self, moment: int) -> Any:
        """Sparse float32 [users, tokens] of what was known strictly before ``moment`` (microseconds).

        Rows are of length 1.
        """
        blocks = []
        age = (moment - self._times) / DAY_US
        for size, rows, cells, place in self._levels:
            for value in fading(age[rows], place, len(cells)).T:
                some = value > 0
                at = (cells[some] // max(size, 1), cells[some] % max(size, 1))
                blocks.append(sparse.csr_matrix((value[some], at), shape=(len(self.ids), size)))
        matrix = sparse.hstack([*blocks, self._profile], format="csr", dtype=np.float32)
        if (self.exist_from > moment).any():
            matrix = sparse.diags_array((self.exist_from <= moment).astype(np.float32)) @ matrix
        length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
        return sparse.diags_array(1 / np.maximum(length, 1e-6)).astype(np.float32) @ matrix


@dataclass(frozen=True)
class Requests:
    """One request per user and snapshot in which the user was shown anything.

    Parameters
    ----------
    user : int [R]
        Row of the users table.
    snapshot : int [R]
        Place among `moments`.
    time : datetime64[us] [R]
        Of the request's first impression: a prior must be known then.
    split : str [R]
    engaged : int [P, 2]
        Request and ad (row of the ads table) of each ad that the user engaged with.
    live : dict of int to int array
        Snapshot to the ads that anybody was shown until the next one: the inventory of that time.
    """

    user: Int
    snapshot: Int
    time: NDArray[Any]
    split: NDArray[Any]
    engaged: Int
    live: dict[int, Int]


def snapshot_of(times: Int, plan: TimePlan) -> Int:
    """Place in ``plan.feature_snapshots()`` of the newest snapshot available at each time, −1 before the first."""
    available = np.array([moment_us(s + plan.lag) for s in plan.feature_snapshots()], dtype=np.int64)
    place: Int = np.searchsorted(available, times, side="right") - 1
    return place


def requests(
    impressions: pd.DataFrame, users: Sequence[str], ads: Sequence[str], plan: TimePlan, *, start: int | None = None
) -> Requests:
    """Requests of all impressions from ``start`` (microseconds; default: the first snapshot) to the plan's end."""
    time = micros(impressions[TIMESTAMP])
    at = snapshot_of(time, plan)
    first = moment_us(plan.start) if start is None else start
    within = (at >= 0) & (time >= first) & (time < moment_us(plan.end))
    table = impressions[within]
    time, at = time[within], at[within]
    edges = np.array([moment_us(plan.train_end), moment_us(plan.valid_end)])
    split = np.searchsorted(edges, time, side="right")
    user = codes_of(table[USER_ID].astype(object), users)
    ad = codes_of(table[AD_ID].astype(object), ads)
    # the snapshot in which a split ends makes two requests, one on either side
    groups, place = compact((user, len(users)), (at, int(at.max(initial=0)) + 1), (split, 3))
    oldest = np.full(len(groups), np.iinfo(np.int64).max)
    np.minimum.at(oldest, place, time)
    of_split, rest = groups % 3, groups // 3
    snapshot, of_user = rest % (int(at.max(initial=0)) + 1), rest // (int(at.max(initial=0)) + 1)
    won = (table[LABEL] == 1).to_numpy()
    engaged = np.unique(np.stack([place[won], ad[won]], axis=1), axis=0)
    live = {int(s): np.unique(ad[at == s]) for s in np.unique(at)}
    names = np.array(SPLITS, dtype=object)
    return Requests(of_user, snapshot, oldest.view("datetime64[us]"), names[of_split], engaged, live)


def blocks(rows: Int, size: int) -> Iterator[Int]:
    """Rows in blocks of at most ``size``."""
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


def _pairs(table: pd.DataFrame) -> list[str]:
    """``advertiser|category`` of each row, empty where one of them is missing."""
    whole = table[ADVERTISER_ID].notna() & table[CATEGORY].notna()
    text = table[ADVERTISER_ID].astype(str) + "|" + table[CATEGORY].astype(str)
    return text.where(whole, "").tolist()


def _profiles(users: pd.DataFrame) -> dict[str, list[str]]:
    """``field=value`` of each user and profile field, empty where it is missing."""
    fields = {}
    for name in users.columns:
        if str(name).startswith(PROFILE_PREFIX):
            text = str(name) + "=" + users[name].astype(str)
            fields[str(name)] = text.where(users[name].notna(), "").tolist()
    return fields
