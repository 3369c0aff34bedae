"""The point-in-time join through Feast: what the services offer, and its values in the order of the impressions.

Feast joins scalars and pointers once; vectors and sparse counts are gathered by pointer afterwards
(`ranking.frame.gather`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from advprior.store.contract import AD_ID, EVENT_TIMESTAMP, IMPRESSION_ID, USER_ID
from advprior.store.duck import settle
from advprior.store.errors import AdvpriorError
from advprior.store.feast_import import light_feast_import
from advprior.store.offline import SPARK
from advprior.store.scratch import scratch_folder
from advprior.store.times import micros
from ranking.frame import checks
from ranking.frame.moments import changes
from ranking.frame.preflight import service_fix
from ranking.frame.views import is_joined, is_ours

if TYPE_CHECKING:
    from advprior.store.arrays import Int


def open_store(repo: Path) -> Any:
    """Feast's store. Importing it takes seconds: hence here."""
    with light_feast_import():
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


def find_service(store: Any, name: str, repo: Path) -> Any:
    """A feature service by name.

    Raises
    ------
    AdvpriorError
        ``STO005`` when it is not applied.
    """
    from feast.errors import FeastObjectNotFoundException

    try:
        return store.get_feature_service(name)
    except FeastObjectNotFoundException as error:
        raise AdvpriorError(
            "STO005",
            "a feature service is not applied",
            where=str(repo),
            actual=f"no service {name}",
            expected="all views of the service published, then applied",
            fix=service_fix(name, repo),
        ) from error


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
        for projection in find_service(store, name, repo).feature_view_projections:
            view = projection.name_to_use()
            for feature in projection.features:
                if isinstance(feature.dtype, PrimitiveFeastType) and is_joined(view, feature.name):
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


def views_in_no_service(store: Any, refs: Iterable[str]) -> list[str]:
    """A user's own views of users or ads that are applied, but that no joined service has."""
    joined = {ref.split(":")[0] for ref in refs}
    own = [view for view in store.list_feature_views() if not is_ours(view.name) and view.name not in joined]
    return sorted(v.name for v in own if {column.name for column in v.entity_columns} <= {USER_ID, AD_ID})


@cache
def _duckdb_for_joins() -> None:
    """Settle, once a process, what the join may take: Feast runs it on ibis' default DuckDB connection."""
    import ibis

    settle(ibis.get_backend().con, str(scratch_folder("join")))


class Joined:
    """Columns of joins in the order of the entity rows, each handed out once and let go of."""

    def __init__(self) -> None:
        self._columns: dict[str, tuple[Any, Int]] = {}

    def add(self, table: Any, order: Int) -> None:
        """Columns of one join, and the row of it that each entity row has."""
        self._columns |= {name: (table[name], order) for name in table.column_names}

    def pop(self, name: str) -> Any:
        """One column as an Arrow array, in order."""
        column, order = self._columns.pop(name)
        return column.combine_chunks().take(order)

    def pop_times(self, name: str) -> Any:
        """A column of times as datetime64[us], NaT for null."""
        return times(self.pop(name))

    def pop_pointer(self, name: str) -> Int:
        """A column of row numbers as int64, −1 for null."""
        return pointer(self.pop(name))


@dataclass(frozen=True, eq=False)
class JoinGroup:
    """References that are joined together: their views share join keys.

    Attributes
    ----------
    keys : tuple of str
        Empty for on-demand views, which have none of their own.
    refs : list of ``view:feature`` references
    edges : int array, optional
        Microseconds between which no row of these views changes (`ranking.frame.moments`); None: at any time.
    """

    keys: tuple[str, ...]
    refs: list[str]
    edges: Int | None


def join_groups(store: Any, refs: Sequence[str]) -> list[JoinGroup]:
    """What to join, for any number of calls of `join_features`."""
    from feast.errors import FeatureViewNotFoundException

    groups: dict[tuple[tuple[str, ...], bool], tuple[list[str], list[Int]]] = {}
    of_view: dict[str, list[str]] = {}
    for ref in refs:
        of_view.setdefault(ref.split(":")[0], []).append(ref)
    for name, members in of_view.items():
        keys: tuple[str, ...] = ()
        edges = None
        with suppress(FeatureViewNotFoundException):
            view = store.get_feature_view(name)
            keys, edges = tuple(sorted(column.name for column in view.entity_columns)), changes(view)
        of_group = groups.setdefault((keys, edges is not None), ([], []))
        of_group[0].extend(members)
        of_group[1].extend([] if edges is None else [edges])
    return [
        JoinGroup(keys, members, np.unique(np.concatenate(edges)) if edges else None)
        for (keys, _), (members, edges) in groups.items()
    ]


def join_features(store: Any, refs: Sequence[str] | Sequence[JoinGroup], entities: pd.DataFrame) -> Joined:
    """Point-in-time joins through Feast, put back into the order of ``entities``.

    A feature row is joined when ``event_timestamp`` and ``created_timestamp`` are not later than the entity's time
    and the row is within its view's TTL; the newest wins, and among equals the one created last. Views with the same
    join keys are joined together, for each distinct key once in every stretch of time in which their rows are the same:
    the ads of a slate share their user's row, and a user's slates of a week too where snapshots are weekly.

    Parameters
    ----------
    refs : ``view:feature`` references, or what `join_groups` made of them
    entities : pandas.DataFrame
        ``impression_id``, ``event_timestamp`` and the join keys, text or categories.

    Raises
    ------
    AdvpriorError
        ``RNK005`` when rows are lost or doubled.
    """
    import pyarrow as pa

    if store.config.offline_store.type == "duckdb":
        _duckdb_for_joins()
    groups = [one for one in refs if isinstance(one, JoinGroup)]
    result = Joined()
    result.add(pa.table({IMPRESSION_ID: entities[IMPRESSION_ID].to_numpy()}), np.arange(len(entities)))
    for group in groups or join_groups(store, [str(ref) for ref in refs]):
        columns = list(group.keys) or [str(c) for c in entities if c not in (IMPRESSION_ID, EVENT_TIMESTAMP)]
        codes, first = _distinct(entities, columns, group.edges)
        distinct = entities.iloc[first][[*columns, EVENT_TIMESTAMP]].assign(**{IMPRESSION_ID: np.arange(len(first))})
        for name in columns:
            if isinstance(distinct[name].dtype, pd.CategoricalDtype):
                distinct[name] = distinct[name].astype(distinct[name].cat.categories.dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fetch_arrow_table", DeprecationWarning)  # ibis 12 on duckdb 2
            job = store.get_historical_features(
                entity_df=distinct, features=group.refs, full_feature_names=True, filter_by_created_timestamp=True
            )
            joined = job.to_arrow()
        expected, actual = distinct[IMPRESSION_ID].to_numpy(), joined[IMPRESSION_ID].to_numpy()
        checks.enforce([checks.check_rows_kept(expected, actual)], "the point-in-time join")
        order = np.argsort(actual, kind="stable")[codes]
        result.add(joined.select([ref.replace(":", "__") for ref in group.refs]), order)
    return result


def stretches(edges: Int | None, moments: Int) -> Int:
    """Number of the stretch of time that each moment is in; without edges each moment is its own.

    >>> stretches(np.array([10, 20]), np.array([9, 10, 25])).tolist()
    [0, 1, 2]
    """
    return moments if edges is None else np.searchsorted(edges, moments, side="right").astype(np.int64)


def _distinct(entities: pd.DataFrame, columns: Sequence[str], edges: Int | None) -> tuple[Int, Int]:
    """Which distinct key and stretch of time each row asks for, and the first row of each of these."""
    codes = pd.factorize(stretches(edges, micros(entities[EVENT_TIMESTAMP])))[0].astype(np.int64)
    for name in columns:  # renumbered each time: a product of all could overflow
        values, distinct = pd.factorize(entities[name], use_na_sentinel=False)
        codes = pd.factorize(codes * len(distinct) + values)[0].astype(np.int64)
    first = np.unique(codes, return_index=True)[1]
    return codes, first


def times(column: Any) -> Any:
    """datetime64[us] of an Arrow time column, NaT for null."""
    import pyarrow as pa

    numbers = column.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    filled = numbers.fill_null(np.iinfo(np.int64).min).to_numpy(zero_copy_only=False)
    return filled.view("datetime64[us]")  # int64's minimum is NaT


def pointer(column: Any) -> Int:
    """int64 of an Arrow column, −1 for null."""
    import pyarrow as pa

    numbers: Int = column.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
    return numbers
