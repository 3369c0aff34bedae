"""Every Feast object, in one file: `feast apply` imports each .py here, and twice defined is twice registered.

A view is defined once its folder is published under ``data/``, so that `feast apply` and `feast materialize`
work at any stage of a project: what is not there yet is left out. Apply again after publishing a new
view. Nothing here knows a data set: columns come from the published files.
"""

import json
import sys
import warnings
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Array, Bool, Float32, Float64, Int32, Int64, String, UnixTimestamp

from advprior.store.contract import (
    AD_ID,
    AD_STATS_VIEW,
    BASELINE_SERVICE,
    CATALOG_VERSION,
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    INTEREST_LOG_PROBS,
    INTEREST_TOP_INDEX,
    INTEREST_TOP_LOG_PROBS,
    LLM,
    LOG_PROBS,
    MODEL_CUTOFF,
    NEIGHBOURS,
    PLACEBO,
    POPULARITY,
    PRIOR_ROW,
    PRIOR_VIEW_PREFIX,
    SNAPSHOT,
    TABLE_FILE,
    TAIL_LOG_MASS,
    TOP_INDEX,
    USER_HISTORY_VIEW,
    USER_ID,
    USER_PROFILE_VIEW,
    prior_service,
    prior_view,
)
from advprior.store.offline import SPARK, STORE_FILE, check_spark, offline_kind, store_config
from advprior.store.runs import MANIFEST

# Absolute, because Feast's duckdb store resolves a relative path against the working directory, and only
# `apply` changes into the repository. After moving the folder, apply again; of a *copy*, delete data/registry.db
# first: it still names the original's online store, and `apply` would drop that one's tables.
DATA = Path(__file__).resolve().parent / "data"

_STORE = store_config(DATA.parent)
_ON_SPARK = offline_kind(_STORE) == SPARK
if _ON_SPARK:
    check_spark(_STORE, DATA.parent / STORE_FILE)

# The cost of the point-in-time join grows with the snapshots inside the TTL. Two distances of snapshots hold the newest
# one and one before it, so that a single missed refresh costs freshness, not coverage.
SNAPSHOTS_IN_TTL = 2
WEEK = timedelta(days=7)
# A profile is one row per user, known from the start of the data: it never expires (0 = no limit).
PROFILE_TTL = timedelta(0)

_DTYPES = {
    pa.string(): String,
    pa.large_string(): String,
    pa.bool_(): Bool,
    pa.int8(): Int32,
    pa.int16(): Int32,
    pa.int32(): Int32,
    pa.int64(): Int64,
    pa.float32(): Float32,
    pa.float64(): Float64,
}


def _dtype(kind: Any) -> Any:
    """Feast type of an Arrow type."""
    if pa.types.is_timestamp(kind):
        return UnixTimestamp
    if pa.types.is_dictionary(kind):
        return _dtype(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return Array(_dtype(kind.value_type))
    return _DTYPES[kind]


def _published(name: str) -> bool:
    return (DATA / name / TABLE_FILE).is_file()


def _facts(name: str) -> dict[str, Any]:
    """What the publication says of itself."""
    path = DATA / name / MANIFEST
    return dict(json.loads(path.read_text()).get("facts", {})) if path.is_file() else {}


def _ttl() -> timedelta:
    """How long a row of a snapshot is used: by the distance of snapshots that the published history states.

    A history of one snapshot, such as a refresh publishes, has no distance to measure.
    """
    facts = _facts(USER_HISTORY_VIEW)
    if "snapshot_every_s" in facts:
        return SNAPSHOTS_IN_TTL * timedelta(seconds=float(facts["snapshot_every_s"]))
    times = [datetime.fromisoformat(time) for time in facts.get("snapshots", [])]
    return SNAPSHOTS_IN_TTL * (times[1] - times[0] if len(times) > 1 else WEEK)


def _source(name: str) -> Any:
    """A published table, as the offline store of feature_store.yaml reads it."""
    path = str(DATA / name / TABLE_FILE)
    columns = {"timestamp_field": EVENT_TIMESTAMP, "created_timestamp_column": CREATED_TIMESTAMP}
    if not _ON_SPARK:
        return FileSource(name=f"{name}_table", path=path, **columns)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # Feast calls the source experimental, once a view
        from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource

        # with its scheme: a cluster's default file system is another one
        return SparkSource(name=f"{name}_table", path=f"file://{path}", file_format="parquet", **columns)


def _view(name: str, entity: Entity, ttl: timedelta, description: str, schema: list[Field] | None = None) -> Any:
    """A view over a published table; its columns are read from the file unless a schema is given."""
    if not _published(name):
        return None
    if schema is None:
        keys = {entity.join_key, EVENT_TIMESTAMP, CREATED_TIMESTAMP}
        columns = pq.read_schema(DATA / name / TABLE_FILE)
        schema = [Field(name=c.name, dtype=_dtype(c.type)) for c in columns if c.name not in keys]
    return FeatureView(
        name=name,
        entities=[entity],
        ttl=ttl,
        schema=schema,
        source=_source(name),
        # `advprior publish --offline` says so of what is measured only; it is neither materialized nor served
        online=bool(_facts(name).get("online", True)),
        description=description,
    )


def _prior(predictor: str) -> Any:
    """The priors of one predictor: the vector for serving, scalars, and the pointer that training gathers by."""
    schema = [
        Field(name=LOG_PROBS, dtype=Array(Float32), description="log P(advertiser | history), in catalog order"),
        Field(name="entropy", dtype=Float32, description="of the distribution, in nats"),
        Field(name="top1_index", dtype=Int64, description="index of the likeliest advertiser"),
        Field(name="top1_log_prob", dtype=Float32),
        Field(name=PRIOR_ROW, dtype=Int64, description="row of the published log-probability matrix"),
        Field(name=SNAPSHOT, dtype=UnixTimestamp, description="events strictly before it were seen"),
        Field(name=MODEL_CUTOFF, dtype=UnixTimestamp, description="no later label trained the model"),
        Field(name=CATALOG_VERSION, dtype=String, description="a vector without its catalog means nothing"),
    ]
    schema += _interests(prior_view(predictor))
    name = prior_view(predictor)
    if _published(name) and TOP_INDEX in pq.read_schema(DATA / name / TABLE_FILE).names:
        schema += [
            Field(name=TOP_INDEX, dtype=Array(Int64), description="whose log-probabilities the vector holds"),
            Field(name=TAIL_LOG_MASS, dtype=Float32, description="log of the share of all others, spread evenly"),
        ]
    return _view(prior_view(predictor), user, SNAPSHOT_TTL, f"Advertiser priors by `{predictor}`", schema)


def _interests(name: str) -> list[Field]:
    """Interests beside priors, where the predictor behind the view has them."""
    if not _published(name) or INTEREST_LOG_PROBS not in pq.read_schema(DATA / name / TABLE_FILE).names:
        return []
    return [
        Field(name=INTEREST_LOG_PROBS, dtype=Array(Float32), description="log P(category | history), in their order"),
        Field(name=INTEREST_TOP_INDEX, dtype=Array(Int64), description="the five likeliest categories, best first"),
        Field(name=INTEREST_TOP_LOG_PROBS, dtype=Array(Float32), description="their log-probabilities"),
    ]


def _service(name: str, views: list[Any], description: str) -> Any:
    """A service, once all of its views are there. Names carry a version: applying one again overwrites it."""
    if any(view is None for view in views):
        return None
    return FeatureService(name=name, features=views, description=description)


SNAPSHOT_TTL = _ttl()

user = Entity(name="user", join_keys=[USER_ID], value_type=ValueType.STRING)
ad = Entity(name="ad", join_keys=[AD_ID], value_type=ValueType.STRING)

user_profile = _view(USER_PROFILE_VIEW, user, PROFILE_TTL, "What a user says of themselves")
user_history = _view(USER_HISTORY_VIEW, user, SNAPSHOT_TTL, "Activity, and the pointer to a user's own counts")
ad_stats = _view(AD_STATS_VIEW, ad, SNAPSHOT_TTL, "Popularity of an ad, its advertiser and its category")
prior_llm = _prior(LLM)
prior_popularity = _prior(POPULARITY)
prior_neighbours = _prior(NEIGHBOURS)
prior_placebo = _prior(PLACEBO)

# A view of your own, of users or ads, belongs into this list: then it reaches every ranker, and is served.
_BASELINE = [user_profile, user_history, ad_stats]
ranker_baseline_v1 = _service(BASELINE_SERVICE, _BASELINE, "History, popularity, profile: what a prior must beat")
ranker_with_priors_v1 = _service(prior_service(LLM), [*_BASELINE, prior_llm], "The baseline and the LLM's priors")
# Controls: the same baseline with somebody else's priors, on the same path.
ranker_with_popularity_v1 = _service(prior_service(POPULARITY), [*_BASELINE, prior_popularity], "Control: popularity")
ranker_with_neighbours_v1 = _service(
    prior_service(NEIGHBOURS), [*_BASELINE, prior_neighbours], "Control: nearest neighbours"
)
ranker_with_placebo_v1 = _service(
    prior_service(PLACEBO), [*_BASELINE, prior_placebo], "Control: shuffled between users"
)

# Whoever else predicts: a view and a service for each further prior that is published, under the same rules.
_NAMED = {prior_view(name) for name in (LLM, POPULARITY, NEIGHBOURS, PLACEBO)}
for _folder in sorted(DATA.glob(f"{PRIOR_VIEW_PREFIX}*")):
    if _folder.name not in _NAMED and _published(_folder.name):
        _other = _folder.name.removeprefix(PRIOR_VIEW_PREFIX)
        globals()[_folder.name] = _prior(_other)
        globals()[prior_service(_other)] = _service(
            prior_service(_other), [*_BASELINE, globals()[_folder.name]], f"The baseline and priors by `{_other}`"
        )

# Priors that nobody published were not asked for; but without the baseline's views no service can be.
_absent = [name for name in (USER_PROFILE_VIEW, USER_HISTORY_VIEW, AD_STATS_VIEW) if not _published(name)]
if _absent:
    print(f"not published yet, so no service is there: {', '.join(_absent)} (advprior rank features)", file=sys.stderr)
