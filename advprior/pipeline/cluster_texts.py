"""What semantic clusters are made of: texts of each advertiser × category as known at a moment, and whose row is whose.

Nothing that comes later changes what is read here of those before it: an advertiser × category that was not known then
is described by its first ad, and its events have a cluster from when that ad exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from advprior.data.pairs import pair_ids, pair_tables
from advprior.store.arrays import Int
from advprior.store.contract import (
    AD_ID,
    ADS,
    ADVERTISER_ID,
    ADVERTISERS,
    ARRIVED,
    CATEGORY,
    CLUSTER,
    DEPARTMENT,
    EVENTS,
    NAME,
    TEXT,
    TIMESTAMP,
    USER_ID,
    USERS,
)
from advprior.store.existence import NEVER, load_ads_exist_from
from advprior.store.tables import read_parquet
from advprior.store.times import counting_times, moment_us

if TYPE_CHECKING:
    import pandas as pd

#: What texts are made of, by table.
_READ = {
    ADVERTISERS: (ADVERTISER_ID, NAME, TEXT),
    ADS: (AD_ID, ADVERTISER_ID, CATEGORY, DEPARTMENT),
    EVENTS: (USER_ID, ADVERTISER_ID, CATEGORY, DEPARTMENT, TEXT, TIMESTAMP, ARRIVED),
}


@dataclass(frozen=True, eq=False)
class ClusterTexts:
    """Advertisers × categories with their texts, and the rows that they get clusters for.

    Parameters
    ----------
    early, later : DataFrame
        Those known at the moment, and those that came after it: `advprior.data.pairs.pair_tables`.
    rows : mapping of str to Series
        Of ads and events, the advertiser × category of each row; missing where it has none, or none yet.
    """

    early: pd.DataFrame
    later: pd.DataFrame
    rows: dict[str, pd.Series[Any]]


def read_texts(tables: Path, cutoff: datetime) -> ClusterTexts:
    """Texts of canonical tables, those of before the cut-off apart.

    Raises
    ------
    AdvpriorError
        ``DAT050`` without categories.
    """
    import pandas as pd
    import pyarrow.parquet as pq

    loaded: dict[str, pd.DataFrame] = {USERS: pd.DataFrame()}
    for name, wanted in _READ.items():
        path = Path(tables) / f"{name}.parquet"
        loaded[name] = read_parquet(path, columns=[c for c in wanted if c in pq.read_schema(path).names])
    ads, events = loaded[ADS], loaded[EVENTS]
    exist_from, counts_from = load_ads_exist_from(tables, ads[AD_ID].tolist()), counting_times(events)
    listed, happened = exist_from <= moment_us(cutoff), counts_from < moment_us(cutoff)
    past = loaded | {ADS: ads[listed].reset_index(drop=True), EVENTS: events[happened].reset_index(drop=True)}
    early = pair_tables(past, cutoff)[ADVERTISERS]
    of_ads = pair_ids(ads)
    first = pd.Series(exist_from).groupby(of_ads).min()
    of_first = exist_from == _of_each(first, of_ads)  # ads that come later describe nobody anew
    whole = pair_tables(loaded | {ADS: ads[of_first].reset_index(drop=True)}, cutoff)
    catalog, of_events = whole[ADVERTISERS], whole[EVENTS][ADVERTISER_ID]
    later = ~of_events.isin(early[ADVERTISER_ID])
    told = ~later | (counts_from >= _of_each(first, of_events))
    return ClusterTexts(
        early,
        catalog[~catalog[ADVERTISER_ID].isin(early[ADVERTISER_ID])].reset_index(drop=True),
        {ADS: of_ads, EVENTS: of_events.where(told, None)},
    )


def _of_each(first: pd.Series[int], ids: pd.Series[Any]) -> Int:
    """When each id's first ad exists from; `NEVER` of one without an ad."""
    return np.asarray(first.reindex(ids, fill_value=NEVER), np.int64)


def clusters_in(tables: Path) -> dict[str, str]:
    """The cluster of each advertiser × category, by the ads and events of tables that have the column."""
    clusters: dict[str, str] = {}
    for name in (EVENTS, ADS):
        rows = read_parquet(Path(tables) / f"{name}.parquet", columns=[ADVERTISER_ID, CATEGORY, CLUSTER])
        rows = rows.dropna().drop_duplicates()
        clusters |= dict(zip(pair_ids(rows), rows[CLUSTER], strict=True))
    return clusters
