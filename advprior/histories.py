"""Histories: each user's purchases as flat arrays in time order, cut strictly before a snapshot.

Every predictor reads the same object. Events of one (user, time) are one *occasion*: they know
nothing of each other, and a snapshot at that very time sees none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from feature_repo.contract import ADVERTISER_ID, PROFILE_PREFIX, TIMESTAMP, USER_ID

if TYPE_CHECKING:
    import pandas as pd

    from advprior.catalog import Catalog

Int = npt.NDArray[np.int64]


def micros(moment: datetime) -> int:
    """Microseconds since the epoch of a time with a zone."""
    if moment.tzinfo is None:
        raise ValueError("a time needs a zone")
    return round(moment.timestamp() * 1_000_000)


@dataclass(frozen=True)
class Histories:
    """Purchases of U users, flat, sorted by user, time, advertiser; one row per (user, time, advertiser).

    Attributes
    ----------
    users : tuple of str
        User ids in order.
    profiles : tuple of str
        One line of text each, empty where nothing is known.
    offsets : int64 [U + 1]
        Rows of user u are ``offsets[u]:offsets[u + 1]``.
    time : int64 [E]
        Microseconds UTC.
    advertiser : int64 [E]
        Index in the catalog.
    """

    users: tuple[str, ...]
    profiles: tuple[str, ...]
    offsets: Int
    time: Int
    advertiser: Int

    def __len__(self) -> int:
        return len(self.users)

    def rows(self, user: int) -> slice:
        """Rows of one user."""
        return slice(int(self.offsets[user]), int(self.offsets[user + 1]))

    @property
    def user_of_row(self) -> Int:
        """User index of every row [E]."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.offsets))

    def before(self, cutoff: int) -> Histories:
        """The histories with events strictly before ``cutoff`` (microseconds) only."""
        keep = self.time < cutoff
        counts = np.bincount(self.user_of_row[keep], minlength=len(self))
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return Histories(self.users, self.profiles, offsets, self.time[keep], self.advertiser[keep])


def profile_text(users: pd.DataFrame) -> list[str]:
    """One line a user from the ``profile_*`` columns, missing fields left out.

    >>> import pandas as pd
    >>> profile_text(pd.DataFrame({"user_id": ["u"], "profile_age": ["45-54"], "profile_kids_count": [None]}))
    ['Age: 45-54']
    """
    fields = [c for c in users.columns if c.startswith(PROFILE_PREFIX)]
    titles = [c.removeprefix(PROFILE_PREFIX).replace("_", " ").capitalize() for c in fields]
    lines = []
    for values in users[fields].itertuples(index=False, name=None):
        known = [f"{t}: {v}" for t, v in zip(titles, values, strict=True) if v is not None and v == v and str(v) != ""]
        lines.append(". ".join(known))
    return lines


def build_histories(users: pd.DataFrame, events: pd.DataFrame, catalog: Catalog) -> Histories:
    """Histories of every user in ``users``; users without events have an empty one.

    Events without an advertiser (nobody in the catalog) say nothing about advertisers and are left out.
    """
    import pandas as pd

    users = users.sort_values(USER_ID, kind="stable")
    ids = users[USER_ID].astype(str).tolist()
    known = events[events[ADVERTISER_ID].notna()]
    user = pd.Index(ids).get_indexer(pd.Index(known[USER_ID].astype(str)))
    advertiser = pd.Index(catalog.ids).get_indexer(pd.Index(known[ADVERTISER_ID].astype(str)))
    time = known[TIMESTAMP].astype("datetime64[us, UTC]").astype("int64").to_numpy()
    keep = (user >= 0) & (advertiser >= 0)
    table = pd.DataFrame({"user": user[keep], "time": time[keep], "advertiser": advertiser[keep]})
    table = table.drop_duplicates().sort_values(["user", "time", "advertiser"], kind="stable")
    counts = np.bincount(table["user"], minlength=len(ids))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Histories(
        tuple(ids), tuple(profile_text(users)), offsets,
        table["time"].to_numpy(np.int64), table["advertiser"].to_numpy(np.int64),
    )  # fmt: skip
