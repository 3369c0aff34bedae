"""Interests: the product categories that users turn to, as a list of its own beside the advertisers.

A category takes an advertiser's place in a history, so that targets, strictness in time and the list's version
are the very same code. The list is what was observed before the cut-off: a later category is nobody's target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from advprior.history.catalog import Catalog
from advprior.history.histories import Histories, build_histories
from advprior.store.contract import ADVERTISER_ID, ARRIVED, CATEGORY, TIMESTAMP, USER_ID
from advprior.store.times import counting_times

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Interests:
    """Categories observed before a cut-off, and who turned to them when.

    Attributes
    ----------
    catalog : Catalog
        Categories in alphabetical order: a category is its own id and name.
    histories : Histories
        Of the same users; ``advertiser`` is the index of a category.
    """

    catalog: Catalog
    histories: Histories

    def most_frequent(self, size: int) -> Interests:
        """The same with the ``size`` categories of most events, where there are more."""
        import numpy as np

        if len(self.catalog) <= size:
            return self
        counts = np.bincount(self.histories.advertiser, minlength=len(self.catalog))
        frequent = np.sort(np.argsort(-counts, kind="stable")[:size])
        place = np.full(len(self.catalog), -1, np.int64)
        place[frequent] = np.arange(size)
        rows = place[self.histories.advertiser] >= 0
        users = np.bincount(self.histories.user_of_row[rows], minlength=len(self.histories))
        names = tuple(self.catalog.ids[i] for i in frequent)
        histories = Histories(
            self.histories.users,
            self.histories.profiles,
            np.concatenate([[0], np.cumsum(users)]).astype(np.int64),
            self.histories.time[rows],
            place[self.histories.advertiser[rows]],
        )
        return Interests(Catalog(names, names), histories)


def build_interests(users: pd.DataFrame, events: pd.DataFrame, cutoff: int) -> Interests | None:
    """Interests from the events before ``cutoff`` (microseconds); None where they tell no category.

    Every event counts, also one of an advertiser outside the catalog.

    >>> import pandas as pd
    >>> at = pd.to_datetime(["2024-01-01", "2024-01-02", "2024-02-01"], utc=True)
    >>> events = pd.DataFrame({"user_id": ["u"] * 3, "timestamp": at, "category": ["Tea", "Bread", "Soap"]})
    >>> build_interests(pd.DataFrame({"user_id": ["u"]}), events, 1_706_000_000_000_000).catalog.ids
    ('Bread', 'Tea')
    """
    if CATEGORY not in events:
        return None
    before = events[counting_times(events) < cutoff]
    category = before[CATEGORY].fillna("").astype(str).str.strip()
    before = before.assign(**{CATEGORY: category})[category != ""]
    if before.empty:
        return None
    names = tuple(sorted(before[CATEGORY].unique()))
    catalog = Catalog(names, names)
    times = [name for name in (TIMESTAMP, ARRIVED) if name in before]
    rows = before[[USER_ID, *times]].assign(**{ADVERTISER_ID: before[CATEGORY]})
    return Interests(catalog, build_histories(users, rows, catalog))
