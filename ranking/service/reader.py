"""One user's row, or many ads' rows, from Feast's online store: the fastest read there is, and never a refusal.

`FeatureStore.get_online_features` looks views up in the registry on every call, refuses a view while it is being
materialized (feast issue 6780) and builds a response of its own. Here the views are resolved once, when the reader
opens, and the store's own ``online_read`` is called; on Redis all views of a user come by one HMGET. So a refresh, an
``apply`` or a broken registry changes nothing for a running service: it serves the last good rows.

Whether a row is in time is judged by who asks (`ranking.service.rows.in_time`): no online store enforces a TTL.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from advprior.store.arrays import Int
from advprior.store.contract import AD_ID, PRIOR_VIEW_PREFIX, USER_ID
from advprior.store.errors import AdvpriorError
from advprior.store.features import Feature
from advprior.store.times import moment_us
from ranking.frame.join import open_store
from ranking.service.redis_reader import READ_TIMEOUT_S, RedisReader, is_redis
from ranking.service.rows import Broken, Row, ServedView, ViewRow
from ranking.service.views import ViewCatalog


class OnlineReader:
    """Reads what rankers need from the online store of a repository.

    Parameters
    ----------
    repo : Path
        Feature repository, applied.
    features : mapping of str to collection of Feature
        Features of the rankers, by their feature service; a view that several services share is read once.
    tokens : bool
        Read what two towers know a user by, too.

    Attributes
    ----------
    views : dict of str to ServedView
        Views that are read.
    views_of : dict of str to list of str
        Names of a service's views among them.

    Raises
    ------
    AdvpriorError
        ``STO005`` when a service is not applied, ``SRV001`` when a view is of neither users nor ads, ``SRV006`` when
        the store's client is not installed, ``SRV008`` when its address cannot be read.
    """

    def __init__(self, repo: Path, features: Mapping[str, Collection[Feature]], *, tokens: bool = False) -> None:
        self._store = open_store(repo)
        catalog = ViewCatalog(self._store, repo, tokens=tokens)
        self.views: dict[str, ServedView] = {}
        self.views_of: dict[str, list[str]] = {}
        for service, listed in features.items():
            views = list(catalog.needed(service, listed))
            self.views_of[service] = [view.name for view in views]
            for view in views:
                other = self.views.get(view.name)
                columns = view.columns if other is None else other.columns | view.columns
                self.views[view.name] = replace(view, columns=columns)
        self._tables = catalog.tables
        self.user_views = [view.name for view in self.views.values() if view.key == USER_ID]
        self.ad_views = [view.name for view in self.views.values() if view.key == AD_ID]
        self._config = self._store.config
        self._online = _online_store(self._store, repo)
        self._lock = threading.Lock()
        self._redis = RedisReader(self._online, self._config, self._tables) if is_redis(self._online) else None
        if self._redis is None:
            self._tame_sqlite()

    def prior_views(self) -> list[str]:
        """Views of priors among those read."""
        return [name for name in self.user_views if name.startswith(PRIOR_VIEW_PREFIX)]

    def read_user(self, user_id: str) -> dict[str, Row]:
        """All views of one user; a view without a row is None, one that cannot be decoded is `Broken`.

        Raises
        ------
        Exception
            Whatever the store raises when it cannot be reached.
        """
        keys = [entity_key(USER_ID, user_id)]
        views = [self.views[name] for name in self.user_views]
        return {name: rows[0] for name, rows in self._read(views, keys).items()}

    def read_ads(self, ad_ids: Sequence[str]) -> dict[str, list[Row]]:
        """All views of some ads, row by row in their order."""
        views = [self.views[name] for name in self.ad_views]
        return self._read(views, [entity_key(AD_ID, ad) for ad in ad_ids])

    def ad_keys(self, ad_ids: Sequence[str]) -> list[bytes] | None:
        """Keys of ads in the store, for `ad_times`; None where it does not give times without the rows."""
        return None if self._redis is None else self._redis.keys([entity_key(AD_ID, ad) for ad in ad_ids])

    def ad_times(self, keys: Sequence[bytes]) -> dict[str, Int]:
        """When the rows of some ads became available, by view: microseconds, −1 where there is no row."""
        assert self._redis is not None
        return self._redis.times(self.ad_views, keys)

    def _read(self, views: Sequence[ServedView], keys: list[Any]) -> dict[str, list[Row]]:
        if self._redis is not None:
            return self._redis.read(views, keys)
        return {view.name: self._read_by_feast(view, keys) for view in views}

    def _read_by_feast(self, view: ServedView, keys: list[Any]) -> list[Row]:
        from google.protobuf.message import DecodeError

        try:
            with self._lock:  # Feast's stores hold one connection
                rows = self._online.online_read(self._config, self._tables[view.name], keys, list(view.features))
        except DecodeError as error:
            if len(keys) == 1:
                return [Broken(str(error))]
            return [row for key in keys for row in self._read_by_feast(view, [key])]
        except Exception:
            self._forget_connection()
            raise
        return [_row(when, values) for when, values in rows]

    def _forget_connection(self) -> None:
        """Open the store's file anew next time: it may have been replaced."""
        connection = getattr(self._online, "_conn", None)
        if connection is not None:
            self._online._conn = None
            connection.close()
            self._tame_sqlite()

    def _tame_sqlite(self) -> None:
        """Write-ahead logging: reads go on while a materialization commits. It stays with the file."""
        import sqlite3

        try:
            connection = self._online._get_conn(self._config)
            connection.execute(f"PRAGMA busy_timeout={int(READ_TIMEOUT_S * 1000)}")
            connection.execute("PRAGMA journal_mode=WAL")
        except (AttributeError, sqlite3.Error):  # another kind of store, or a file that does not exist yet
            return

    def ping(self) -> None:
        """Raise what a read would raise."""
        self.read_user("")


def _online_store(store: Any, repo: Path) -> Any:
    """The store's online side; Feast imports its client here."""
    from feast.errors import FeastExtrasDependencyImportError

    try:
        return store._get_provider().online_store
    except FeastExtrasDependencyImportError as error:
        raise AdvpriorError(
            "SRV006",
            "the online store's client is not installed",
            where=str(repo),
            actual=str(error).splitlines()[0],
            expected="the extra of that store",
            fix="pip install 'advprior[redis]' for Redis",
        ) from error


def entity_key(name: str, value: str) -> Any:
    """Feast's key of one user or ad."""
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    return EntityKey(join_keys=[name], entity_values=[Value(string_val=value)])


def _row(when: datetime | None, values: dict[str, Any] | None) -> Row:
    """A view's row from what ``online_read`` gives."""
    if when is None or not values:
        return None
    held = {name: value for name, value in values.items() if value.WhichOneof("val") is not None}
    return ViewRow(moment_us(when.astimezone(UTC)), held) if held else None
