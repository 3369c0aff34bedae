"""The parts of a frame: impressions joined, gathered and counted for the checks, some hundred thousand at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

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
from advprior.store.features import CLOCK_SOURCE, REQUEST_SOURCE, Feature, features_to_json
from advprior.store.runs import manifest_digest, read_manifest
from advprior.store.tables import load_time_plan
from advprior.store.times import as_datetimes
from ranking.frame import checks
from ranking.frame.absent import Existence, Expected
from ranking.frame.columns import (
    HistoryColumns,
    PriorColumns,
    Shown,
    clock_columns,
    joined_column,
    request_column,
)
from ranking.frame.coverage import Uses, coverage_gap
from ranking.frame.join import (
    Joined,
    JoinGroup,
    join_features,
    join_groups,
    open_store,
    scalar_refs,
    views_in_no_service,
)
from ranking.frame.lateness import late_events
from ranking.frame.preflight import preflight
from ranking.frame.read import SPLITS
from ranking.frame.rows import FrameRows, SortedRows, split_of
from ranking.frame.sources import source_digests
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


@dataclass(frozen=True, eq=False)
class _Source:
    """What every part is joined with and gathered from, opened once."""

    store: Any
    refs: Mapping[str, str]
    keys: Sequence[str]
    groups: Sequence[JoinGroup]
    existence: Existence
    history: HistoryColumns
    priors: Mapping[str, PriorColumns]
    stale: Sequence[JoinGroup]

    @classmethod
    def open(cls, request: Request) -> _Source:
        store, repo = open_store(request.repo), request.repo
        refs, keys = scalar_refs(store, request.services, repo)
        priors = {predictor: PriorColumns.open(repo, predictor) for predictor in request.predictors}
        names = (PRIOR_ROW, SNAPSHOT, MODEL_CUTOFF, "entropy")
        stale = [f"{prior_view(request.predictors[0])}:{name}" for name in names] if request.weeks else []
        return cls(
            store,
            refs,
            keys,
            join_groups(store, list(refs)),
            Existence.load(request.tables),
            HistoryColumns.open(repo),
            priors,
            join_groups(store, stale),
        )


@dataclass
class _Sums:
    """What parts leave behind for the checks and facts of the whole."""

    tallies: Tallies = field(default_factory=Tallies)
    too_large: dict[str, int] = field(default_factory=dict)
    absent: dict[str, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    #: Rows that the check for golden features looks at.
    golden: list[pa.Table] = field(default_factory=list)
    #: Of impressions whose user existed: nobody could have a prior of the others.
    users: list[Any] = field(default_factory=list)
    moments: list[Any] = field(default_factory=list)
    joined: dict[str, list[Any]] = field(default_factory=dict)
    listed: dict[str, list[Any]] = field(default_factory=dict)


class FrameParts:
    """The parts of a frame, in order, each an Arrow table; to be gone through once, and then finished."""

    def __init__(self, request: Request, plan: TimePlan, rows: SortedRows, source: _Source) -> None:
        self._request, self._plan, self._rows, self._source = request, plan, rows, source
        self._versions, self._sums = request.versions(), _Sums()
        self._split = split_of(rows.moments, plan)
        test = np.flatnonzero(self._split == "test")
        self._golden = test[checks.golden_rows(rows.label[test])]
        self._features: list[Feature] = []

    @classmethod
    def open(cls, request: Request, spill: Path) -> FrameParts:
        """Check what can be checked beforehand, and sort the impressions into a folder that is there meanwhile.

        Raises
        ------
        AdvpriorError
            ``STO00x`` (`ranking.frame.preflight`); ``RNK010`` without an impression.
        """
        plan = load_time_plan(request.tables)
        preflight(request.repo, request.predictors, end=plan.end)
        rows = SortedRows.load(request.tables, plan, spill)
        return cls(request, plan, rows, _Source.open(request))

    def __iter__(self) -> Iterator[pa.Table]:
        start = 0
        for rows in self._rows.parts():
            yield self._part(rows, start)
            start += len(rows.table)

    def finish(self) -> tuple[list[checks.Finding], dict[str, Any]]:
        """Warnings and facts of the whole frame.

        Raises
        ------
        AdvpriorError
            ``RNK00x`` (`ranking.frame.checks`); ``STO006`` where a view was published anew meanwhile.
        """
        request, sums = self._request, self._sums
        _require_unchanged(request, self._versions)
        priors = {p: read_manifest(view_folder(request.repo, prior_view(p)))["facts"] for p in request.predictors}
        gaps, findings = self._gaps()
        findings = [
            checks.check_numbers_held(sums.too_large),
            checks.check_views_joined(views_in_no_service(self._source.store, self._source.refs), request.service),
            *(prior.check() for prior in self._source.priors.values()),
            *sums.tallies.findings(),
            *findings,
            *self._check_whole(priors),
        ]
        warnings = checks.enforce(findings, "the frame")
        existing = sum(map(len, sums.moments))
        return warnings, {
            **self._row_facts(),
            "predictors": list(request.predictors),
            "services": request.services,
            "features": features_to_json(self._features),
            # of impressions whose user existed: nobody could have a prior of the others
            "coverage": {p: round(1 - sums.missing[p] / existing, 6) if existing else 0.0 for p in request.predictors},
            "not_yet_existing": dict(sums.absent),
            "gaps": gaps,
            "views": self._versions,
            "own_sources": source_digests(self._source.store, self._source.refs),
            # what the report says of the data and of each prior's origin
            "data": read_manifest(request.tables)["facts"],
            "priors": priors,
            "late_events": late_events(request.tables, self._plan),
            "warnings": [finding.to_json() for finding in warnings],
        }

    def _part(self, rows: FrameRows, start: int) -> pa.Table:
        """Rows from ``start`` on, with all their columns."""
        source, request = self._source, self._request
        joined = join_features(source.store, source.groups, entities_of(rows.table, source.keys, request.services))
        columns, expected = Columns(), source.existence.expected(rows.table)
        for ref, count in add_baseline(columns, joined, source.refs, rows).items():
            self._sums.too_large[ref] = self._sums.too_large.get(ref, 0) + count
        self._add_history(columns, joined, rows, expected)
        for predictor in request.predictors:
            self._add_prior(columns, joined, predictor, rows)
        self._count_uses(columns, rows, expected)
        for weeks in request.weeks:
            self._add_stale(columns, weeks, rows)
        self._features = columns.features
        stop = start + len(rows.table)
        table = _arrow(rows.key_columns(self._split[start:stop]) | columns.arrays)
        golden = self._golden[slice(*np.searchsorted(self._golden, [start, stop]))] - start
        self._sums.golden.append(table.select(list(columns.names())).take(golden))
        return table

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
        view, group, time = prior_view(predictor), stale_group(predictor, weeks), rows.table[TIMESTAMP]
        entities = rows.table[[IMPRESSION_ID, USER_ID]].assign(**{EVENT_TIMESTAMP: time - pd.Timedelta(weeks=weeks)})
        joined = join_features(source.store, source.stale, entities)
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
        users = rows.table[USER_ID].astype("category").cat
        sums.users.append(np.asarray(users.categories.astype(object))[users.codes[exists]])
        sums.moments.append(rows.moments[exists])
        for predictor in self._request.predictors:
            view = prior_view(predictor)
            missing = columns.arrays[f"{view}_missing"][exists] == 1
            joined = ~np.isnan(columns.arrays[f"{view}_age_days"])[exists]  # there is an age wherever a row was joined
            sums.missing[predictor] = sums.missing.get(predictor, 0) + int(missing.sum())
            sums.joined.setdefault(predictor, []).append(joined)
            sums.listed.setdefault(predictor, []).append(~missing | ~joined)

    def _gaps(self) -> tuple[dict[str, Any], list[checks.Finding | None]]:
        """Why impressions of users who existed lack a prior, where too many do."""
        sums, gaps = self._sums, dict[str, Any]()
        findings: list[checks.Finding | None] = []
        for predictor in self._request.predictors:
            users, moments = np.concatenate(sums.users), np.concatenate(sums.moments)
            joined, listed = (np.concatenate(of[predictor]) for of in (sums.joined, sums.listed))
            if gap := coverage_gap(self._request.repo, predictor, Uses(users, moments, joined, listed)):
                gaps[predictor] = gap.to_json()
                findings.append(checks.check_prior_coverage(predictor, gap.share, gap.cause, gap.fix))
        return gaps, findings

    def _check_whole(self, priors: Mapping[str, Mapping[str, Any]]) -> list[checks.Finding | None]:
        """Checks of the frame as a whole: catalogs, splits, and features that all but know the label."""
        import pyarrow as pa

        # priors by advertiser and by advertiser × category have catalogs of their own, and are meant to
        catalogs: dict[str, dict[str, str]] = {}
        for name, facts in priors.items():
            if "catalog_version" in facts:
                catalogs.setdefault(str(facts.get("by")), {})[name] = str(facts["catalog_version"])
        label = self._rows.label
        of_golden = pa.concat_tables(self._sums.golden).unify_dictionaries().to_pandas()
        return [
            *(checks.check_one_catalog(versions) for versions in catalogs.values()),
            checks.check_splits_apart(self._split, as_datetimes(self._rows.moments)),
            checks.check_enough_positives(self._split, label),
            *checks.check_golden_features(of_golden, label[self._golden]),
        ]

    def _row_facts(self) -> dict[str, Any]:
        of_split = {name: self._split == name for name in SPLITS}
        return {
            "time_plan": self._plan.to_json(),
            "rows": {name: int(rows.sum()) for name, rows in of_split.items()},
            "positives": {name: int(self._rows.label[rows].sum()) for name, rows in of_split.items()},
            "rows_beyond_end": self._rows.beyond,
        }


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


def _require_unchanged(request: Request, versions: Mapping[str, str]) -> None:
    """``STO006``: no view was published anew since its version was noted."""
    for view, digest in request.versions().items():
        if digest != versions[view]:
            raise AdvpriorError(
                "STO006",
                "a view was published anew while the frame was being built",
                where=view,
                fix="run the same command again",
            )


def _arrow(columns: Mapping[str, Any]) -> pa.Table:
    """Columns as Arrow has them, each of one type in all parts: text as strings behind 32-bit codes."""
    import pyarrow as pa

    # a copy of so many columns is what memory peaks at
    table = pa.Table.from_pandas(pd.DataFrame(columns, copy=False), preserve_index=False)
    text = pa.dictionary(pa.int32(), pa.string())
    fields = [field.with_type(text) if pa.types.is_dictionary(field.type) else field for field in table.schema]
    return table.cast(pa.schema(fields, metadata=table.schema.metadata))
