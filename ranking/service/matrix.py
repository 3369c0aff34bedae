"""From one user's rows and the ads' table to the ranker's matrix: the same values as the training frame's.

The rules of the join are kept: a row that is not yet available, or older than its view's TTL, is no row. A test holds
matrix and frame to equal numbers for the same user, ad and moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from advprior.store.arrays import Int
from advprior.store.times import DAY_US
from ranking.frame.columns import clock_columns
from ranking.frame.streams import Stream
from ranking.service.ads import AdTable
from ranking.service.catalogs import HistoryCatalog
from ranking.service.histories import history_values
from ranking.service.plan import Plan
from ranking.service.priors import Prior, no_prior_columns, prior_columns
from ranking.service.rows import Matrix, Row, ServedView, ViewRow, in_time


@dataclass(frozen=True)
class Candidates:
    """The ads to rank, and what the request says of them.

    Attributes
    ----------
    ads : int64 [candidates]
        Rows of the ads' table; −1: an ad that the service has no row of.
    context : features of the request as a whole, by their frame column
    contexts : the same per candidate, where they differ
    """

    ads: Int
    context: Mapping[str, Any] = field(default_factory=dict)
    contexts: Sequence[Mapping[str, Any] | None] | None = None


@dataclass(frozen=True)
class UserInputs:
    """What the store says of a user.

    Attributes
    ----------
    rows : rows by view; those not in time, broken or absent count as missing
    history : the history row and the catalog that numbers it, None when it cannot be used
    priors : by predictor
    """

    rows: Mapping[str, Row]
    history: tuple[ViewRow, HistoryCatalog] | None = None
    priors: Mapping[str, Prior] = field(default_factory=dict)


def matrix(plan: Plan, candidates: Candidates, user: UserInputs, table: AdTable, now_us: int) -> Matrix:
    """The ranker's matrix, float32 [candidates, features]."""
    out = np.empty((len(candidates.ads), len(plan.features)), dtype=np.float32)
    out[:] = _of_user_and_request(plan, candidates.context, user.rows, now_us)
    _put_ads(out, plan, candidates.ads, table, now_us)
    if user.history is not None:
        row, catalog = user.history
        for lists, places, at in plan.history:
            values = history_values(row, lists, history_ids(table, catalog, lists)[:, candidates.ads], now_us)
            out[:, places] = values.transpose(1, 0, 2).reshape(len(out), -1)[:, at]
    for predictor, names in plan.prior.items():
        of_prior = _of_prior(user.priors.get(predictor), candidates.ads, table, now_us)
        for place, name in names:
            out[:, place] = of_prior[name]
    for i, context in enumerate(candidates.contexts or ()):
        if context:
            for place, column in plan.context:
                if column in context:
                    out[i, place] = plan.encode(column, context[column])
    return out


def _of_user_and_request(plan: Plan, context: Mapping[str, Any], rows: Mapping[str, Row], now_us: int) -> Matrix:
    """What is the same for all candidates: float32 [features], NaN where it is another's to fill."""
    values = np.full(len(plan.features), np.nan, dtype=np.float32)
    for place, view, feature, column in plan.user:
        row = rows.get(view)
        if isinstance(row, ViewRow) and in_time(row.available_us, plan.views[view], now_us) is None:
            values[place] = plan.encode(column, _value(row, feature, plan.views[view], now_us))
    clock = clock_columns(np.array([now_us], dtype="datetime64[us]"))
    for place, column in plan.clock:
        values[place] = clock[column][0]
    for place, column in plan.context:
        values[place] = plan.encode(column, context.get(column, plan.reference.get(column)))
    return values


def _put_ads(out: Matrix, plan: Plan, ads: Int, table: AdTable, now_us: int) -> None:
    """The ads' own features into their places; those of rows that the join would not take now are missing."""
    out[:, plan.ad_places] = plan.ads(table)[ads]
    for name in table.late_views(plan.views, now_us):
        available = table.available_us[name][ads]
        late = np.array([in_time(int(moment), plan.views[name], now_us) is not None for moment in available])
        places = [p for p, c in zip(plan.ad_places, plan.ad_columns, strict=True) if table.view_of[c] == name]
        out[np.ix_(late, places)] = np.nan


def history_ids(table: AdTable, catalog: HistoryCatalog, lists: tuple[tuple[Stream, str], ...]) -> Int:
    """Id of each ad in each list of a history: int64 [lists, ads + 1]."""
    ids: Int = table.by_catalog(
        (catalog.version, lists),
        lambda: np.stack([table.history_ids(catalog, stream.levels[level]) for stream, level in lists]),
    )
    return ids


def _of_prior(prior: Prior | None, ads: Int, table: AdTable, now_us: int) -> dict[str, Matrix]:
    """Features of one predictor's prior, by name: float32 [candidates] each."""
    if prior is None:
        return no_prior_columns(len(ads))
    index = table.advertiser_index(prior.version, prior.advertisers)[ads]
    interests = table.category_index(prior.version, prior.categories)[ads]
    return prior_columns(prior, index, interests, now_us)


def _value(row: ViewRow, feature: str, view: ServedView, now_us: int) -> Any:
    """A feature as the frame has it: text, a number, or the days since a moment."""
    if feature in view.text:
        return row.text(feature)
    if feature in view.times:
        moment = row.time_us(feature)
        return None if moment is None else (now_us - moment) / DAY_US
    return row.number(feature)
