"""A running service and traffic on it."""

from __future__ import annotations

import http.client
import json
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import uvicorn

from ranking.service.app import create_app, make_engine
from ranking.service.clock import Clock
from ranking.service.engine import Engine
from ranking.service.loading import RankerFolder, features_by_service
from ranking.service.reader import OnlineReader
from ranking.service.resources import EngineOptions
from ranking.service.settings import ServeSettings
from tests.ports import free_port
from tests.service.workspaces import NOW, FixedClock, Project

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # newer Starlette would rather have httpx2
    from starlette.testclient import TestClient as TestClient


#: Beyond it something hangs; a busy machine is far from it.
HANG_S = 900.0
#: Rest of a client between two requests: traffic goes on, and whoever serves it gets a turn.
_PACE_S = 0.005


def settings_of(project: Project, **changed: Any) -> ServeSettings:
    base = {
        "repo": project.repo,
        "ranker": project.ranker,
        "fallback": project.plain,
        "api_key": False,
        "compile": False,
        "refresh_s": 0.2,
    }
    return ServeSettings.model_validate(base | changed)


def engine_for(project: Project, **options: Any) -> Engine:
    """An engine on a project's rankers; no ad is read yet."""
    return Engine(EngineOptions(project.repo, project.ranker, project.plain, **options))


def engine_at(project: Project, moment: datetime = NOW, **options: Any) -> Engine:
    """An engine that has read its ads, at a moment that stands still."""
    engine = engine_for(project, clock=FixedClock(moment), **options)
    engine.resources.refresh_ads()
    return engine


def reader_of(project: Project) -> OnlineReader:
    """What the ranker with priors reads of the store."""
    return OnlineReader(project.repo, features_by_service([RankerFolder.read(project.ranker)]))


def post(port: int, body: Any, path: str = "/rank", headers: dict[str, str] | None = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HANG_S)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, data, {"content-type": "application/json", **(headers or {})})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HANG_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


@dataclass
class Live:
    """A service on a port of this machine."""

    port: int
    engine: Engine


@contextmanager
def live(project: Project, clock: Clock | None = None, **changed: Any) -> Iterator[Live]:
    """Serve a project over real HTTP, in a thread."""
    settings = settings_of(project, **changed)
    engine = make_engine(settings, clock or FixedClock(NOW))
    port = free_port()
    config = uvicorn.Config(create_app(settings, engine), port=port, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield Live(port, engine)
    finally:
        server.should_exit = True
        thread.join(HANG_S)
        assert not thread.is_alive()


def until(condition: Any) -> None:
    """Wait for something to become true; only a hang ends it otherwise."""
    end = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


@dataclass
class Traffic:
    """What came back while traffic ran."""

    answers: list[dict[str, Any]] = field(default_factory=list)
    failures: list[Any] = field(default_factory=list)

    def reasons(self, since: int = 0) -> set[str]:
        return {reason for answer in self.answers[since:] for reason in answer["degraded"]}

    def await_answers(self, count: int = 10) -> int:
        """Wait for so many more answers; where they begin."""
        begin = len(self.answers)
        until(lambda: len(self.answers) >= begin + count or self.failures)
        return begin


@contextmanager
def traffic(port: int, bodies: list[dict[str, Any]], threads: int = 2) -> Iterator[Traffic]:
    """Requests one after another from several threads, until the block ends."""
    found, stop = Traffic(), threading.Event()

    def run(offset: int) -> None:
        at = offset
        while not stop.is_set():
            try:
                status, answer = post(port, bodies[at % len(bodies)])
                (found.answers if status == 200 else found.failures).append(answer)
            except Exception as error:
                found.failures.append(repr(error))
            at += 1
            time.sleep(_PACE_S)

    workers = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield found
    finally:
        stop.set()
        for worker in workers:
            worker.join(HANG_S)
