"""The frame's features of rows that were served: what the store gives for them now, as of the moment of each.

The same join and the same columns as `ranking.frame.build`, for a log of exposures in the place of impressions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.contract import (
    AD_ID,
    AD_STATS_VIEW,
    ADVERTISER_ID,
    BASELINE_SERVICE,
    CATEGORY,
    HISTORY_ROW,
    IMPRESSION_ID,
    LABEL,
    PRIOR_ROW,
    SLATE_ID,
    SNAPSHOT,
    USER_HISTORY_VIEW,
    prior_service,
    prior_view,
)
from advprior.store.runs import read_manifest
from advprior.store.tables import load_tables, load_time_plan
from ranking.frame.columns import HistoryColumns, PriorColumns, Shown
from ranking.frame.join import join_features, open_store, scalar_refs
from ranking.frame.moments import available
from ranking.frame.part import add_baseline, entities_of
from ranking.frame.preflight import preflight
from ranking.frame.rows import FrameRows
from ranking.frame.views import Columns, view_folder


@dataclass(frozen=True)
class ServedColumns:
    """What the store says of served rows.

    Attributes
    ----------
    columns : Columns
    available : dict of str to datetime64[us] array [rows]
        When the joined row of each view became available; NaT where none was joined. Of a user's own view only where
        its table is a local one.
    """

    columns: Columns
    available: Mapping[str, Any]


def rows_of(shown: pd.DataFrame, tables: Path) -> FrameRows:
    """Served rows in the form of a frame's: advertiser and category by the ad; nobody knows their labels yet.

    Parameters
    ----------
    shown : DataFrame
        user_id, ad_id, timestamp, and context columns.
    tables : Path
    """
    ads = load_tables(tables, "ads")["ads"].set_index(AD_ID)
    count = len(shown)
    table = shown.reset_index(drop=True)
    table[IMPRESSION_ID] = table[SLATE_ID] = np.arange(count)
    table[LABEL] = np.zeros(count, np.int8)
    table[ADVERTISER_ID] = table[AD_ID].map(ads[ADVERTISER_ID])
    never = np.zeros(count, np.bool_)
    return FrameRows(table, table[AD_ID].map(ads[CATEGORY]), never, never)


@dataclass(frozen=True)
class Served:
    """What the store has now, opened once for rows that come in parts.

    Attributes
    ----------
    store, refs, keys, services : what is joined, by which keys
    history : HistoryColumns
    priors : dict of str to PriorColumns
        By predictor.
    lags : dict of str to timedelta
        From a snapshot until its row is available, by view.
    """

    store: Any
    refs: Mapping[str, Any]
    keys: Sequence[str]
    services: Sequence[str]
    history: HistoryColumns
    priors: Mapping[str, PriorColumns]
    lags: Mapping[str, timedelta]

    @classmethod
    def open(cls, tables: Path, repo: Path, predictors: Sequence[str]) -> Served:
        """The baseline and some predictors.

        Raises
        ------
        AdvpriorError
            As `ranking.frame.build.build_frame` before the join.
        """
        plan = load_time_plan(tables)
        preflight(repo, predictors)
        store, services = open_store(repo), [BASELINE_SERVICE, *map(prior_service, predictors)]
        refs, keys = scalar_refs(store, services, repo)
        priors = {predictor: PriorColumns.open(repo, predictor) for predictor in predictors}
        views = [USER_HISTORY_VIEW, AD_STATS_VIEW, *map(prior_view, predictors)]
        lags = {view: _lag(repo, view, plan.lag) for view in views}
        return cls(store, refs, keys, services, HistoryColumns.open(repo), priors, lags)

    def of(self, rows: FrameRows) -> ServedColumns:
        """The features of some rows as a frame of today would have them."""
        entities = entities_of(rows.table, self.keys, self.services)
        joined = join_features(self.store, list(self.refs), entities)
        columns, snapshots = Columns(), dict[str, Any]()
        add_baseline(columns, joined, self.refs, rows)
        for view in (USER_HISTORY_VIEW, AD_STATS_VIEW):
            snapshots[view] = joined.pop_times(f"{view}__{SNAPSHOT}")
        pointers = joined.pop_pointer(f"{USER_HISTORY_VIEW}__{HISTORY_ROW}")
        for stream, features in self.history.of(pointers, rows.table[AD_ID], rows.moments).items():
            columns.add(stream, USER_HISTORY_VIEW, features)
        shown = Shown(rows.table[ADVERTISER_ID], rows.category, rows.moments)
        for predictor, prior in self.priors.items():
            view = prior_view(predictor)
            pointers = joined.pop_pointer(f"{view}__{PRIOR_ROW}")
            snapshots[view] = joined.pop_times(f"{view}__{SNAPSHOT}")
            arrays, _ = prior.of(pointers, snapshots[view], shown)
            columns.add(view, view, arrays)
        times = {view: at + np.timedelta64(self.lags[view]) for view, at in snapshots.items()}
        views = {ref.split(":")[0] for ref in self.refs} - {*times}
        return ServedColumns(columns, times | _available(self.store, views, entities))


def _available(store: Any, views: Iterable[str], entities: pd.DataFrame) -> dict[str, Any]:
    """The same of views without snapshots: profiles, and a user's own."""
    from feast.errors import FeatureViewNotFoundException

    moments = {}
    for name in views:
        with suppress(FeatureViewNotFoundException):  # an on-demand view has no rows of its own
            if (of_view := available(store.get_feature_view(name), entities)) is not None:
                moments[name] = of_view
    return moments


def _lag(repo: Path, view: str, default: timedelta) -> timedelta:
    facts = read_manifest(view_folder(repo, view))["facts"]
    return timedelta(seconds=float(facts["lag_s"])) if "lag_s" in facts else default
