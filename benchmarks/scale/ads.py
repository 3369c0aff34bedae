"""Ads of the service, refreshed by what changed: ``python -m benchmarks.scale.ads --ads 1000000``.

Rows of so many ads lie in a Redis of its own, as Feast writes them. They are read whole once, as at the start of the
service, then looked at twice: nothing changed, and one ad in a hundred. CPU is that of the reading process.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from benchmarks.scale.rows import Rows
from benchmarks.serve_setup import redis_server
from ranking.service.ads import AdTable, read_ads, refreshed
from ranking.service.catalogs import HistoryCatalog
from ranking.service.reader import OnlineReader, entity_key
from ranking.service.redis_reader import RedisReader
from ranking.service.rows import ServedView

_FEATURES = tuple(f"stat_{i}" for i in range(12))
VIEW = ServedView(
    "ad_stats", "ad_id", 0, {name: f"ad_{name}" for name in _FEATURES}, frozenset(), frozenset(), _FEATURES
)
#: A refresh every minute may take so much of one core; a look at unchanged ads may cost so much of a whole reading.
SECONDS, SHARE = 30.0, 0.5


def reader_on(port: int) -> OnlineReader:
    """What reads the ads, without a repository behind it."""
    from feast import RepoConfig
    from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig

    settings = RedisOnlineStoreConfig(connection_string=f"localhost:{port},socket_timeout=60")
    config = RepoConfig(
        project="ads", provider="local", registry="unused.db", online_store=settings, entity_key_serialization_version=3
    )
    table = SimpleNamespace(name=VIEW.name, projection=None, current_version_number=None)
    reader: Any = OnlineReader.__new__(OnlineReader)
    reader.views, reader.ad_views, reader.user_views = {VIEW.name: VIEW}, [VIEW.name], []
    reader._redis = RedisReader(RedisOnlineStore(), config, {VIEW.name: table})
    return cast(OnlineReader, reader)


def write(reader: OnlineReader, ads: list[str], seconds: int) -> None:
    """Rows of some ads, of one moment."""
    from feast.protos.feast.types.Value_pb2 import Value
    from google.protobuf.timestamp_pb2 import Timestamp

    redis = cast(RedisReader, reader._redis)
    fields = redis._fields_of(VIEW)
    when = Timestamp(seconds=seconds).SerializeToString()
    values = [Value(double_val=i + seconds).SerializeToString() for i in range(len(_FEATURES))]
    row = dict(zip(fields, [*values, when], strict=True))
    for start in range(0, len(ads), 1000):
        keys = [entity_key("ad_id", ad) for ad in ads[start : start + 1000]]
        with redis._client.pipeline(transaction=False) as pipe:
            for key in redis.keys(keys):
                pipe.hset(key, mapping=row)
            pipe.execute()


def timed(rows: Rows, what: str, read: Any) -> tuple[AdTable, float]:
    begin, used = time.perf_counter(), time.process_time()
    table = read()
    used = time.process_time() - used
    rows.note(f"{what}: CPU-seconds, seconds", f"{used:.1f}, {time.perf_counter() - begin:.1f}")
    return table, used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ads", type=int, default=1_000_000)
    options = parser.parse_args()
    rows = Rows("ads")
    ads = [f"ad{i:07d}" for i in range(options.ads)]
    numbers = {name: np.arange(len(ads)) for name in ("ad", "advertiser", "category")}
    catalog = HistoryCatalog("v", ads, [f"a{i % 1000}" for i in range(len(ads))], ["c"] * len(ads), numbers, {})
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as port:
        assert port is not None, "no redis-server"
        reader = reader_on(port)
        write(reader, ads, 1000)
        table, whole = timed(rows, f"{len(ads):,} ads, all read", lambda: read_ads(reader, catalog, 1))
        same, look = timed(rows, "nothing changed", lambda: refreshed(table, reader, catalog, 2))
        assert same.values is table.values
        changed = ads[::100]
        write(reader, changed, 2000)
        new, some = timed(rows, "one in a hundred changed", lambda: refreshed(same, reader, catalog, 3))
        moved = new.available_us[VIEW.name] != same.available_us[VIEW.name]
        rows.at_least("changed ads taken in", int(moved.sum()), len(changed))
    rows.at_most("a look at unchanged ads / reading all", look / whole, SHARE)
    rows.at_most("one in a hundred changed", some, SECONDS, "CPU-s")
    sys.exit(rows.exit_code)


if __name__ == "__main__":
    main()
