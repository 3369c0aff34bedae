"""Histories: each user's events with advertisers as flat arrays in time order, cut strictly before a snapshot.

Every predictor reads the same object. An event takes its place when it counts: when it happened, or when the log got
to know of it if that is later (`advprior.store.times.counting_times`), so that nothing is ever put in between. Events
of one (user, time) are one *occasion*: they know nothing of each other, and a snapshot at that very time sees none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from advprior.store.arrays import Bool, Int
from advprior.store.contract import ADVERTISER_ID, CATEGORY, PROFILE_PREFIX, TEXT, USER_ID, VALUE
from advprior.store.times import counting_times, moment_us

if TYPE_CHECKING:
    import pandas as pd

    from advprior.history.catalog import Catalog

Codes = npt.NDArray[np.int32]
UNKNOWN = -1  # code of what is not known
_LARGEST = float(np.finfo(np.float32).max)  # a larger amount would be infinite


def micros(moment: datetime) -> int:
    """Microseconds since the epoch of a time with a zone."""
    if moment.tzinfo is None:
        raise ValueError("a time needs a zone")
    return moment_us(moment)


@dataclass(frozen=True)
class Histories:
    """Events of U users, flat, sorted by user, time, advertiser; one row per (user, time, advertiser).

    Attributes
    ----------
    users : tuple of str
        User ids in order.
    profiles : tuple of str
        One line of text each, empty where nothing is known.
    offsets : int64 [U + 1]
        Rows of user u are ``offsets[u]:offsets[u + 1]``.
    time : int64 [E]
        Microseconds UTC, of when an event counts.
    advertiser : int64 [E]
        Index in the catalog.
    text, category : int32 [E]
        Index in ``texts`` and ``categories``, `UNKNOWN` where an event has none; empty where no event has any.
        What a row joins: its distinct texts in alphabetical order with "; " between, its alphabetically first category.
    value : float32 [E]
        Sum over the row's events; empty where the tables have no values.
    texts, categories : tuple of str
        Those of *all* events the histories were built from, later ones too: their number and order tell of the future,
        so fit on the strings behind ``before(cutoff)``'s codes and translate with `recode`.
    profile_fields : tuple of str
        Names of the profile's F fields.
    profile_levels : tuple of tuple of str
        Values of each field in alphabetical order.
    profile_codes : int32 [U, F]
        Index in the field's levels, `UNKNOWN` where it is not told.
    departments : int32 [N]
        Department of each advertiser of the catalog, `UNKNOWN` where it has none; empty where none has.
    """

    users: tuple[str, ...]
    profiles: tuple[str, ...]
    offsets: Int
    time: Int
    advertiser: Int
    text: Codes = field(default_factory=lambda: np.zeros(0, np.int32))
    category: Codes = field(default_factory=lambda: np.zeros(0, np.int32))
    value: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    texts: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    profile_fields: tuple[str, ...] = ()
    profile_levels: tuple[tuple[str, ...], ...] = ()
    profile_codes: Codes = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    departments: Codes = field(default_factory=lambda: np.zeros(0, np.int32))

    def __len__(self) -> int:
        return len(self.users)

    def of(self, users: Int) -> tuple[Histories, Int]:
        """Histories that hold some users [n], and their numbers there [n]: as `advprior.history.everyone` has it."""
        return self, users

    def blocks(self) -> Iterator[Histories]:
        """Everyone's histories, all at once."""
        yield self

    def rows(self, user: int) -> slice:
        """Rows of one user."""
        return slice(int(self.offsets[user]), int(self.offsets[user + 1]))

    @property
    def user_of_row(self) -> Int:
        """User index of every row [E]."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.offsets))

    def seek(self, user: Int, moment: Int) -> Int:
        """First row of each user [P] at or after a moment [P] (microseconds); the end of the user's rows without one.

        A binary search for all points at once, within each user's rows: its cost does not hang on other users, and
        no key of user and time could overflow.

        >>> h = Histories(("u", "v"), ("", ""), np.array([0, 2, 3]), np.array([1, 5, 3]), np.array([0, 1, 0]))
        >>> h.seek(np.array([0, 0, 0, 1]), np.array([1, 2, 6, 9])).tolist()
        [0, 1, 2, 3]
        """
        low, high = self.offsets[user], self.offsets[user + 1]
        while (open_ := low < high).any():
            middle = (low + high) // 2
            earlier = open_ & (self.time[np.where(open_, middle, 0)] < moment)
            low = np.where(earlier, middle + 1, low)
            high = np.where(open_ & ~earlier, middle, high)
        return low

    def before(self, cutoff: int) -> Histories:
        """The histories with events strictly before ``cutoff`` (microseconds) only."""
        return self.with_rows(self.time < cutoff)

    def with_rows(self, keep: Bool) -> Histories:
        """The histories with some of their events [E] only; users, profiles and codes stay what they are.

        >>> h = Histories(("u", "v"), ("", ""), np.array([0, 2, 3]), np.array([1, 2, 1]), np.array([0, 1, 0]))
        >>> h.with_rows(h.advertiser == 0).offsets.tolist()
        [0, 1, 2]
        """
        counts = np.bincount(self.user_of_row[keep], minlength=len(self))
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        detail = {name: codes[keep] for name in ("text", "category", "value") if len(codes := getattr(self, name))}
        return replace(self, offsets=offsets, time=self.time[keep], advertiser=self.advertiser[keep], **detail)


def recode(codes: Codes, ours: tuple[str, ...], theirs: tuple[str, ...]) -> Codes:
    """Codes of ``ours`` as codes of ``theirs``: for a model that was fitted on another list of values.

    >>> recode(np.array([0, 1, -1], np.int32), ("dry", "oily"), ("normal", "oily")).tolist()
    [-1, 1, -1]
    """
    index = {value: code for code, value in enumerate(theirs)}
    # one more at the end, where UNKNOWN points
    table = np.asarray([*(index.get(value, UNKNOWN) for value in ours), UNKNOWN], np.int32)
    return table[codes]


def profile_text(users: pd.DataFrame) -> list[str]:
    """One line a user from the ``profile_*`` columns, missing fields left out.

    >>> import pandas as pd
    >>> profile_text(pd.DataFrame({"user_id": ["u"], "profile_age": ["45-54"], "profile_kids_count": [None]}))
    ['Age: 45-54']
    """
    fields = [c for c in users.columns if c.startswith(PROFILE_PREFIX)]
    if not fields:  # without a column pandas has no rows to go through
        return [""] * len(users)
    titles = [c.removeprefix(PROFILE_PREFIX).replace("_", " ").capitalize() for c in fields]
    lines = []
    for values in users[fields].itertuples(index=False, name=None):
        entries = [
            f"{t}: {v}" for t, v in zip(titles, values, strict=True) if v is not None and v == v and str(v) != ""
        ]
        lines.append(". ".join(entries))
    return lines


def profile_table(users: pd.DataFrame) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...], Codes]:
    """The ``profile_*`` columns as names, levels and codes [U, F].

    >>> import pandas as pd
    >>> profile_table(pd.DataFrame({"user_id": ["u", "v", "w"], "profile_age": ["45-54", None, "18-34"]}))[1:]
    ((('18-34', '45-54'),), array([[ 1],
           [-1],
           [ 0]], dtype=int32))
    """
    fields = [c for c in users.columns if c.startswith(PROFILE_PREFIX)]
    coded = [_coded(users[c]) for c in fields]
    codes = np.stack([c for c, _ in coded], axis=1) if coded else np.zeros((len(users), 0), np.int32)
    return tuple(c.removeprefix(PROFILE_PREFIX) for c in fields), tuple(levels for _, levels in coded), codes


def build_histories(users: pd.DataFrame, events: pd.DataFrame, catalog: Catalog) -> Histories:
    """Histories of every user in ``users``; users without events have an empty one.

    Events without an advertiser (nobody in the catalog) say nothing about advertisers and are left out. The result does
    not depend on the order of the tables' rows.
    """
    import pandas as pd

    people = without_events(users, catalog)
    user = pd.Index(people.users).get_indexer(pd.Index(events[USER_ID].astype(str)))
    return replace(people, **vars(events_by_user(user, len(people), events, catalog.ids)))


def without_events(users: pd.DataFrame, catalog: Catalog) -> Histories:
    """Everyone with what is known of them, in the order of histories, and no event."""
    users = users.sort_values(USER_ID, kind="stable")
    ids = users[USER_ID].astype(str).tolist()
    fields, levels, codes = profile_table(users)
    return Histories(
        tuple(ids),
        tuple(profile_text(users)),
        np.zeros(len(ids) + 1, np.int64),
        np.zeros(0, np.int64),
        np.zeros(0, np.int64),
        profile_fields=fields,
        profile_levels=levels,
        profile_codes=codes,
        departments=catalog.department_codes(),
    )


@dataclass(frozen=True)
class EventRows:
    """The half of `Histories` that comes from events, of any users."""

    offsets: Int
    time: Int
    advertiser: Int
    text: Codes
    category: Codes
    value: npt.NDArray[np.float32]
    texts: tuple[str, ...]
    categories: tuple[str, ...]


def events_by_user(user: Int, count: int, events: pd.DataFrame, advertisers: Sequence[str]) -> EventRows:
    """Rows of some users' histories from all events of theirs.

    Parameters
    ----------
    user : int64 [rows]
        Place of each event's user among ``count``; −1: nobody's.
    events : DataFrame
        Canonical events, in any order.
    advertisers : sequence of str
        Ids of the catalog.
    """
    import pandas as pd

    has_advertiser = events[ADVERTISER_ID].notna().to_numpy()
    time, user = counting_times(events)[has_advertiser], user[has_advertiser]
    named = events[has_advertiser]
    advertiser = pd.Index(advertisers).get_indexer(pd.Index(named[ADVERTISER_ID].astype(str)))
    keep = (user >= 0) & (advertiser >= 0)
    named, user, time, advertiser = named[keep], user[keep], time[keep], advertiser[keep]
    text, texts = _coded(named[TEXT]) if TEXT in named else (np.zeros(0, np.int32), ())
    category, categories = _coded(named[CATEGORY]) if CATEGORY in named else (np.zeros(0, np.int32), ())
    value = named[VALUE].to_numpy(np.float64) if VALUE in named else np.zeros(0)

    # ties are put in order by all that is known of them, so that sums and joins come out the same
    keys = [k for k in (value, category, text) if len(k)]
    order = np.lexsort([*keys, advertiser, time, user])
    user, time, advertiser = user[order], time[order], advertiser[order]
    changed = (np.diff(user) != 0) | (np.diff(time) != 0) | (np.diff(advertiser) != 0)
    first = np.flatnonzero(np.concatenate([np.ones(min(len(user), 1), np.bool_), changed]))
    if categories:
        # the alphabetically first one that is known: unknown codes go last
        seen = category[order]
        least = np.minimum.reduceat(np.where(seen < 0, len(categories), seen), first)
        category = np.where(least == len(categories), UNKNOWN, least).astype(np.int32)
    else:
        category = np.zeros(0, np.int32)
    if texts:
        text, texts = _joined(text[order], texts, first)
    else:
        text = np.zeros(0, np.int32)
    if len(value):
        value = np.add.reduceat(value[order], first)
    counts = np.bincount(user[first], minlength=count)
    return EventRows(
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        time[first].astype(np.int64),
        advertiser[first].astype(np.int64),
        text,
        category,
        np.clip(value, -_LARGEST, _LARGEST).astype(np.float32),
        texts,
        categories,
    )


def _coded(column: pd.Series) -> tuple[Codes, tuple[str, ...]]:
    """Codes of a column's values and the values in alphabetical order; missing and blank ones are unknown."""
    import pandas as pd

    raw, values = pd.factorize(column)  # missing: -1
    names = [str(value).strip() for value in values]
    levels = sorted({name for name in names if name})
    index = {name: code for code, name in enumerate(levels)}
    table = np.asarray([*(index.get(name, UNKNOWN) for name in names), UNKNOWN], np.int32)
    return table[raw], tuple(levels)


def _joined(text: Codes, texts: tuple[str, ...], first: Int) -> tuple[Codes, tuple[str, ...]]:
    """One text for each group of rows that starts at ``first``; only groups of several texts cost a new string."""
    stop = np.append(first[1:], len(text))
    out = text[first].copy()
    joined: dict[str, int] = {}
    for group in np.flatnonzero(stop - first > 1):
        codes = np.unique(text[first[group] : stop[group]])
        codes = codes[codes >= 0]
        if len(codes) > 1:
            name = "; ".join(texts[code] for code in codes)
            out[group] = len(texts) + joined.setdefault(name, len(joined))
        else:
            out[group] = codes[0] if len(codes) else UNKNOWN
    names = (*texts, *joined)
    used = sorted({names[code] for code in np.unique(out) if code >= 0})
    return recode(out, names, tuple(used)), tuple(used)
