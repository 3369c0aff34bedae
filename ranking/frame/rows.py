"""Which impressions a ranker sees: from the end of fine-tuning on, split by the time plan, with their segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.arrays import Bool, Int
from advprior.store.contract import (
    AD_ID,
    ADVERTISER_ID,
    CATEGORY,
    IMPRESSION_ID,
    LABEL,
    SLATE_ID,
    TIMESTAMP,
    USER_ID,
    TimePlan,
)
from advprior.store.errors import AdvpriorError
from advprior.store.tables import load_tables
from advprior.store.times import as_datetimes, micros, moment_us
from ranking.frame.counts import CountsBefore, compact
from ranking.frame.read import SPLITS


@dataclass(frozen=True)
class FrameRows:
    """The impressions of a frame, in its order: by time, slate and id.

    Attributes
    ----------
    table : pandas.DataFrame
        Columns of canonical impressions.
    category : Series of str
        Category of each impression's ad.
    never_advertiser, never_ad : bool arrays
        The user had no event with the ad's advertiser (and category) before.
    beyond : int
        Impressions at or after the plan's end, which are left out.
    """

    table: pd.DataFrame
    category: pd.Series[Any]
    never_advertiser: Bool
    never_ad: Bool
    beyond: int

    @property
    def moments(self) -> Any:
        """Time of each, datetime64[us]."""
        return as_datetimes(micros(self.table[TIMESTAMP]))

    @property
    def label(self) -> Any:
        """Label of each."""
        return self.table[LABEL].to_numpy()

    def key_columns(self, split: Any) -> dict[str, Any]:
        """Columns of the frame that are no features."""
        table = self.table
        return {
            **{name: table[name] for name in (IMPRESSION_ID, SLATE_ID)},
            **{name: table[name].astype("category") for name in (USER_ID, AD_ID, ADVERTISER_ID)},
            TIMESTAMP: table[TIMESTAMP],
            LABEL: table[LABEL],
            "split": pd.Categorical(split, categories=list(SPLITS)),
            "segment_never_advertiser": self.never_advertiser,
            "segment_never_ad": self.never_ad,
        }


def load_rows(tables: Path, plan: TimePlan) -> FrameRows:
    """Impressions in [finetune_end, end) of canonical tables.

    Raises
    ------
    AdvpriorError
        ``RNK010`` when there is none.
    """
    loaded = load_tables(tables, "ads", "events", "impressions")
    impressions, events = loaded["impressions"], loaded["events"]
    time = impressions[TIMESTAMP]
    chosen = (time >= plan.finetune_end) & (time < plan.end)
    beyond = int((time >= plan.end).sum())
    impressions = impressions[chosen].sort_values([TIMESTAMP, SLATE_ID, IMPRESSION_ID]).reset_index(drop=True)
    if impressions.empty:
        raise AdvpriorError(
            "RNK010",
            "no impressions for the ranker",
            where=str(tables),
            actual="none from finetune_end to end",
            expected=f"impressions in [{plan.finetune_end}, {plan.end})",
            fix="give the tables a time plan that fits their data",
        )
    category = impressions[AD_ID].map(loaded["ads"].set_index(AD_ID)[CATEGORY])
    seen = impressions[[USER_ID, ADVERTISER_ID, AD_ID, TIMESTAMP]].assign(**{CATEGORY: category})
    never_advertiser = never_before(events, seen, [USER_ID, ADVERTISER_ID])
    never_ad = never_before(events, seen, [USER_ID, ADVERTISER_ID, CATEGORY])
    return FrameRows(impressions, category, never_advertiser, never_ad, beyond)


def split_of(times: pd.Series[pd.Timestamp], plan: TimePlan) -> Any:
    """``train``, ``valid`` or ``test`` of each impression, by the time plan."""
    edges = np.array([moment_us(plan.train_end), moment_us(plan.valid_end)])
    return np.array(SPLITS, dtype=object)[np.searchsorted(edges, micros(times), side="right")]


def never_before(events: pd.DataFrame, impressions: pd.DataFrame, keys: Sequence[str]) -> Bool:
    """Whether the user had no event with these keys strictly before the impression (exact, no snapshot).

    Parameters
    ----------
    keys : column names in both tables
        E.g. user_id and advertiser_id. An event that lacks one of them matches nothing.
    """
    events = events.dropna(subset=list(keys))
    sizes: list[int] = []
    of_events: list[Int] = []
    of_impressions: list[Int] = []
    for key in keys:
        codes, distinct = pd.factorize(pd.concat([events[key], impressions[key]], ignore_index=True))
        sizes.append(len(distinct) + 1)
        of_events.append((codes[: len(events)] + 1).astype(np.int64))
        of_impressions.append((codes[len(events) :] + 1).astype(np.int64))
    groups, rows = compact(*zip(of_events, sizes, strict=True))
    first = CountsBefore(rows, micros(events[TIMESTAMP]), len(groups)).first()
    wanted = of_impressions[0]
    for codes, size in zip(of_impressions[1:], sizes[1:], strict=True):
        wanted = wanted * size + codes
    at = pd.Index(groups).get_indexer(pd.Index(wanted))
    oldest = np.where(at >= 0, first[at] if len(first) else 0, np.iinfo(np.int64).max)
    never: Bool = oldest >= micros(impressions[TIMESTAMP])
    return never
