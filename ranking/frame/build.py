"""The point-in-time frame: one row per impression, every feature as it was then.

Feast joins scalars and pointers once (`ranking.frame.join`); vectors and sparse counts are gathered by pointer
afterwards (`ranking.frame.columns`). Then the leak checks run: a frame that fails one is never written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.contract import (
    AD_ID,
    ADVERTISER_ID,
    BASELINE_SERVICE,
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
from advprior.store.features import CLOCK_SOURCE, REQUEST_SOURCE, features_to_json
from advprior.store.runs import manifest_digest, read_manifest
from advprior.store.tables import load_time_plan
from advprior.store.times import as_datetimes, micros
from ranking.frame import checks
from ranking.frame.absent import Expected
from ranking.frame.columns import (
    Findings,
    Shown,
    clock_columns,
    history_columns,
    joined_column,
    prior_columns,
    request_column,
)
from ranking.frame.coverage import CoverageGap, Uses, coverage_gap
from ranking.frame.join import Joined, join_features, open_store, scalar_refs, views_in_no_service
from ranking.frame.lateness import late_events
from ranking.frame.preflight import preflight
from ranking.frame.read import SPLITS
from ranking.frame.rows import FrameRows, load_rows, split_of
from ranking.frame.sources import source_digests
from ranking.frame.views import (
    BASELINE_VIEWS,
    Columns,
    column_name,
    group_of_view,
    is_pointer,
    stale_group,
    view_folder,
)


@dataclass
class FrameResult:
    """A frame and what is worth knowing of it."""

    frame: pd.DataFrame
    warnings: list[checks.Finding] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def build_frame(
    tables: Path, repo: Path, predictors: Sequence[str], *, service: str = BASELINE_SERVICE, stale: Sequence[int] = ()
) -> FrameResult:
    """The frame of every impression from ``finetune_end`` on.

    Parameters
    ----------
    tables : Path
        Canonical tables.
    repo : Path
        Feature repository, published and applied.
    predictors : sequence of str
        Whose priors to join, through their own services.
    service : str
        The baseline's service; whatever scalars it has become features, those of a user's own views too.
    stale : sequence of int
        Weeks: what the first predictor said so long before each impression becomes features too, for arms that ask
        what a prior is worth when it is old.

    Raises
    ------
    AdvpriorError
        ``STO00x`` before the join (`ranking.frame.preflight`), ``RNK00x`` after it (`ranking.frame.checks`).
    """
    plan = load_time_plan(tables)
    preflight(repo, predictors, end=plan.end)
    versions = {v: manifest_digest(view_folder(repo, v)) for v in [*BASELINE_VIEWS, *map(prior_view, predictors)]}
    rows = load_rows(tables, plan)
    store = open_store(repo)
    services = [service, *map(prior_service, predictors)]
    refs, keys = scalar_refs(store, services, repo)
    own_sources = source_digests(store, refs)
    joined = join_features(store, list(refs), entities_of(rows.table, keys, services))

    columns = Columns()
    findings = add_baseline(columns, joined, refs, rows)
    findings.append(checks.check_views_joined(views_in_no_service(store, refs), service))
    expected = Expected.of(tables, rows.table)
    findings += _add_history(columns, joined, repo, rows, expected)
    gaps: dict[str, CoverageGap] = {}
    for predictor in predictors:
        findings += _add_prior(columns, joined, repo, predictor, rows)
        if gap := _gap_of(columns, repo, predictor, rows, expected):
            gaps[predictor] = gap
            findings.append(checks.check_prior_coverage(predictor, gap.share, gap.cause, gap.fix))
    for weeks in stale if predictors else ():
        findings += _add_stale(columns, store, repo, predictors[0], weeks, rows)
    _require_unchanged(repo, versions)

    priors = {p: read_manifest(view_folder(repo, prior_view(p)))["facts"] for p in predictors}
    split = split_of(rows.table[TIMESTAMP], plan)
    findings += _check_whole(columns, rows, split, priors)
    warnings = checks.enforce(findings, "the frame")
    # a copy of so many columns is what memory peaks at
    frame = pd.DataFrame(rows.key_columns(split) | columns.arrays, copy=False)
    user_exists = expected.by_view[USER_HISTORY_VIEW]
    missing = {p: columns.arrays[f"{prior_view(p)}_missing"][user_exists] for p in predictors}
    facts = {
        **_row_facts(rows, split, plan),
        "predictors": list(predictors),
        "services": services,
        "features": features_to_json(columns.features),
        # of impressions whose user existed: nobody could have a prior of the others
        "coverage": {p: round(1 - float(m.mean()), 6) if len(m) else 0.0 for p, m in missing.items()},
        "not_yet_existing": expected.counts(),
        "gaps": {name: gap.to_json() for name, gap in gaps.items()},
        "views": versions,
        "own_sources": own_sources,
        # what the report says of the data and of each prior's origin
        "data": read_manifest(tables)["facts"],
        "priors": priors,
        "late_events": late_events(tables, plan),
        "warnings": [finding.to_json() for finding in warnings],
    }
    return FrameResult(frame, warnings, facts)


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


def add_baseline(columns: Columns, joined: Joined, refs: Mapping[str, str], rows: FrameRows) -> Findings:
    """Joined scalars of every view, then what comes with the request, then the clock."""
    moments, too_large = rows.moments, {}
    for ref, name in refs.items():
        view, feature = ref.split(":")
        if not is_pointer(view, feature):
            column, too_large[ref] = joined_column(ref, joined.pop(name), moments)
            columns.add(group_of_view(view), view, {column_name(view, feature): column})
    context = [str(name) for name in rows.table if str(name).startswith(CONTEXT_PREFIX)]
    columns.add("context", REQUEST_SOURCE, {name: request_column(rows.table[name]) for name in context})
    columns.add("context", CLOCK_SOURCE, clock_columns(moments))
    return [checks.check_numbers_held(too_large)]


def _add_history(columns: Columns, joined: Joined, repo: Path, rows: FrameRows, expected: Expected) -> Findings:
    moments = rows.moments
    findings: Findings = []
    for view in expected.by_view:
        snapshot = joined.pop_times(f"{view}__{SNAPSHOT}")
        findings.append(checks.check_not_newer(view, snapshot, moments))
        findings.append(checks.check_rows_joined(view, expected.lost(view, snapshot), len(moments)))
    pointers = joined.pop_pointer(f"{USER_HISTORY_VIEW}__{HISTORY_ROW}")
    for group, features in history_columns(repo, pointers, rows.table[AD_ID], moments).items():
        columns.add(group, USER_HISTORY_VIEW, features)
    return findings


def _add_prior(columns: Columns, joined: Joined, repo: Path, predictor: str, rows: FrameRows) -> Findings:
    view, moments = prior_view(predictor), rows.moments
    pointers, snapshot = joined.pop_pointer(f"{view}__{PRIOR_ROW}"), joined.pop_times(f"{view}__{SNAPSHOT}")
    findings: Findings = [
        checks.check_model_cutoff(predictor, joined.pop_times(f"{view}__{MODEL_CUTOFF}"), moments),
        checks.check_not_newer(view, snapshot, moments),
    ]
    shown = Shown(rows.table[ADVERTISER_ID], rows.category, moments)
    arrays, more = prior_columns(repo, predictor, pointers, snapshot, shown)
    columns.add(view, view, arrays)
    return findings + more


def _gap_of(columns: Columns, repo: Path, predictor: str, rows: FrameRows, expected: Expected) -> CoverageGap | None:
    """Why impressions of users who existed lack this prior, where too many do."""
    arrays, view, exists = columns.arrays, prior_view(predictor), expected.by_view[USER_HISTORY_VIEW]
    joined = ~np.isnan(arrays[f"{view}_age_days"])[exists]  # a prior has an age wherever a row was joined
    listed = (arrays[f"{view}_missing"] == 0)[exists] | ~joined
    users = rows.table[USER_ID][exists].astype(str).tolist()
    return coverage_gap(repo, predictor, Uses(users, rows.moments[exists], joined, listed))


def _add_stale(columns: Columns, store: Any, repo: Path, predictor: str, weeks: int, rows: FrameRows) -> Findings:
    """A predictor's features as the store had them ``weeks`` weeks before each impression.

    What a ranker would read if scoring had stopped then. Impressions of the first weeks had no prior yet: missing.
    """
    view, group, time = prior_view(predictor), stale_group(predictor, weeks), rows.table[TIMESTAMP]
    entities = rows.table[[IMPRESSION_ID, USER_ID]].assign(**{EVENT_TIMESTAMP: time - pd.Timedelta(weeks=weeks)})
    refs = [f"{view}:{name}" for name in (PRIOR_ROW, SNAPSHOT, MODEL_CUTOFF, "entropy")]
    joined = join_features(store, refs, entities)
    pointers, snapshot = joined.pop_pointer(f"{view}__{PRIOR_ROW}"), joined.pop_times(f"{view}__{SNAPSHOT}")
    cutoff = joined.pop_times(f"{view}__{MODEL_CUTOFF}")
    shown = Shown(rows.table[ADVERTISER_ID], rows.category, rows.moments)
    arrays, _ = prior_columns(repo, predictor, pointers, snapshot, shown)
    arrays[f"{view}_entropy"], _ = joined_column(f"{view}:entropy", joined.pop(f"{view}__entropy"), shown.moment)
    columns.add(group, view, {group + name.removeprefix(view): array for name, array in arrays.items()})
    return [checks.check_model_cutoff(predictor, cutoff, shown.moment)]


def _require_unchanged(repo: Path, versions: Mapping[str, str]) -> None:
    """``STO006``: no view was published anew since its version was noted."""
    for view, digest in versions.items():
        if manifest_digest(view_folder(repo, view)) != digest:
            raise AdvpriorError(
                "STO006",
                "a view was published anew while the frame was being built",
                where=view,
                fix="run the same command again",
            )


def _check_whole(columns: Columns, rows: FrameRows, split: Any, priors: Mapping[str, Mapping[str, Any]]) -> Findings:
    """Checks of the frame as a whole: catalogs, splits, and features that all but know the label."""
    # priors by advertiser and by advertiser × category have catalogs of their own, and are meant to
    catalogs: dict[str, dict[str, str]] = {}
    for name, facts in priors.items():
        if "catalog_version" in facts:
            catalogs.setdefault(str(facts.get("by")), {})[name] = str(facts["catalog_version"])
    test = split == "test"
    of_test = pd.DataFrame({name: array[test] for name, array in columns.arrays.items()})
    return [
        *(checks.check_one_catalog(versions) for versions in catalogs.values()),
        checks.check_splits_apart(split, as_datetimes(micros(rows.table[TIMESTAMP]))),
        checks.check_enough_positives(split, rows.label),
        *checks.check_golden_features(of_test, rows.label[test]),
    ]


def _row_facts(rows: FrameRows, split: Any, plan: TimePlan) -> dict[str, Any]:
    return {
        "time_plan": plan.to_json(),
        "rows": {name: int((split == name).sum()) for name in SPLITS},
        "positives": {name: int(rows.label[split == name].sum()) for name in SPLITS},
        "rows_beyond_end": rows.beyond,
    }
