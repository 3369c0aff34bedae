"""One part of a frame: its impressions joined, gathered, and counted for the checks; in this process or on a worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from advprior.store.arrays import Bool, Int
from advprior.store.contract import (
    AD_ID,
    ADVERTISER_ID,
    CONTEXT_PREFIX,
    EVENT_TIMESTAMP,
    HISTORY_ROW,
    IMPRESSION_ID,
    MODEL_CUTOFF,
    PRIOR_ROW,
    SNAPSHOT,
    TIMESTAMP,
    USER_HISTORY_VIEW,
    USER_ID,
    TimePlan,
    prior_service,
    prior_view,
)
from advprior.store.errors import AdvpriorError
from advprior.store.features import CLOCK_SOURCE, REQUEST_SOURCE, Feature
from advprior.store.runs import manifest_digest
from advprior.store.times import micros
from ranking.frame.absent import Existence, Expected
from ranking.frame.columns import (
    HistoryColumns,
    PriorColumns,
    Shown,
    clock_columns,
    joined_column,
    request_column,
)
from ranking.frame.join import Joined, JoinGroup, join_features, join_groups
from ranking.frame.rows import FrameRows, split_of
from ranking.frame.tallies import CUTOFF, LOST, NEWER, Tallies
from ranking.frame.views import (
    BASELINE_VIEWS,
    Columns,
    column_name,
    group_of_view,
    is_pointer,
    stale_group,
    view_folder,
)

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Request:
    """What frame is asked for; see `ranking.frame.build.build_frame`."""

    tables: Path
    repo: Path
    predictors: tuple[str, ...]
    service: str
    stale: tuple[int, ...] = ()

    @property
    def services(self) -> list[str]:
        """Feature services that are joined."""
        return [self.service, *map(prior_service, self.predictors)]

    @property
    def weeks(self) -> tuple[int, ...]:
        """How old stale priors are, where there is a predictor that they are of."""
        return self.stale if self.predictors else ()

    def versions(self) -> dict[str, str]:
        """Digest of what is published behind each view."""
        views = [*BASELINE_VIEWS, *map(prior_view, self.predictors)]
        return {view: manifest_digest(view_folder(self.repo, view)) for view in views}


class Joins(Protocol):
    """Where a part's joined columns come from."""

    def of(self, entities: pd.DataFrame, weeks: int) -> Joined:
        """Columns of some impressions, as the store had them so many weeks before each."""


@dataclass(frozen=True, eq=False)
class FeastJoins:
    """Joins through Feast, a part at a time.

    Attributes
    ----------
    groups : dict of int to sequence of JoinGroup
        What is joined as of so many weeks before each impression.
    """

    store: Any
    groups: Mapping[int, Sequence[JoinGroup]]

    @classmethod
    def open(cls, store: Any, refs: Sequence[str], request: Request) -> FeastJoins:
        """All that a frame needs."""
        names = (PRIOR_ROW, SNAPSHOT, MODEL_CUTOFF, "entropy")
        stale = [f"{prior_view(request.predictors[0])}:{name}" for name in names] if request.weeks else []
        return cls(
            store, {0: join_groups(store, refs), **{weeks: join_groups(store, stale) for weeks in request.weeks}}
        )

    def of(self, entities: pd.DataFrame, weeks: int) -> Joined:
        """As `Joins` has it."""
        moved = entities.assign(**{EVENT_TIMESTAMP: entities[EVENT_TIMESTAMP] - timedelta(weeks=weeks)})
        return join_features(self.store, self.groups[weeks], moved if weeks else entities)


@dataclass(frozen=True, eq=False)
class Source:
    """What every part is joined with and gathered from, opened once.

    Attributes
    ----------
    refs : dict of ``view:feature`` to the joined column's name
    keys : sequence of str
        Join keys.
    """

    request: Request
    plan: TimePlan
    refs: Mapping[str, str]
    keys: Sequence[str]
    joins: Joins
    existence: Existence
    history: HistoryColumns
    priors: Mapping[str, PriorColumns]

    @classmethod
    def open(
        cls, request: Request, plan: TimePlan, refs: Mapping[str, str], keys: Sequence[str], joins: Joins
    ) -> Source:
        """Open what is published, wherever this runs."""
        priors = {predictor: PriorColumns.open(request.repo, predictor) for predictor in request.predictors}
        existence, history = Existence.load(request.tables), HistoryColumns.open(request.repo)
        return cls(request, plan, refs, keys, joins, existence, history, priors)


@dataclass
class Sums:
    """What parts leave behind for the checks and facts of the whole."""

    tallies: Tallies = field(default_factory=Tallies)
    too_large: dict[str, int] = field(default_factory=dict)
    absent: dict[str, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    #: Rows that the check for golden features looks at.
    golden: list[pa.Table] = field(default_factory=list)
    #: Impressions whose user existed: nobody could have a prior of the others.
    existing: int = 0
    #: By predictor, those of them without a prior: users, moments, whether a row was joined, whether it lists the ad's.
    lacking: dict[str, list[tuple[Any, Any, Bool, Bool]]] = field(default_factory=dict)

    def update(self, other: Sums) -> None:
        """Add what the next part left."""
        self.tallies.update(other.tallies)
        for ours, theirs in (
            (self.too_large, other.too_large),
            (self.absent, other.absent),
            (self.missing, other.missing),
        ):
            for name, count in theirs.items():
                ours[name] = ours.get(name, 0) + count
        self.golden += other.golden
        self.existing += other.existing
        for name, parts in other.lacking.items():
            self.lacking.setdefault(name, []).extend(parts)


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of a frame.

    Attributes
    ----------
    table : pyarrow.Table
    features : list of Feature
        What its columns are.
    sums : Sums
    """

    table: pa.Table
    features: list[Feature]
    sums: Sums


class PartMaker:
    """Makes one part."""

    def __init__(self, source: Source) -> None:
        self._source, self._request, self._sums = source, source.request, Sums()

    def make(self, rows: FrameRows, golden: Int) -> Part:
        """Impressions with all their columns.

        Parameters
        ----------
        golden : int array
            Places among the rows that the check for golden features looks at.
        """
        source, request = self._source, self._request
        entities = entities_of(rows.table, source.keys, request.services)
        joined = source.joins.of(entities, 0)
        columns, expected = Columns(), source.existence.expected(rows.table)
        self._sums.too_large = add_baseline(columns, joined, source.refs, rows)
        self._add_history(columns, joined, rows, expected)
        for predictor in request.predictors:
            self._add_prior(columns, joined, predictor, rows)
        self._count_uses(columns, rows, expected)
        for weeks in request.weeks:
            self._add_stale(columns, weeks, rows)
        split = split_of(micros(rows.table[TIMESTAMP]), source.plan)
        table = _arrow(rows.key_columns(split) | columns.arrays)
        self._sums.golden.append(table.select(list(columns.names())).take(golden))
        return Part(table, columns.features, self._sums)

    def _add_history(self, columns: Columns, joined: Joined, rows: FrameRows, expected: Expected) -> None:
        tallies = self._sums.tallies
        for view in expected.by_view:
            snapshot = joined.pop_times(f"{view}__{SNAPSHOT}")
            tallies.add(NEWER, view, snapshot > rows.moments)
            tallies.add(LOST, view, expected.lost(view, snapshot))
        pointers = joined.pop_pointer(f"{USER_HISTORY_VIEW}__{HISTORY_ROW}")
        for group, features in self._source.history.of(pointers, rows.table[AD_ID], rows.moments).items():
            columns.add(group, USER_HISTORY_VIEW, features)

    def _add_prior(self, columns: Columns, joined: Joined, predictor: str, rows: FrameRows) -> None:
        view, moments, tallies = prior_view(predictor), rows.moments, self._sums.tallies
        pointers, snapshot = joined.pop_pointer(f"{view}__{PRIOR_ROW}"), joined.pop_times(f"{view}__{SNAPSHOT}")
        tallies.add(CUTOFF, predictor, joined.pop_times(f"{view}__{MODEL_CUTOFF}") > moments)
        tallies.add(NEWER, view, snapshot > moments)
        arrays, more = self._source.priors[predictor].of(pointers, snapshot, _shown(rows))
        tallies.update(more)
        columns.add(view, view, arrays)

    def _add_stale(self, columns: Columns, weeks: int, rows: FrameRows) -> None:
        """The first predictor's features as the store had them ``weeks`` weeks before each impression.

        What a ranker would read if scoring had stopped then. Impressions of the first weeks had no prior yet: missing.
        """
        predictor, source = self._request.predictors[0], self._source
        view, group = prior_view(predictor), stale_group(predictor, weeks)
        entities = rows.table[[IMPRESSION_ID, USER_ID]].assign(**{EVENT_TIMESTAMP: rows.table[TIMESTAMP]})
        joined = source.joins.of(entities, weeks)
        pointers, snapshot = joined.pop_pointer(f"{view}__{PRIOR_ROW}"), joined.pop_times(f"{view}__{SNAPSHOT}")
        self._sums.tallies.add(CUTOFF, predictor, joined.pop_times(f"{view}__{MODEL_CUTOFF}") > rows.moments)
        shown = _shown(rows)
        arrays, _ = source.priors[predictor].of(pointers, snapshot, shown)
        arrays[f"{view}_entropy"], _ = joined_column(f"{view}:entropy", joined.pop(f"{view}__entropy"), shown.moment)
        columns.add(group, view, {group + name.removeprefix(view): array for name, array in arrays.items()})

    def _count_uses(self, columns: Columns, rows: FrameRows, expected: Expected) -> None:
        """Who needed a prior and who had one, of impressions whose user existed."""
        sums, exists = self._sums, expected.by_view[USER_HISTORY_VIEW]
        for name, count in expected.counts().items():
            sums.absent[name] = sums.absent.get(name, 0) + count
        sums.existing += int(exists.sum())
        for predictor in self._request.predictors:
            view = prior_view(predictor)
            missing = columns.arrays[f"{view}_missing"] == 1
            joined = ~np.isnan(columns.arrays[f"{view}_age_days"])  # there is an age wherever a row was joined
            listed, without = ~missing | ~joined, exists & (missing | ~joined)
            sums.missing[predictor] = sums.missing.get(predictor, 0) + int((missing & exists).sum())
            users = rows.table.loc[without, USER_ID].astype(str).to_numpy(object)
            of_part = (users, rows.moments[without], joined[without], listed[without])
            sums.lacking.setdefault(predictor, []).append(of_part)


def entities_of(impressions: pd.DataFrame, keys: Sequence[str], services: Sequence[str]) -> pd.DataFrame:
    """Keys and times that the join is made for.

    Raises
    ------
    AdvpriorError
        ``STO008`` when impressions lack a key.
    """
    lacking = [key for key in keys if key not in impressions]
    if lacking:
        raise AdvpriorError(
            "STO008",
            "a service needs a join key that impressions do not have",
            where=", ".join(services),
            actual=", ".join(lacking),
            expected="columns of impressions",
            fix="add the column to impressions",
        )
    return impressions[[IMPRESSION_ID, *keys]].assign(**{EVENT_TIMESTAMP: impressions[TIMESTAMP]})


def add_baseline(columns: Columns, joined: Joined, refs: Mapping[str, str], rows: FrameRows) -> dict[str, int]:
    """Joined scalars of every view, then what comes with the request, then the clock.

    Returns
    -------
    dict of str to int
        Numbers of each reference that are missing because float32 cannot hold them.
    """
    moments, too_large = rows.moments, {}
    for ref, name in refs.items():
        view, feature = ref.split(":")
        if not is_pointer(view, feature):
            column, too_large[ref] = joined_column(ref, joined.pop(name), moments)
            columns.add(group_of_view(view), view, {column_name(view, feature): column})
    context = [str(name) for name in rows.table if str(name).startswith(CONTEXT_PREFIX)]
    columns.add("context", REQUEST_SOURCE, {name: request_column(rows.table[name]) for name in context})
    columns.add("context", CLOCK_SOURCE, clock_columns(moments))
    return too_large


def _shown(rows: FrameRows) -> Shown:
    return Shown(rows.table[ADVERTISER_ID], rows.category, rows.moments)


def _arrow(columns: Mapping[str, Any]) -> pa.Table:
    """Columns as Arrow has them, each of one type in all parts: text as strings behind 32-bit codes."""
    import pyarrow as pa

    # a copy of so many columns is what memory peaks at
    table = pa.Table.from_pandas(pd.DataFrame(columns, copy=False), preserve_index=False)
    text = pa.dictionary(pa.int32(), pa.string())
    fields = [field.with_type(text) if pa.types.is_dictionary(field.type) else field for field in table.schema]
    return table.cast(pa.schema(fields, metadata=table.schema.metadata))
