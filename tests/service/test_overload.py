"""More requests than can be ranked: some are refused at once, the rest is answered, and so are the probes."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import subprocess
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from ranking.cli.metrics_folder import VARIABLE, metrics_folder
from ranking.service.lanes import Demand, Lane
from ranking.service.metrics import AllWorkers, forget_the_dead
from ranking.service.slate import Query, Slate
from tests.service.live import HANG_S, get, live, post, until
from tests.service.workspaces import Project


def ask(port: int, path: str = "/rank") -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HANG_S)
    body = json.dumps({"user_id": "u001"}).encode()
    connection.request("POST", path, body, {"content-type": "application/json"})
    response = connection.getresponse()
    answer = response.status, {k.lower(): v for k, v in response.headers.items()}, json.loads(response.read())
    connection.close()
    return answer


def test_what_has_no_room_is_refused_and_the_rest_answered(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    with live(project, max_waiting=3) as service, contextlib.ExitStack() as at_the_end:
        at_the_end.callback(go.set)
        rank, began = service.engine.rank, []

        def slowly(query: Query) -> Slate:
            began.append(query.explain)
            go.wait(HANG_S)
            return rank(query)

        monkeypatch.setattr(service.engine, "rank", slowly)
        answers: list[tuple[int, dict[str, str], Any]] = []
        paths = ["/rank"] * 12 + ["/rank?explain=true"]
        clients = [threading.Thread(target=lambda p=path: answers.append(ask(service.port, p))) for path in paths]
        for client in clients:
            client.start()
        until(lambda: len(answers) == 8)  # refused while the others are still being ranked
        until(lambda: len(began) == 2)
        assert {status for status, *_ in answers} == {429}
        for _, headers, body in answers:
            assert int(headers["retry-after"]) >= 1
            assert [problem["code"] for problem in body["problems"]] == ["SRV429"]
        assert sorted(began) == [False, True]  # an explanation waits for none of the others
        assert get(service.port, "/ready")[0] == 200
        page = get(service.port, "/metrics")[1]
        assert "advprior_waiting_requests 3.0" in page
        assert 'advprior_requests_total{path="/rank",status="429"} 8.0' in page
        go.set()
        for client in clients:
            client.join(HANG_S)
        assert Counter(status for status, *_ in answers) == {429: 8, 200: 5}
        assert post(service.port, {"user_id": "u001"})[0] == 200  # recovered


def test_a_burst_waits_and_under_overload_hardly_anything_does() -> None:
    clock, lane, go = [0.0], Lane("test", 1, 8), threading.Event()

    async def fill() -> list[bool]:
        calls = [asyncio.ensure_future(lane.run(go.wait, HANG_S)) for _ in range(9)]
        await asyncio.sleep(0)
        assert lane.waiting == 8  # a burst: all of it waits
        refused = [lane.refuses()]
        go.set()
        await asyncio.gather(*calls)
        demand = lane._demand = Demand(1, lambda: clock[0])
        demand.took(0.01)
        for _ in range(100):  # twice what one thread can do
            demand.came()
        refused.append(lane.refuses())  # nothing waits
        go.clear()
        calls = [asyncio.ensure_future(lane.run(go.wait, HANG_S)) for _ in range(8)]
        answers = asyncio.gather(*calls, return_exceptions=True)
        await asyncio.sleep(0)
        assert lane.waiting == 4  # half full, and more than the thread can do came
        clock[0] += 2
        refused.append(lane.refuses())
        go.set()
        statuses = [getattr(answer, "status_code", 200) for answer in await answers]
        assert statuses == [200] * 5 + [429] * 3
        return refused

    try:
        assert asyncio.run(asyncio.wait_for(fill(), HANG_S)) == [True, False, False]
    finally:
        go.set()
        lane.close()


def test_a_call_that_hung_is_not_taken_for_a_usual_one() -> None:
    demand = Demand(1, lambda: 0.0)
    for seconds in (0.002, 0.002, 30.0):
        demand.took(seconds)
    for _ in range(100):
        demand.came()
    assert 0.4 <= demand.share() < 0.6


def test_the_folder_of_metrics_goes_with_its_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    dead = subprocess.Popen(["true"])
    dead.wait()
    for owner in (dead.pid, os.getpid()):
        (tmp_path / f"advprior-metrics-{owner}-x").mkdir()
    with metrics_folder(1):
        assert VARIABLE not in os.environ
    with metrics_folder(2):
        own = Path(os.environ[VARIABLE])
        assert own.is_dir()
        assert {path.name for path in tmp_path.iterdir()} == {own.name, f"advprior-metrics-{os.getpid()}-x"}
    assert VARIABLE not in os.environ
    assert not own.exists()
    monkeypatch.setenv(VARIABLE, str(tmp_path))  # somebody else's is left alone
    with metrics_folder(2):
        assert os.environ[VARIABLE] == str(tmp_path)
    assert tmp_path.is_dir()


def test_gauges_of_dead_workers_go_and_counts_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    dead = subprocess.Popen(["true"])
    dead.wait()
    names = [f"{kind}_{pid}.db" for kind in ("gauge_livemax", "counter") for pid in (dead.pid, os.getpid())]
    for name in names:
        (tmp_path / name).touch()
    forget_the_dead()
    assert {path.name for path in tmp_path.iterdir()} == set(names) - {f"gauge_livemax_{dead.pid}.db"}


def test_metrics_of_all_workers_stand_beside_a_file_that_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a worker leaves one that has just begun, or whose disk is full."""
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    written = MmapedDict(str(tmp_path / "counter_1.db"))
    written.write_value(mmap_key("requests", "requests_total", [], [], "All."), 3.0, 0.0)
    written.close()
    (tmp_path / "counter_2.db").touch()
    assert [sample.value for metric in AllWorkers(None).collect() for sample in metric.samples] == [3.0]
