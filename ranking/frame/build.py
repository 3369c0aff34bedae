"""The point-in-time frame: one row per impression, every feature as it was known then.

Feast joins scalars and pointers once; vectors and sparse counts are gathered by pointer afterwards. Then the
leak checks run: a frame that fails one is never written.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from advprior.store.contract import (
    AD_ID,
    AD_STATS_VIEW,
    ADVERTISER_ID,
    BASELINE_SERVICE,
    CATALOG_VERSION,
    CATEGORY,
    CONTEXT_PREFIX,
    EVENT_TIMESTAMP,
    HISTORY_ROW,
    IMPRESSION_ID,
    LABEL,
    MODEL_CUTOFF,
    PRIOR_ROW,
    PRIOR_VIEW_PREFIX,
    PROFILE_PREFIX,
    SLATE_ID,
    SNAPSHOT,
    TABLE_FILE,
    TIMESTAMP,
    USER_HISTORY_VIEW,
    USER_ID,
    USER_PROFILE_VIEW,
    TimePlan,
    prior_service,
    prior_view,
)
from advprior.store.errors import AdvpriorError
from advprior.store.features import CLOCK_SOURCE, REQUEST_SOURCE, Feature, features_to_json
from advprior.store.offline import SPARK
from advprior.store.runs import manifest_digest, read_manifest
from advprior.store.tables import load_tables, load_time_plan
from ranking.frame import checks
from ranking.frame.counts import DAY_US, CountsBefore, Ints, compact, micros, moment_us
from ranking.frame.gather import (
    HISTORY_VALUES,
    TOP,
    PriorFiles,
    gather_history,
    gather_interests,
    gather_priors,
    mean_probability,
    places,
)
from ranking.frame.history import LEVELS, history_files, load_history_ids
from ranking.frame.preflight import BASELINE_VIEWS, preflight, view_folder
from ranking.frame.read import SPLITS

JOIN_MEMORY = "1500MB"  # beyond it, DuckDB spills: 1.4M rows × 60 columns take 1.4 times as long in 1 GB as in 3
#: What our own views hold: the group of their features, and how their columns begin.
_VIEW_GROUPS = {
    USER_PROFILE_VIEW: ("profile", PROFILE_PREFIX),
    USER_HISTORY_VIEW: ("activity", "activity_"),
    AD_STATS_VIEW: ("ad", "ad_"),
}
# per user and catalog position: of use to a service, noise to a ranker that sees the ad's own log-probability
_NOT_JOINED = (CATALOG_VERSION, "top1_index", "top1_log_prob")
_POINTERS = (HISTORY_ROW, PRIOR_ROW, SNAPSHOT, MODEL_CUTOFF)

Bools = npt.NDArray[np.bool_]
NAT = np.datetime64("NaT", "us")


@dataclass
class FrameResult:
    """A frame and what is worth knowing of it."""

    frame: pd.DataFrame
    warnings: list[checks.Finding] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def split_of(times: pd.Series[pd.Timestamp], plan: TimePlan) -> npt.NDArray[Any]:
    """``train``, ``valid`` or ``test`` of each impression, by the time plan."""
    edges = np.array([moment_us(plan.train_end), moment_us(plan.valid_end)])
    return np.array(SPLITS, dtype=object)[np.searchsorted(edges, micros(times), side="right")]


def never_before(events: pd.DataFrame, impressions: pd.DataFrame, keys: Sequence[str]) -> Bools:
    """Whether the user had no event with these keys strictly before the impression (exact, no snapshot).

    Parameters
    ----------
    keys : column names in both tables
        E.g. user_id and advertiser_id. An event that lacks one of them matches nothing.
    """
    events = events.dropna(subset=list(keys))
    sizes, of_events, of_impressions = [], [], []
    for key in keys:
        codes, found = pd.factorize(pd.concat([events[key], impressions[key]], ignore_index=True))
        sizes.append(len(found) + 1)
        of_events.append((codes[: len(events)] + 1).astype(np.int64))
        of_impressions.append((codes[len(events) :] + 1).astype(np.int64))
    groups, rows = compact(*[(codes, size) for codes, size in zip(of_events, sizes, strict=True)])
    first = CountsBefore(rows, micros(events[TIMESTAMP]), len(groups)).first()
    wanted = of_impressions[0]
    for codes, size in zip(of_impressions[1:], sizes[1:], strict=True):
        wanted = wanted * size + codes
    at = pd.Index(groups).get_indexer(pd.Index(wanted))
    oldest = np.where(at >= 0, first[at] if len(first) else 0, np.iinfo(np.int64).max)
    never: Bools = oldest >= micros(impressions[TIMESTAMP])
    return never


def column_name(view: str, feature: str) -> str:
    """Name of a joined feature in the frame: ours keep their own, any other stands behind its view's.

    >>> column_name("ad_stats", "ad_rate_4w"), column_name("prior_llm", "entropy"), column_name("ad_quality", "score")
    ('ad_rate_4w', 'prior_llm_entropy', 'ad_quality__score')
    """
    if view.startswith(PRIOR_VIEW_PREFIX):
        return f"{view}_{feature}"
    ours = view in _VIEW_GROUPS and feature.startswith(_VIEW_GROUPS[view][1])
    return feature if ours else f"{view}__{feature}"


def group_of_view(view: str) -> str:
    """Group of the features joined from a view: a prior's and a user's own view are groups of their own.

    >>> group_of_view("ad_stats"), group_of_view("prior_text_pair"), group_of_view("ad_quality")
    ('ad', 'prior_text_pair', 'ad_quality')
    """
    return _VIEW_GROUPS[view][0] if view in _VIEW_GROUPS else view


def open_store(repo: Path) -> Any:
    """Feast's store. Importing it takes seconds: hence here."""
    from feast import FeatureStore

    store = FeatureStore(repo_path=str(repo))
    if store.config.offline_store.type == SPARK:  # said at every step of every view; docs/production.md says it once
        warnings.filterwarnings(
            "ignore", "The spark (offline store|data source API) is an experimental", RuntimeWarning
        )
    return store


def require_sources(store: Any, views: Sequence[Any], repo: Path) -> None:
    """Refuse views that were applied for another offline store than the one that would now join them.

    Raises
    ------
    AdvpriorError
        ``STO022``.
    """
    kind = store.config.offline_store.type
    strangers = [v.name for v in views if (type(v.batch_source).__name__ == "SparkSource") != (kind == SPARK)]
    if strangers:
        raise AdvpriorError(
            "STO022",
            "views were applied for another offline store than feature_store.yaml names",
            where=str(repo),
            actual=f"sources of {', '.join(strangers)}",
            expected=f"sources for {kind}",
            fix=f"feast -c {repo} apply",
        )


def scalar_refs(store: Any, services: Sequence[str], repo: Path) -> tuple[dict[str, str], list[str]]:
    """Scalar features of the services, each once, and the join keys they need.

    Vectors are left out: they are gathered by pointer.

    Returns
    -------
    dict[str, str]
        ``view:feature`` to the name Feast gives the joined column.
    list[str]
        Join keys.

    Raises
    ------
    AdvpriorError
        ``STO005`` when a service is not applied, ``STO022`` when its views are for another offline store.
    """
    from feast.errors import FeastObjectNotFoundException
    from feast.types import PrimitiveFeastType

    refs: dict[str, str] = {}
    keys: dict[str, None] = {}
    views: dict[str, Any] = {}
    for name in services:
        try:
            service = store.get_feature_service(name)
        except FeastObjectNotFoundException as error:
            raise AdvpriorError(
                "STO005",
                "a feature service is not applied",
                where=str(repo),
                actual=f"no service {name}",
                expected="all views of the service published, then applied",
                fix=f"feast -c {repo} apply",
            ) from error
        for projection in service.feature_view_projections:
            view = projection.name_to_use()
            for feature in projection.features:
                if isinstance(feature.dtype, PrimitiveFeastType) and feature.name not in _NOT_JOINED:
                    refs[f"{view}:{feature.name}"] = f"{view}__{feature.name}"
            try:
                source = store.get_feature_view(projection.name)
            except FeastObjectNotFoundException:  # an on-demand view has no keys of its own
                continue
            views[source.name] = source
            for column in source.entity_columns:
                keys[projection.join_key_map.get(column.name, column.name)] = None
    require_sources(store, list(views.values()), repo)
    return refs, list(keys)


@cache
def _duckdb_for_joins() -> None:
    """Settle, once a process, what the join may take: Feast runs it on ibis' default DuckDB connection."""
    import ibis

    spill = tempfile.mkdtemp(prefix="advprior-join-")
    atexit.register(shutil.rmtree, spill, ignore_errors=True)
    connection = ibis.get_backend()
    connection.raw_sql(f"SET temp_directory='{spill}'")  # its default is the working directory
    connection.raw_sql(f"SET memory_limit='{JOIN_MEMORY}'")
    # Feast does not promise an order, so none need be kept: less memory
    connection.raw_sql("SET preserve_insertion_order=false")


class Joined:
    """Columns of joins in the order of the rows that were asked for, each handed out once and let go of."""

    def __init__(self) -> None:
        self._columns: dict[str, tuple[Any, Ints]] = {}

    def add(self, table: Any, order: Ints) -> None:
        """Columns of one join, and the row of it that each row asked for has."""
        self._columns |= {name: (table[name], order) for name in table.column_names}

    def pop(self, name: str) -> Any:
        """One column as an Arrow array, in order."""
        column, order = self._columns.pop(name)
        return column.combine_chunks().take(order)


def join_features(store: Any, refs: Sequence[str], entities: pd.DataFrame) -> Joined:
    """Point-in-time joins through Feast, put back into the order of ``entities``.

    A feature row is joined when ``event_timestamp`` and ``created_timestamp`` are not later than the entity's time
    and the row is within its view's TTL; the newest wins, and among equals the one created last. Views with the same
    join keys are joined together, for each distinct key and time once: the ads of a slate share their user's row.

    Parameters
    ----------
    refs : ``view:feature`` references
    entities : pandas.DataFrame
        ``impression_id``, ``event_timestamp`` and the join keys.

    Raises
    ------
    AdvpriorError
        ``RNK005`` when rows are lost or doubled.
    """
    import pyarrow as pa

    if store.config.offline_store.type == "duckdb":
        _duckdb_for_joins()
    found = Joined()
    found.add(pa.table({IMPRESSION_ID: entities[IMPRESSION_ID].to_numpy()}), np.arange(len(entities)))
    for keys, mine in _by_keys(store, refs).items():
        columns = list(keys) or [str(c) for c in entities if c not in (IMPRESSION_ID, EVENT_TIMESTAMP)]
        place = entities.groupby([*columns, EVENT_TIMESTAMP], sort=False, dropna=False, observed=True).ngroup()
        codes = place.to_numpy(np.int64)
        first = np.unique(codes, return_index=True)[1]
        asked = entities.iloc[first][[*columns, EVENT_TIMESTAMP]].assign(**{IMPRESSION_ID: np.arange(len(first))})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fetch_arrow_table", DeprecationWarning)  # ibis 12 on duckdb 2
            job = store.get_historical_features(
                entity_df=asked, features=mine, full_feature_names=True, filter_by_created_timestamp=True
            )
            joined = job.to_arrow()
        expected, got = asked[IMPRESSION_ID].to_numpy(), joined[IMPRESSION_ID].to_numpy()
        checks.enforce([checks.check_rows_kept(expected, got)], "the point-in-time join")
        found.add(joined.select([ref.replace(":", "__") for ref in mine]), np.argsort(got, kind="stable")[codes])
    return found


def _by_keys(store: Any, refs: Sequence[str]) -> dict[tuple[str, ...], list[str]]:
    """References by the join keys of their view; an on-demand view has none of its own and stands under ``()``."""
    from feast.errors import FeatureViewNotFoundException

    keys: dict[str, tuple[str, ...]] = {}
    for view in dict.fromkeys(ref.split(":")[0] for ref in refs):
        try:
            keys[view] = tuple(sorted(column.name for column in store.get_feature_view(view).entity_columns))
        except FeatureViewNotFoundException:
            keys[view] = ()
    found: dict[tuple[str, ...], list[str]] = {}
    for ref in refs:
        found.setdefault(keys[ref.split(":")[0]], []).append(ref)
    return found


def times(column: Any) -> npt.NDArray[Any]:
    """datetime64[us] of an Arrow time column, NaT for null."""
    import pyarrow as pa

    numbers = column.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    filled: npt.NDArray[Any] = numbers.fill_null(np.iinfo(np.int64).min).to_numpy(zero_copy_only=False)
    return filled.view("datetime64[us]")  # int64's minimum is NaT


def pointer(column: Any) -> Ints:
    """int64 of an Arrow column, −1 for null."""
    import pyarrow as pa

    numbers: Ints = column.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
    return numbers


def _feature(column: Any, impression: npt.NDArray[Any]) -> Any:
    """A feature column as the ranker takes it: float32, or category for text; a time becomes days of age."""
    import pyarrow as pa

    if pa.types.is_timestamp(column.type):
        age = (impression - times(column)).astype("timedelta64[us]")
        days = age.astype(np.float64) / DAY_US
        days[np.isnat(age)] = np.nan
        return days.astype(np.float32)
    if pa.types.is_dictionary(column.type) or pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        values = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        return values.to_pandas().cat.remove_unused_categories()
    return column.cast(pa.float32()).to_numpy(zero_copy_only=False)


def _take_times(times: npt.NDArray[Any], rows: Ints) -> npt.NDArray[Any]:
    """``times[rows]``, NaT where the pointer is −1."""
    return np.where(rows >= 0, times[rows] if len(times) else NAT, NAT)


def history_columns(repo: Path, rows: Ints, ads: pd.Series[Any], impression: npt.NDArray[Any]) -> dict[str, Any]:
    """``history_<level>_{1w,4w,12w,all,recency_days}``; recency counts to the impression, not to the snapshot."""
    from advprior.store.tables import read_parquet

    folder = view_folder(repo, USER_HISTORY_VIEW)
    ids = load_history_ids(folder)
    index = pd.Index(ids["ads"][AD_ID]).get_indexer(pd.Index(ads))
    table = read_parquet(folder / TABLE_FILE, columns=[HISTORY_ROW, SNAPSHOT]).sort_values(HISTORY_ROW)
    since = impression - _take_times(micros(table[SNAPSHOT]).view("datetime64[us]"), rows)
    since_days = since.astype(np.float64) / DAY_US
    columns: dict[str, Any] = {}
    for level in LEVELS:
        of_ad = np.array([*ids["ads"][level], -1], dtype=np.int64)[index]
        found = gather_history(folder, history_files(level), ids["sizes"][level], rows, of_ad)
        found[:, 4] += since_days  # NaT gave a huge number, but those rows are NaN already
        for i, name in enumerate(HISTORY_VALUES):
            columns[f"history_{level}_{name}"] = np.ascontiguousarray(found[:, i])
    return columns


def prior_columns(
    repo: Path,
    predictor: str,
    rows: Ints,
    snapshot: npt.NDArray[Any],
    advertisers: pd.Series[Any],
    impression: Any,
    categories: pd.Series[Any],
) -> tuple[dict[str, Any], list[checks.Finding | None]]:
    """A predictor's features, and what the checks say of its rows."""
    from advprior.store.tables import read_parquet

    view = prior_view(predictor)
    folder = view_folder(repo, view)
    files = PriorFiles.open(folder)
    table = read_parquet(folder / TABLE_FILE, columns=[PRIOR_ROW, SNAPSHOT, EVENT_TIMESTAMP]).sort_values(PRIOR_ROW)
    table_snapshot = micros(table[SNAPSHOT])
    available = micros(table[EVENT_TIMESTAMP]).view("datetime64[us]")
    index = places(files.advertisers, advertisers, categories)
    log_prob, rank = gather_priors(files, rows, index)
    moments, means = mean_probability(files, table[PRIOR_ROW].to_numpy(np.int64), table_snapshot)
    at = np.searchsorted(moments, snapshot.astype("datetime64[us]").astype(np.int64))
    here = ~np.isnan(log_prob)
    log_ratio = np.full(len(rows), np.nan, dtype=np.float32)
    # a mean can underflow to 0 only where every log-probability does
    tiny = np.finfo(np.float64).tiny
    log_ratio[here] = log_prob[here] - np.log(np.maximum(means[at[here], index[here]], tiny))
    age = (impression - snapshot).astype(np.float64) / DAY_US
    columns = {
        f"{view}_log_prob": log_prob,
        f"{view}_log_ratio": log_ratio,
        f"{view}_rank": rank,
        f"{view}_top20": np.where(here, rank <= TOP, np.nan).astype(np.float32),
        f"{view}_age_days": np.where(rows >= 0, age, np.nan).astype(np.float32),
        f"{view}_missing": (~here).astype(np.float32),
    }
    of_category = gather_interests(folder, rows, categories)
    if of_category is not None:
        columns[f"{view}_interest_log_prob"] = of_category
    found = [
        checks.check_available_after_snapshot(view, table_snapshot.view("datetime64[us]"), available),
        checks.check_not_newer(view, _take_times(available, rows), impression),
        checks.check_prior_coverage(predictor, ~here),
        checks.check_in_catalog(predictor, index >= 0),
    ]
    return columns, found


def stale_group(predictor: str, weeks: int) -> str:
    """Group of what a predictor said some weeks before.

    >>> stale_group("llm", 4)
    'prior_stale4w_llm'
    """
    return f"{PRIOR_VIEW_PREFIX}stale{weeks}w_{predictor}"


def stale_columns(
    store: Any, repo: Path, predictor: str, weeks: int, impressions: pd.DataFrame, categories: pd.Series[Any]
) -> tuple[dict[str, Any], list[checks.Finding | None]]:
    """A predictor's features as the store knew them ``weeks`` weeks before each impression.

    What a ranker would read if scoring had stopped then. Impressions of the first weeks had no prior yet: missing.
    """
    view = prior_view(predictor)
    time = impressions[TIMESTAMP]
    entities = impressions[[IMPRESSION_ID, USER_ID]].assign(**{EVENT_TIMESTAMP: time - pd.Timedelta(weeks=weeks)})
    names = [f"{view}:{name}" for name in (PRIOR_ROW, SNAPSHOT, MODEL_CUTOFF, "entropy")]
    joined = join_features(store, names, entities)
    impression = micros(time).view("datetime64[us]")
    rows, snapshot = pointer(joined.pop(f"{view}__{PRIOR_ROW}")), times(joined.pop(f"{view}__{SNAPSHOT}"))
    found = [checks.check_model_cutoff(predictor, times(joined.pop(f"{view}__{MODEL_CUTOFF}")), impression)]
    advertisers = impressions[ADVERTISER_ID]
    columns, _ = prior_columns(repo, predictor, rows, snapshot, advertisers, impression, categories)
    columns[f"{view}_entropy"] = _feature(joined.pop(f"{view}__entropy"), impression)
    return {stale_group(predictor, weeks) + name.removeprefix(view): c for name, c in columns.items()}, found


def clock_columns(impression: npt.NDArray[Any]) -> dict[str, Any]:
    """When in the week and in the day (UTC) the impression was, as the baseline's own features.

    A prior's age says the same where snapshots are weekly: without these columns every prior, a placebo
    too, would be credited with what is only the day of the week. No column of a user's is named ``clock_…``: a
    ``context_hour`` of their own stays theirs.
    """
    days = impression.astype("datetime64[us]").astype(np.int64) / DAY_US
    week = (days + 3.0) % 7.0  # the epoch was a Thursday; Monday 00:00 is 0
    return {
        "clock_days_into_week": week.astype(np.float32),
        "clock_hour": (days % 1.0 * 24.0).astype(np.float32),
    }


class Columns:
    """Feature columns of a frame as they come in, and what each of them is."""

    def __init__(self) -> None:
        self.arrays: dict[str, Any] = {}
        self.features: list[Feature] = []

    def add(self, group: str, source: str, columns: Mapping[str, Any]) -> None:
        """Columns of one group that come from one source."""
        for name, values in columns.items():
            text = isinstance(values.dtype, pd.CategoricalDtype)
            self.features.append(Feature(name, group, source, "category" if text else "float32"))
            self.arrays[name] = values


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
        The baseline's service; whatever scalars it has become features.
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
    loaded = load_tables(tables, "ads", "events", "impressions")
    impressions = loaded["impressions"]
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
    category = loaded["ads"].set_index(AD_ID)[CATEGORY]
    events = loaded["events"]
    seen = impressions[[USER_ID, ADVERTISER_ID, AD_ID, TIMESTAMP]].assign(category=impressions[AD_ID].map(category))
    never_advertiser = never_before(events, seen, [USER_ID, ADVERTISER_ID])
    never_ad = never_before(events, seen, [USER_ID, ADVERTISER_ID, CATEGORY])
    del loaded, events, seen

    store = open_store(repo)
    services = [service, *map(prior_service, predictors)]
    refs, keys = scalar_refs(store, services, repo)
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
    entities = impressions[[IMPRESSION_ID, *keys]].copy()
    entities[EVENT_TIMESTAMP] = impressions[TIMESTAMP]
    joined = join_features(store, list(refs), entities)
    del entities
    impression = micros(impressions[TIMESTAMP]).view("datetime64[us]")

    pointers = {name for ref, name in refs.items() if ref.split(":")[1] in _POINTERS}
    columns = Columns()
    for ref, name in refs.items():
        if name not in pointers:
            view, feature = ref.split(":")
            joined_column = {column_name(view, feature): _feature(joined.pop(name), impression)}
            columns.add(group_of_view(view), view, joined_column)
    for name in impressions.columns:
        if name.startswith(CONTEXT_PREFIX):
            text = not pd.api.types.is_numeric_dtype(impressions[name])
            of_request = {str(name): impressions[name].astype("category" if text else np.float32)}
            columns.add("context", REQUEST_SOURCE, of_request)
    columns.add("context", CLOCK_SOURCE, clock_columns(impression))

    found: list[checks.Finding | None] = [
        checks.check_not_newer(view, times(joined.pop(f"{view}__{SNAPSHOT}")), impression)
        for view in (USER_HISTORY_VIEW, AD_STATS_VIEW)
    ]
    history_row = pointer(joined.pop(f"{USER_HISTORY_VIEW}__{HISTORY_ROW}"))
    counts = history_columns(repo, history_row, impressions[AD_ID], impression)
    columns.add("history", USER_HISTORY_VIEW, counts)
    of_ad = impressions[AD_ID].map(category)
    for predictor in predictors:
        view = prior_view(predictor)
        rows, snapshot = pointer(joined.pop(f"{view}__{PRIOR_ROW}")), times(joined.pop(f"{view}__{SNAPSHOT}"))
        found.append(checks.check_model_cutoff(predictor, times(joined.pop(f"{view}__{MODEL_CUTOFF}")), impression))
        found.append(checks.check_not_newer(view, snapshot, impression))
        mine, judged = prior_columns(repo, predictor, rows, snapshot, impressions[ADVERTISER_ID], impression, of_ad)
        columns.add(view, view, mine)
        found += judged
    del joined
    for weeks in stale if predictors else ():
        mine, judged = stale_columns(store, repo, predictors[0], weeks, impressions, of_ad)
        columns.add(stale_group(predictors[0], weeks), prior_view(predictors[0]), mine)
        found += judged
    for view, digest in versions.items():
        if manifest_digest(view_folder(repo, view)) != digest:
            raise AdvpriorError(
                "STO006",
                "a view was published anew while the frame was being built",
                where=view,
                fix="run the same command again",
            )

    origin = {p: read_manifest(view_folder(repo, prior_view(p)))["facts"] for p in predictors}
    found.append(
        checks.check_one_catalog({p: str(f["catalog_version"]) for p, f in origin.items() if "catalog_version" in f})
    )
    split, label = split_of(impressions[TIMESTAMP], plan), impressions[LABEL].to_numpy()
    found += [checks.check_splits_apart(split, impression), checks.check_enough_positives(split, label)]
    test = split == "test"
    found += checks.check_golden_features(pd.DataFrame({n: c[test] for n, c in columns.arrays.items()}), label[test])
    said = checks.enforce(found, "the frame")

    own: dict[str, Any] = {name: impressions[name] for name in (IMPRESSION_ID, SLATE_ID)}
    own |= {name: impressions[name].astype("category") for name in (USER_ID, AD_ID, ADVERTISER_ID)}
    own |= {
        TIMESTAMP: impressions[TIMESTAMP],
        LABEL: impressions[LABEL],
        "split": pd.Categorical(split, categories=list(SPLITS)),
        "segment_never_advertiser": never_advertiser,
        "segment_never_ad": never_ad,
    }
    frame = pd.DataFrame(own | columns.arrays, copy=False)  # a copy of so many columns is what memory peaks at
    facts = {
        "time_plan": plan.to_json(),
        "rows": {s: int((split == s).sum()) for s in SPLITS},
        "positives": {s: int(label[split == s].sum()) for s in SPLITS},
        "rows_beyond_end": beyond,
        "predictors": list(predictors),
        "services": services,
        "features": features_to_json(columns.features),
        "coverage": {p: round(1 - float(frame[f"{prior_view(p)}_missing"].mean()), 6) for p in predictors},
        "views": versions,
        # what the report says of the data and of each prior's origin
        "data": read_manifest(tables)["facts"],
        "priors": origin,
        "warnings": [finding.to_json() for finding in said],
    }
    return FrameResult(frame, said, facts)
