"""Ads are refreshed by what changed, and are then what reading them all would have given."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from advprior.store.matrix import COMPRESSED, MatrixFile, write_matrix
from advprior.store.runs import MANIFEST
from ranking.service.ads import AdTable, read_ads, refreshed
from ranking.service.memory import release_freed
from ranking.service.reader import OnlineReader, entity_key
from ranking.service.redis_reader import RedisReader
from tests.service.live import engine_at
from tests.service.workspaces import Project


@pytest.fixture
def store(redis_project: Project) -> Iterator[RedisReader]:
    """The ads in Redis, that may be changed: afterwards they are what they were."""
    resources = engine_at(redis_project).resources
    reader = resources.reader._redis
    assert reader is not None
    names = reader.keys([entity_key("ad_id", ad) for ad in resources.table.ids])
    hashes = {name: reader._client.hgetall(name) for name in names}
    yield reader
    for name, fields in hashes.items():
        reader._client.delete(name)
        reader._client.hset(name, mapping=fields)


def assert_equal(one: AdTable, other: AdTable) -> None:
    assert one.ids == other.ids
    for name, values in other.values.items():
        np.testing.assert_array_equal(one.values[name], values, err_msg=name)
    for name, moments in other.available_us.items():
        np.testing.assert_array_equal(one.available_us[name], moments)


def test_only_changed_ads_are_read_and_the_table_is_as_if_all_were(
    redis_project: Project, store: RedisReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    from feast.protos.feast.types.Value_pb2 import Value
    from google.protobuf.timestamp_pb2 import Timestamp

    resources = engine_at(redis_project).resources
    reader, catalog, old = resources.reader, resources.catalogs.newest, resources.table
    assert catalog is not None
    read: list[str] = []
    really = OnlineReader.read_ads
    monkeypatch.setattr(OnlineReader, "read_ads", lambda self, ads: read.extend(ads) or really(self, ads))
    same = refreshed(old, reader, catalog, 5)
    assert read == []
    assert same.read_us == 5
    assert same.values is old.values  # and all that was worked out of them
    changed, gone = old.ids[3], old.ids[5]
    later = Timestamp(seconds=int(old.available_us["ad_stats"][3]) // 1_000_000 + 60).SerializeToString()
    first = reader.views["ad_stats"].features[0]
    kind = "string_val" if first in reader.views["ad_stats"].text else "double_val"
    value = Value(**{kind: "7" if kind == "string_val" else 7}).SerializeToString()
    keys = store.keys([entity_key("ad_id", ad) for ad in (changed, gone)])
    fields = store._fields_of(reader.views["ad_stats"])
    store._client.hset(keys[0], mapping={fields[0]: value, fields[-1]: later})
    store._client.hdel(keys[1], fields[-1])
    new = refreshed(old, reader, catalog, 6)
    assert read == [changed, gone]
    whole = read_ads(reader, catalog, 6)
    assert_equal(new, whole)
    assert new.available_us["ad_stats"][5] == -1
    assert old.available_us["ad_stats"][5] != -1  # a request that began with the old one goes on with it


def test_new_ads_are_read_and_the_others_taken_over(redis_project: Project) -> None:
    resources = engine_at(redis_project).resources
    reader, catalog = resources.reader, resources.catalogs.newest
    assert catalog is not None
    few = [4, 2, 9]
    less = replace(
        catalog,
        version="less",
        ads=[catalog.ads[i] for i in few],
        advertisers=[catalog.advertisers[i] for i in few],
        categories=[catalog.categories[i] for i in few],
        ids={name: ids[few] for name, ids in catalog.ids.items()},
    )
    old = read_ads(reader, less, 1)
    assert_equal(refreshed(old, reader, catalog, 2), read_ads(reader, catalog, 2))
    assert_equal(refreshed(resources.table, reader, less, 2), old)


def test_places_in_catalogs_that_are_gone_are_forgotten(redis_project: Project) -> None:
    table = engine_at(redis_project).resources.table
    table.advertiser_index("gone", ["a"])
    versions = {key[0] for key in table._by_catalog}
    table.keep_catalogs(versions - {"gone"})
    assert {key[0] for key in table._by_catalog} == versions - {"gone"}


def test_a_ranker_that_no_longer_serves_leaves_nothing_behind(redis_project: Project, tmp_path: Path) -> None:
    """Whatever is swapped in, as often as one likes, what is alive stays as much: plans, trees, files' rows."""
    project = Project(tmp_path / "project")  # rankers of its own, on the project's store
    shutil.copytree(redis_project.ranker, project.ranker)
    shutil.copytree(redis_project.plain, project.plain)
    project.repo.symlink_to(redis_project.repo)
    resources = engine_at(project).resources
    first = [weakref.ref(loaded.plan) for loaded in resources.rankers.both()]
    made = len(resources.table._made)
    for number in range(3):
        path = project.ranker / MANIFEST
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps(manifest | {"key": f"{number}"}))
        resources.refresh_rankers()
        assert resources.reloads["done"] == number + 1
        gc.collect()
        assert [plan() for plan in first] == [None, None]
        assert len(resources.table._made) == made
        first = [weakref.ref(loaded.plan) for loaded in resources.rankers.both()]


def test_of_publications_that_are_remembered_no_rows_stay_in_memory(redis_project: Project, tmp_path: Path) -> None:
    catalogs = engine_at(redis_project).resources.catalogs
    opened = []
    for by_version in catalogs.priors.values():
        for catalog in by_version.values():
            for at, published in catalog.snapshots.items():
                path = tmp_path / f"{len(opened)}.npy"
                write_matrix(path, [np.asarray(published[0].files.log_probs)])
                opened.append(matrix := MatrixFile(path.with_suffix(COMPRESSED)))
                catalog.snapshots[at] = [replace(published[0], files=replace(published[0].files, log_probs=matrix))]
                assert matrix[0].size + matrix._last[1].size > matrix[0].size
    assert opened
    catalogs.refresh(0)
    assert not any(matrix._last[1].size for matrix in opened)
    assert all(len(matrix[0]) for matrix in opened)  # and they are read again when they are asked for
    release_freed()


def test_a_service_takes_arrows_memory_from_the_system() -> None:
    """Nothing that `rank serve` imports before has loaded Arrow, which reads the setting once."""
    lines = """
import sys, ranking.cli.service, ranking.service.settings, ranking.cli.metrics_folder
from ranking.service.memory import release_freed, settle
assert "pyarrow" not in sys.modules
settle()
import pyarrow
assert pyarrow.default_memory_pool().backend_name == "system"
release_freed()
"""
    environment = {name: value for name, value in os.environ.items() if name != "ARROW_DEFAULT_MEMORY_POOL"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", lines], check=True, env=environment)
