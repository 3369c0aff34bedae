"""One user's row, or many ads' rows, from Feast's online store: the fastest read there is, and never a refusal.

`FeatureStore.get_online_features` looks views up in the registry on every call, refuses a view while it is being
materialized (feast issue 6780) and builds a response of its own. Here the views are resolved once, when the reader
opens, and the store's own ``online_read`` is called; on Redis all views of a user come by one HMGET. So a refresh, an
``apply`` or a broken registry changes nothing for a running service: it serves the last good rows.

The store says when a row became available; whether that is in time is judged by who asks (`ranking.service.features`):
no online store enforces a TTL.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from advprior.store.contract import (
    AD_ID,
    INTEREST_TOP_INDEX,
    INTEREST_TOP_LOG_PROBS,
    PRIOR_ROW,
    PRIOR_VIEW_PREFIX,
    SNAPSHOT,
    USER_ID,
)
from advprior.store.errors import AdvpriorError
from ranking.frame.counts import moment_us
from ranking.frame.history import LEVELS, token_column
from ranking.frame.join import open_store, scalar_refs
from ranking.frame.views import NOT_JOINED as _NOT_JOINED
from ranking.frame.views import POINTERS as _POINTERS
from ranking.frame.views import column_name

#: Seconds that a read may take before the store counts as dead.
READ_TIMEOUT_S = 0.25
#: A machine's clock may be behind the one that wrote a row by so much.
SKEW_US = 300 * 1_000_000


#: In the row for others to read: the ranker has the whole vector.
_UNREAD = (INTEREST_TOP_INDEX, INTEREST_TOP_LOG_PROBS)


@dataclass(frozen=True)
class ViewRow:
    """One entity's row of one view.

    Attributes
    ----------
    available_us : int
        When the row became available (its ``event_timestamp``), microseconds since 1970.
    values : dict of feature name to Feast's value message
        A feature that the row does not hold is absent.
    """

    available_us: int
    values: dict[str, Any]

    def number(self, name: str) -> float | None:
        """A numeric value; None when it is not there."""
        value = self.values.get(name)
        kind = None if value is None else value.WhichOneof("val")
        found = None if kind is None else getattr(value, kind)
        return float(found) if isinstance(found, int | float) else None  # a row may be corrupt

    def text(self, name: str) -> str | None:
        """A text value; None when it is not there."""
        value = self.values.get(name)
        return value.string_val if value is not None and value.WhichOneof("val") == "string_val" else None

    def time_us(self, name: str) -> int | None:
        """A time, in microseconds since 1970 (the store keeps whole seconds)."""
        value = self.values.get(name)
        if value is None or value.WhichOneof("val") != "unix_timestamp_val":
            return None
        return int(value.unix_timestamp_val) * 1_000_000


@dataclass(frozen=True)
class Broken:
    """A row that is there but cannot be decoded."""

    why: str


Row = ViewRow | Broken | None


@dataclass(frozen=True)
class ServedView:
    """A view that the services read.

    Attributes
    ----------
    name : str
    key : str
        ``user_id`` or ``ad_id``.
    ttl_us : int
        0: its rows never expire.
    columns : dict[str, str]
        Scalar feature to the frame's column, for those that are the ranker's features.
    text, times : frozenset of str
        Features that are text, and those that are moments: the ranker takes a moment as days of age.
    features : tuple of str
        Everything that is read, lists too.
    """

    name: str
    key: str
    ttl_us: int
    columns: dict[str, str]
    text: frozenset[str]
    times: frozenset[str]
    features: tuple[str, ...]


def in_time(available_us: int, view: ServedView, now_us: int) -> str | None:
    """None when the point-in-time join would take a row now; else ``early`` or ``stale``."""
    if available_us > now_us + SKEW_US:
        return "early"
    if view.ttl_us and available_us < now_us - view.ttl_us:
        return "stale"
    return None


class OnlineReader:
    """Reads the views of some feature services from the online store of a repository.

    Parameters
    ----------
    repo : Path
        Feature repository, applied.
    services : sequence of str
        Feature services; a view that several share is read once.
    tokens : bool
        Read what two towers know a user by, too.

    Raises
    ------
    AdvpriorError
        ``STO005`` when a service is not applied, ``SRV001`` when a view is of neither users nor ads, ``SRV006`` when
        the store's client is not installed, ``SRV008`` when its address cannot be read.
    """

    def __init__(self, repo: Path, services: Sequence[str], *, tokens: bool = False) -> None:
        self._store = open_store(repo)
        self._unread = _UNREAD if tokens else (*_UNREAD, *map(token_column, LEVELS))
        self.services = list(services)
        self.columns_of: dict[str, list[str]] = {}
        self.views: dict[str, ServedView] = {}
        self._tables: dict[str, Any] = {}
        self._lock = threading.Lock()
        for service in self.services:
            refs, _ = scalar_refs(self._store, [service], repo)
            chosen: dict[str, dict[str, str]] = {}
            for ref in refs:
                view, feature = ref.split(":")
                if feature not in _POINTERS:
                    chosen.setdefault(view, {})[feature] = column_name(view, feature)
            names = [p.name for p in self._store.get_feature_service(service).feature_view_projections]
            for name in names:
                self._add(name, chosen.get(name, {}), repo)
            self.columns_of[service] = [column for columns in chosen.values() for column in columns.values()]
        self.user_views = [view.name for view in self.views.values() if view.key == USER_ID]
        self.ad_views = [view.name for view in self.views.values() if view.key == AD_ID]
        self._config = self._store.config
        self._online = _online_store(self._store, repo)
        self._redis = _RedisReader(self._online, self._config, self._tables) if _is_redis(self._online) else None
        if self._redis is None:
            self._tame_sqlite()

    def _add(self, name: str, columns: dict[str, str], repo: Path) -> None:
        view = self._store.get_feature_view(name)
        keys = [column.name for column in view.entity_columns]
        if keys not in ([USER_ID], [AD_ID]):
            raise AdvpriorError(
                "SRV001",
                "a view of the service cannot be served",
                where=f"{name} in {repo}",
                actual=f"keys {', '.join(keys)}",
                expected=f"{USER_ID} or {AD_ID}",
                fix="leave the view out of the service, or key it by user or by ad",
            )
        kinds = {field.name: str(field.dtype) for field in view.features}
        # of the pointers into files only a prior's is read: it tells which publication the row is of
        features = tuple(n for n in kinds if n not in (*_POINTERS, *_NOT_JOINED, *self._unread)) + tuple(
            n for n in kinds if n in (SNAPSHOT, PRIOR_ROW, *_NOT_JOINED) and not n.startswith("top1_")
        )
        ttl_us = 0 if view.ttl is None else int(view.ttl.total_seconds() * 1e6)
        text = frozenset(n for n, kind in kinds.items() if kind == "String")
        times = frozenset(n for n, kind in kinds.items() if kind == "UnixTimestamp" and n in columns)
        if times and keys == [AD_ID]:
            raise AdvpriorError(
                "SRV001",
                "a view of the service cannot be served",
                where=f"{name} in {repo}",
                actual=f"moments of ads: {', '.join(sorted(times))}",
                expected="numbers and text",
                fix="publish the days since that moment instead, as of the snapshot",
            )
        self.views[name] = ServedView(name, keys[0], ttl_us, columns, text, times, features)
        self._tables[name] = view

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
        keys = [_entity_key(USER_ID, user_id)]
        views = [self.views[name] for name in self.user_views]
        return {name: rows[0] for name, rows in self._read(views, keys).items()}

    def read_ads(self, ad_ids: Sequence[str]) -> dict[str, list[Row]]:
        """All views of some ads, row by row in their order."""
        views = [self.views[name] for name in self.ad_views]
        return self._read(views, [_entity_key(AD_ID, ad) for ad in ad_ids])

    def _read(self, views: Sequence[ServedView], keys: list[Any]) -> dict[str, list[Row]]:
        if self._redis is not None:
            return self._redis.read(views, keys)
        return {view.name: self._read_by_feast(view, keys) for view in views}

    def _read_by_feast(self, view: ServedView, keys: list[Any]) -> list[Row]:
        from google.protobuf.message import DecodeError

        try:
            with self._lock:  # Feast's stores hold one connection
                found = self._online.online_read(self._config, self._tables[view.name], keys, list(view.features))
        except DecodeError as error:
            if len(keys) == 1:
                return [Broken(str(error))]
            return [row for key in keys for row in self._read_by_feast(view, [key])]
        except Exception:
            self._forget_connection()
            raise
        return [_row(when, values) for when, values in found]

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
        except (AttributeError, sqlite3.Error):  # another kind of store, or a file that is not there yet
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


def _is_redis(online: Any) -> bool:
    """Whether it is Feast's plain Redis store, by redis-py."""
    if type(online).__name__ != "RedisOnlineStore":
        return False
    from feast.infra.online_stores.redis import RedisOnlineStore

    return isinstance(online, RedisOnlineStore)


def _entity_key(name: str, value: str) -> Any:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    return EntityKey(join_keys=[name], entity_values=[Value(string_val=value)])


def _row(when: datetime | None, values: dict[str, Any] | None) -> Row:
    """A view's row from what ``online_read`` gives."""
    if when is None or not values:
        return None
    held = {name: value for name, value in values.items() if value.WhichOneof("val") is not None}
    return ViewRow(moment_us(when.astimezone(UTC)), held) if held else None


class _RedisReader:
    """All views of each key by one HMGET, in the layout that Feast writes.

    Feast's own ``online_read`` makes one round trip a view. The layout is Feast's: hash per entity, field =
    murmur3 of ``view:feature``, ``_ts:view`` for the time; a test holds both to the same rows.
    """

    def __init__(self, online: Any, config: Any, tables: dict[str, Any]) -> None:
        from feast.infra.online_stores.redis import RedisClient, RedisType

        settings = config.online_store
        if settings.redis_type != RedisType.redis or settings.client == RedisClient.glide:
            raise AdvpriorError(
                "SRV002",
                "the service reads a single Redis by redis-py",
                where="feature_store.yaml",
                actual=f"redis_type {settings.redis_type}, client {settings.client}",
                expected="redis, redis-py",
                fix="put a proxy in front of a cluster, or leave redis_type and client out",
            )
        try:
            self._client = online._get_client(settings)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            # the address may hold a password: it is not repeated
            unset = "a variable that is not set" if "${" in settings.connection_string else type(error).__name__
            raise AdvpriorError(
                "SRV008",
                "the address of Redis cannot be read",
                where="connection_string in feature_store.yaml",
                actual=unset,
                expected="host:port, as in localhost:6379",
                fix="export REDIS_URL=host:port",
            ) from error
        # a dead Redis must cost milliseconds, not redis-py's patient retries; what the user set stays
        given = self._client.connection_pool.connection_kwargs
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        _, named = online._parse_connection_string(settings.connection_string)
        for name in ("socket_timeout", "socket_connect_timeout"):
            if name not in named:
                given[name] = READ_TIMEOUT_S
        given["retry"] = Retry(NoBackoff(), 1)  # once, for a pooled connection that a restart has closed
        self._online, self._config, self._tables = online, config, tables
        self._fields: dict[str, list[Any]] = {}

    def read(self, views: Sequence[ServedView], keys: Sequence[Any]) -> dict[str, list[Row]]:
        fields = [field for view in views for field in self._fields_of(view)]
        names = self._online._generate_redis_keys_for_entities(self._config, keys)
        if len(names) == 1:
            replies = [self._client.hmget(names[0], fields)]
        else:
            with self._client.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.hmget(name, fields)
                replies = pipe.execute()
        found: dict[str, list[Row]] = {view.name: [] for view in views}
        for reply in replies:
            start = 0
            for view in views:
                stop = start + len(view.features) + 1
                found[view.name].append(_parse(view.features, reply[start:stop]))
                start = stop
        return found

    def _fields_of(self, view: ServedView) -> list[Any]:
        if view.name not in self._fields:
            from feast.infra.online_stores.helpers import _mmh3
            from feast.infra.online_stores.redis import _versioned_fv_name

            stored = _versioned_fv_name(self._tables[view.name], self._config)
            self._fields[view.name] = [_mmh3(f"{stored}:{f}") for f in view.features] + [f"_ts:{stored}"]
        return self._fields[view.name]


def _parse(features: Sequence[str], reply: Sequence[bytes | None]) -> Row:
    """One view's part of a reply: values in the order of the features, then the time."""
    from feast.protos.feast.types.Value_pb2 import Value
    from google.protobuf.message import DecodeError
    from google.protobuf.timestamp_pb2 import Timestamp

    if reply[-1] is None:
        return None
    try:
        when = Timestamp.FromString(reply[-1])
        values = {}
        for name, data in zip(features, reply, strict=False):
            if data:
                value = Value.FromString(data)
                if value.WhichOneof("val") is not None:
                    values[name] = value
    except DecodeError as error:
        return Broken(str(error))
    return ViewRow(when.seconds * 1_000_000 + when.nanos // 1000, values) if values else None
