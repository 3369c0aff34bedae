"""All views of a user, or of an ad, by one round trip to Redis, in the layout that Feast writes.

Feast's own ``online_read`` makes one round trip a view. The layout is Feast's: a hash per entity, field = murmur3 of
``view:feature``, ``_ts:view`` for the time. A test holds both ways to the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from advprior.store.arrays import Int
from advprior.store.errors import AdvpriorError
from ranking.service.rows import Broken, Row, ServedView, ViewRow

#: Seconds that a read may take before the store counts as dead.
READ_TIMEOUT_S = 0.25


def is_redis(online: Any) -> bool:
    """Whether it is Feast's plain Redis store, by redis-py."""
    if type(online).__name__ != "RedisOnlineStore":
        return False
    from feast.infra.online_stores.redis import RedisOnlineStore

    return isinstance(online, RedisOnlineStore)


class RedisReader:
    """Reads Feast's hashes by HMGET.

    Parameters
    ----------
    online : Feast's online store
    config : Feast's repository configuration
    tables : dict of view to Feast's feature view

    Raises
    ------
    AdvpriorError
        ``SRV002`` for a cluster or another client, ``SRV008`` when the address cannot be read.
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
        pool_options = self._client.connection_pool.connection_kwargs
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        _, named = online._parse_connection_string(settings.connection_string)
        for name in ("socket_timeout", "socket_connect_timeout"):
            if name not in named:
                pool_options[name] = READ_TIMEOUT_S
        pool_options["retry"] = Retry(NoBackoff(), 1)  # once, for a pooled connection that a restart has closed
        self._online, self._config, self._tables = online, config, tables
        self._fields: dict[str, list[Any]] = {}

    def read(self, views: Sequence[ServedView], keys: Sequence[Any]) -> dict[str, list[Row]]:
        """Rows by view, in the order of the keys."""
        replies = self._hmget(self.keys(keys), [field for view in views for field in self._fields_of(view)])
        rows: dict[str, list[Row]] = {view.name: [] for view in views}
        for reply in replies:
            start = 0
            for view in views:
                stop = start + len(view.features) + 1
                rows[view.name].append(_parse(view.features, reply[start:stop]))
                start = stop
        return rows

    def keys(self, keys: Sequence[Any]) -> list[bytes]:
        """Redis' keys of Feast's."""
        names: list[bytes] = self._online._generate_redis_keys_for_entities(self._config, keys)
        return names

    def times(self, views: Sequence[str], names: Sequence[bytes]) -> dict[str, Int]:
        """When rows became available, by view: microseconds in the order of the keys, −1 where there is no row."""
        replies = self._hmget(names, [self._time_field(view) for view in views])
        return {
            view: np.array([-1 if reply[i] is None else _time_us(reply[i]) for reply in replies], dtype=np.int64)
            for i, view in enumerate(views)
        }

    def _hmget(self, names: Sequence[bytes], fields: Sequence[Any]) -> list[Any]:
        """Values of the same fields of some keys, by one round trip."""
        if len(names) == 1:
            return [self._client.hmget(names[0], fields)]
        with self._client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hmget(name, fields)
            replies: list[Any] = pipe.execute()
        return replies

    def _time_field(self, view: str) -> str:
        from feast.infra.online_stores.redis import _versioned_fv_name

        return f"_ts:{_versioned_fv_name(self._tables[view], self._config)}"

    def _fields_of(self, view: ServedView) -> list[Any]:
        if view.name not in self._fields:
            from feast.infra.online_stores.helpers import _mmh3
            from feast.infra.online_stores.redis import _versioned_fv_name

            stored = _versioned_fv_name(self._tables[view.name], self._config)
            hashes = [_mmh3(f"{stored}:{f}") for f in view.features]
            self._fields[view.name] = [*hashes, self._time_field(view.name)]
        return self._fields[view.name]


def _parse(features: Sequence[str], reply: Sequence[bytes | None]) -> Row:
    """One view's part of a reply: values in the order of the features, then the time."""
    from feast.protos.feast.types.Value_pb2 import Value
    from google.protobuf.message import DecodeError

    if reply[-1] is None:
        return None
    try:
        when = _time_us(reply[-1])
        values = {}
        for name, data in zip(features, reply, strict=False):
            if data:
                value = Value.FromString(data)
                if value.WhichOneof("val") is not None:
                    values[name] = value
    except DecodeError as error:
        return Broken(str(error))
    return ViewRow(when, values) if values else None


def _time_us(data: bytes) -> int:
    from google.protobuf.timestamp_pb2 import Timestamp

    when = Timestamp.FromString(data)
    return int(when.seconds * 1_000_000 + when.nanos // 1000)
