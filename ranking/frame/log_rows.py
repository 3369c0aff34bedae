"""A log's rows of some users, or of all of them, and what features are made of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.arrays import Int
from advprior.store.contract import EVENTS, IMPRESSIONS, USERS
from advprior.store.existence import users_exist_from
from advprior.store.times import moment_us
from ranking.frame.ad_popularity import AdRows
from ranking.frame.history import CountedSnapshots, counted_parts
from ranking.frame.history_files import LevelFiles
from ranking.frame.numbering import HistoryIds
from ranking.frame.past import PastRows
from ranking.frame.popularity import Outcomes, Tally, rates_at
from ranking.frame.stream_counts import StreamRows, stream_rows


@dataclass(frozen=True)
class LogRows:
    """Events and impressions of some users.

    Parameters
    ----------
    tables : dict of str to DataFrame
        Users, and their rows of events and impressions.
    ads : DataFrame
        All ads.
    ids : HistoryIds
    label_delay : timedelta
    """

    tables: dict[str, pd.DataFrame]
    ads: pd.DataFrame
    ids: HistoryIds
    label_delay: timedelta

    @cached_property
    def outcomes(self) -> Outcomes:
        return Outcomes.of(self.tables[USERS], self.ads, self.tables[IMPRESSIONS], self.label_delay)

    @cached_property
    def streams(self) -> list[StreamRows]:
        return stream_rows(self.tables[USERS], self.ids, self.tables, self.label_delay)

    @cached_property
    def users_from(self) -> Int:
        """Microseconds since 1970 from which each user exists, int64 [users]."""
        return users_exist_from(self.tables[USERS], self.tables[EVENTS], self.tables[IMPRESSIONS])

    def ad_rows(self, moments: Int) -> AdRows:
        """What they say of ads before some moments."""
        return AdRows.count(self.ids, self.tables[EVENTS], self.outcomes, moments)

    def past(self, users: Any, ads: Any) -> PastRows:
        """Hashes of them, by the names of their users and of all ads."""
        return PastRows(users, ads, self.ids, self.streams[0], self.outcomes)

    def history(
        self, snapshots: CountedSnapshots, files: Sequence[LevelFiles], totals: dict[int, dict[str, int]]
    ) -> Iterator[pd.DataFrame]:
        """Rows of the users' histories, snapshot by snapshot, less those of users who do not exist yet.

        Parameters
        ----------
        snapshots : CountedSnapshots
        files : sequence of LevelFiles
            Get their counts.
        totals : dict of int to dict of str to int
            Outcomes of all users before each snapshot, which rates are smoothed by; see `AdCounts.totals`.
        """
        users = self.tables[USERS]
        tally = Tally.of(self.outcomes, self.outcomes.user, len(users))
        parts = counted_parts(users, self.streams, self.ids, snapshots, files)
        for (snapshot, _), part in zip(snapshots, parts, strict=True):
            moment = moment_us(snapshot)
            part = part.assign(**rates_at(tally, moment, totals[moment]))
            yield existing(part, self.users_from, [snapshot])


def existing(table: pd.DataFrame, exist_from: Int, snapshots: Sequence[datetime]) -> pd.DataFrame:
    """A snapshot-major table less the rows of who does not exist yet at their snapshot."""
    moments = np.array([moment_us(s) for s in snapshots], dtype=np.int64)
    exists = (exist_from <= moments[:, None]).ravel()
    return table if exists.all() else table[exists].reset_index(drop=True)
