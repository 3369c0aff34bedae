"""One small project and one Redis for all tests of the service: building them takes seconds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ranking.stores import apply
from tests.service.workspaces import (
    SNAPSHOT,
    Project,
    Redis,
    build_project,
    copy_project,
    materialize,
    on_redis,
    redis_server,
)
from tests.shared import made_once
from tests.tiny import PLAN


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy for each process, with an online store of its own: what takes long is made once for all of them."""

    def make(folder: Path) -> None:
        build_project(folder / "project", users=120)

    made = Project(made_once(tmp_path_factory, "service", make) / "project")
    own = copy_project(made, tmp_path_factory.mktemp("service") / "project")
    apply(own.repo)
    materialize(own.repo, SNAPSHOT + PLAN.lag)
    return own


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server: apt-get install redis-server")
    pytest.importorskip("redis")
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def redis_project(project: Project, redis: Redis, tmp_path_factory: pytest.TempPathFactory) -> Project:
    copied = copy_project(project, Path(tmp_path_factory.mktemp("service")) / "redis")
    on_redis(copied, redis.port)
    return copied


@pytest.fixture(params=["sqlite", "redis"])
def served(request: pytest.FixtureRequest) -> Project:
    """The project on either online store."""
    found: Project = request.getfixturevalue("project" if request.param == "sqlite" else "redis_project")
    return found
