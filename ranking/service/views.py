"""Which of a Feast service's views hold what the rankers read, and under which column of theirs.

A ranker's manifest lists its features; a Feast service may offer more. Only the views that give a listed feature are
read online. A column's name is always made from its view and feature, never taken apart: so a predictor, or a view of a
user's own, may have any name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from advprior.store.contract import (
    AD_ID,
    CATALOG_VERSION,
    INTEREST_TOP_INDEX,
    INTEREST_TOP_LOG_PROBS,
    PRIOR_ROW,
    PRIOR_VIEW_PREFIX,
    SNAPSHOT,
    USER_HISTORY_VIEW,
    USER_ID,
    USER_PROFILE_VIEW,
)
from advprior.store.errors import AdvpriorError
from advprior.store.features import Feature
from ranking.frame.join import scalar_refs
from ranking.frame.streams import LEVELS, STREAMS, token_column
from ranking.frame.views import column_name, is_joined, is_ours, is_pointer
from ranking.service.priors import DERIVED
from ranking.service.rows import ServedView

#: In the row for others to read: the ranker has the whole vector.
_UNREAD = (INTEREST_TOP_INDEX, INTEREST_TOP_LOG_PROBS)
#: Read whatever the rankers take: they say who a user is, to the page, the towers and `user_known`.
_ALWAYS = (USER_PROFILE_VIEW, USER_HISTORY_VIEW)


def derived_columns(view: ServedView) -> frozenset[str]:
    """Features that are worked out from a view's rows, beside those that are read as they are.

    Of a history those of the streams whose lists its rows hold: tables without clicks publish no lists of clicks.
    """
    if view.name == USER_HISTORY_VIEW:
        levels = ((stream, level) for stream in STREAMS for level in stream.levels)
        held = ((stream, level) for stream, level in levels if set(stream.online(level)) <= set(view.features))
        return frozenset(name for stream, level in held for name in stream.features(level))
    if view.name.startswith(PRIOR_VIEW_PREFIX):
        return frozenset(f"{view.name}_{name}" for name in DERIVED)
    return frozenset()


class ViewCatalog:
    """Feature views of an applied repository, as the rankers' services offer them.

    Parameters
    ----------
    store : Feast's store
    repo : Path
        Of the store, for messages.
    tokens : bool
        Whether two towers read their tokens of a user's history.
    """

    def __init__(self, store: Any, repo: Path, *, tokens: bool) -> None:
        self._store, self._repo = store, repo
        self._unread = frozenset(_UNREAD if tokens else (*_UNREAD, *map(token_column, LEVELS)))
        self.tables: dict[str, Any] = {}

    def needed(self, service: str, features: Collection[Feature]) -> Iterator[ServedView]:
        """Views of a service that give one of the features, and those that say who a user is.

        Raises
        ------
        AdvpriorError
            ``STO005`` when the service is not applied, ``SRV001`` when a view that is needed cannot be read by user or
            by ad.
        """
        refs, _ = scalar_refs(self._store, [service], self._repo)
        columns: dict[str, dict[str, str]] = {}
        for ref in refs:
            view, feature = ref.split(":")
            if not is_pointer(view, feature):
                columns.setdefault(view, {})[feature] = column_name(view, feature)
        names, sources = {feature.name for feature in features}, {feature.source for feature in features}
        for projection in self._store.get_feature_service(service).feature_view_projections:
            view = projection.name_to_use()
            if view in sources or view in _ALWAYS:
                yield self._view(projection, columns.get(view, {}), names)

    def _view(self, projection: Any, columns: Mapping[str, str], names: Collection[str]) -> ServedView:
        """A view as it is read: all of its scalars, for another ranker of the same service may take them.

        Parameters
        ----------
        projection : Feast's projection of the view in a service
        columns : the frame's columns, by scalar feature of the view
        names : columns that the rankers read
        """
        from feast.errors import FeastObjectNotFoundException

        name = projection.name_to_use()
        try:
            view = self._store.get_feature_view(projection.name)
        except FeastObjectNotFoundException as error:
            raise self._unservable(name, "an on-demand view", "a view whose rows are stored") from error
        keys = [column.name for column in view.entity_columns]
        if keys not in ([USER_ID], [AD_ID]):
            raise self._unservable(name, f"keys {', '.join(keys)}", f"{USER_ID} or {AD_ID}")
        kinds = {field.name: str(field.dtype) for field in view.features}
        times = frozenset(feature for feature, kind in kinds.items() if kind == "UnixTimestamp" and feature in columns)
        if keys == [AD_ID]:
            if moments := sorted(feature for feature in times if columns[feature] in names):
                raise self._unservable(
                    name,
                    f"moments of ads: {', '.join(moments)}",
                    "numbers and text; publish the days since that moment instead, as of the snapshot",
                )
            columns = {feature: column for feature, column in columns.items() if feature not in times}
        features = tuple(feature for feature in kinds if self._is_read(name, feature))
        self.tables[name] = view
        return ServedView(
            name=name,
            key=keys[0],
            ttl_us=0 if view.ttl is None else int(view.ttl.total_seconds() * 1e6),
            columns=dict(columns),
            text=frozenset(feature for feature, kind in kinds.items() if kind == "String"),
            times=times,
            features=features,
        )

    def _is_read(self, view: str, feature: str) -> bool:
        """Whether a request needs a feature of a view; of pointers, those that say which publication a row is of."""
        if not is_ours(view) or feature in (SNAPSHOT, PRIOR_ROW, CATALOG_VERSION):
            return True
        return is_joined(view, feature) and not is_pointer(view, feature) and feature not in self._unread

    def _unservable(self, view: str, actual: str, expected: str) -> AdvpriorError:
        return AdvpriorError(
            "SRV001",
            "a view that the ranker reads cannot be served",
            where=f"{view} in {self._repo}",
            actual=actual,
            expected=expected,
            fix="key the view by user or by ad, or train the ranker without its features",
        )
