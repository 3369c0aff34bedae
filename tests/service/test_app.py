"""The service over HTTP: answers, limits, keys, metrics, and an OpenAPI that it keeps to."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from advprior.store.contract import BASELINE_SERVICE
from advprior.store.errors import AdvpriorError
from advprior.store.runs import read_manifest
from ranking.cli.service import check as check_command
from ranking.cli.service import serve as serve_command
from ranking.experiment.client import TIME_HEADER
from ranking.service.app import create_app, make_engine
from ranking.service.logs import JsonFormatter
from ranking.service.messages import ErrorResponse, RankResponse
from ranking.service.settings import KEY_VARIABLE
from tests.ports import free_port
from tests.ranking.stores import apply
from tests.service.contract import ROOMY, check_contract
from tests.service.live import TestClient, settings_of
from tests.service.workspaces import NOW, FixedClock, Project, copy_project, train

ADS = ["a00/Tea", "a03/Soap", "a05/Tea"]


@pytest.fixture(scope="module")
def client(project: Project) -> Iterator[TestClient]:
    own = settings_of(project, max_candidates=50, max_slots=20, max_body=4096)
    with TestClient(create_app(own, make_engine(own, FixedClock(NOW)))) as found:
        yield found


def test_an_answer_is_as_described(client: TestClient) -> None:
    response = client.post("/rank", json={"user_id": "u004", "slots": 2, "candidates": ADS})
    assert response.status_code == 200
    answer = RankResponse.model_validate_json(response.content, strict=True)
    assert [slot.position for slot in answer.slots] == [1, 2]
    assert answer.slots[0].score >= answer.slots[1].score
    assert {slot.ad_id for slot in answer.slots} < set(ADS)
    assert answer.user_known
    assert answer.degraded == []
    assert answer.prior is not None
    assert answer.prior.age_days == 2.0
    assert answer.request_id == response.headers["x-request-id"]


def test_the_context_of_a_candidate_is_its_own(client: TestClient) -> None:
    """Doubles count once; an ad's own context goes over the request's."""

    def scores(body: dict[str, object]) -> dict[str, float]:
        answer = client.post("/rank", json={"user_id": "u004", "slots": 20, **body}).json()
        return {slot["ad_id"]: slot["score"] for slot in answer["slots"]}

    front = scores({"candidates": [*ADS, *ADS], "context": {"context_placement": "front"}})
    back = scores({"candidates": ADS, "context": {"context_placement": "back"}})
    one = {"ad_id": ADS[0], "context": {"context_placement": "back"}}
    mixed = scores({"candidates": [one, *ADS[1:]], "context": {"context_placement": "front"}})
    assert set(front) == set(ADS)
    assert mixed == {ADS[0]: back[ADS[0]], ADS[1]: front[ADS[1]], ADS[2]: front[ADS[2]]}


def test_whole_numbers_are_the_ids_that_tables_make_of_them(client: TestClient) -> None:
    answers = [
        client.post("/rank", json={"user_id": kind(7), "candidates": [kind(1), {"ad_id": kind(2)}, kind(2)]}).json()
        for kind in (int, float, str)
    ]
    for answer in answers:
        del answer["request_id"]
    assert answers[0] == answers[1] == answers[2]
    assert (answers[0]["user_id"], answers[0]["unknown_ads"]) == ("7", ["1", "2"])


def test_an_ad_outside_the_catalog_is_ranked_last(client: TestClient) -> None:
    """Whatever the ranker gives for missing features; and named, whether or not it is returned."""
    for user in ("u004", "u011", "nobody"):
        answer = client.post("/rank", json={"user_id": user, "candidates": ["x", *ADS, "y"]}).json()
        assert {slot["ad_id"] for slot in answer["slots"][-2:]} == {"x", "y"} == set(answer["unknown_ads"])
        scores = [slot["score"] for slot in answer["slots"]]
        assert scores == sorted(scores, reverse=True)
    best = client.post("/rank", json={"user_id": "u004", "candidates": ["x", *ADS], "slots": 1}).json()
    assert best["slots"][0]["ad_id"] in ADS
    assert best["unknown_ads"] == ["x"]


def test_candidates_are_ranked_at_one_position(client: TestClient) -> None:
    """The first one, as the ranker's manifest says, unless the request says another; and said in the answer."""
    given: list[dict[str, Any]] = [{}, {"context": {"context_position": None}}, {"context": {"context_position": 1}}]
    given += [{"context": {"context_position": 8}}]
    answers = [client.post("/rank", json={"user_id": "u004", "candidates": ADS, **more}).json() for more in given]
    assert [answer["reference"] for answer in answers] == [{"context_position": 1.0}] * 2 + [{}] * 2
    assert answers[0]["slots"] == answers[1]["slots"] == answers[2]["slots"]


def test_without_candidates_the_service_chooses(client: TestClient) -> None:
    answer = client.post("/rank", json={"user_id": "u004"}).json()
    assert answer["candidates"] == 24
    assert len(answer["slots"]) == 10


def test_explanations_come_for_what_is_returned(client: TestClient) -> None:
    answer = client.post("/rank?explain=true", json={"user_id": "u004", "slots": 3}).json()
    for slot in answer["slots"]:
        found = slot["contributions"]
        assert found["raw_score"] == pytest.approx(found["base"] + sum(found["features"].values()), abs=1e-9)
    assert any(slot["contributions"]["prior_share"] > 0 for slot in answer["slots"])


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({}, "body.user_id"),
        ({"user_id": 7.5}, "body.user_id"),
        ({"user_id": True}, "body.user_id"),
        ({"user_id": "u", "candidates": [None]}, "body.candidates.0"),
        ({"user_id": "u", "candidates": [{"ad_id": ""}]}, "body.candidates.0"),
        ({"user_id": ""}, "body.user_id"),
        ({"user_id": "u", "slots": 0}, "body.slots"),
        ({"user_id": "u", "slots": 21}, "body.slots"),
        ({"user_id": "u", "candidates": []}, "body.candidates"),
        ({"user_id": "u", "candidates": ["a"] * 51}, "body.candidates"),
        ({"user_id": "u", "context": {"context_placment": "front"}}, "body.context.context_placment"),
        ({"user_id": "u", "no_such": 1}, "body.no_such"),
        ([1], "body"),
    ],
)
def test_bad_input_is_named(client: TestClient, body: object, where: str) -> None:
    response = client.post("/rank", json=body)
    assert response.status_code == 422
    problem = ErrorResponse.model_validate_json(response.content).problems[0]
    assert problem.where == where
    assert problem.actual
    assert problem.expected


@pytest.mark.parametrize(
    "body",
    [
        b'{"user_id": NaN}',
        b'{"user_id": "u", "slots": Infinity}',
        b'{"user_id": "u", "slots": ' + b"9" * 4000 + b"}",
        b'{"user_id": "u", "candidates": [{"ad_id": "a00/Tea", "context": {"context_position": NaN}}]}',
        b'{"user_id": "u", "context": {"context_position": 1e400}}',
        b'{"user_id": "\\ud800"}',
        b'{"user_id": "u", "\\ud800": 1}',
        b'{"user_id": "\xe9"}',
        b"[" * 4000,
        b'{"user_id": "u", "candidates": ' + b"[" * 1500 + b"]" * 1500 + b"}",
        b"null",
        b"",
    ],
)
def test_no_body_is_a_failure_of_the_service(client: TestClient, body: bytes) -> None:
    response = client.post("/rank", content=body, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)
    problem = ErrorResponse.model_validate_json(response.content).problems[0]
    assert problem.code in ("SRV400", "SRV422")


def test_oversize_is_refused_whether_or_not_it_is_declared(client: TestClient) -> None:
    big = json.dumps({"user_id": "u", "candidates": ["a" * 200] * 50}).encode()
    assert client.post("/rank", content=big).status_code == 413
    streamed = client.post("/rank", content=iter([big[:3000], big[3000:]]))
    assert streamed.status_code == 413
    assert ErrorResponse.model_validate_json(streamed.content).problems[0].what.endswith("at most 4096 bytes")


def test_errors_have_one_form_and_ids_go_through(client: TestClient) -> None:
    missing = client.get("/no/such", headers={"x-request-id": "mine-1"})
    assert missing.status_code == 404
    assert missing.json()["request_id"] == missing.headers["x-request-id"] == "mine-1"
    assert client.get("/health", headers={"x-request-id": "no spaces allowed"}).headers["x-request-id"] != "no spaces"
    assert client.get("/rank").status_code == 405
    assert client.post("/rank", content=b"{").status_code == 422


def test_metrics_count_what_happened(client: TestClient) -> None:
    def value(name: str) -> float:
        lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(name)]
        return float(lines[0].rsplit(" ", 1)[1]) if lines else 0.0

    names = {
        'advprior_degradations_total{reason="prior_missing"}': 1,
        'advprior_prior_requests_total{prior="used"}': 2,
        'advprior_prior_requests_total{prior="missing"}': 1,
        'advprior_arm_requests_total{arm="all"}': 3,
        'advprior_rank_seconds_count{stage="predict"}': 3,
        'advprior_requests_total{path="/rank",status="422"}': 1,
    }
    before = {name: value(name) for name in names}
    for user in ("u001", "u002", "nobody"):
        client.post("/rank", json={"user_id": user})
    client.post("/rank", json={})
    assert {name: value(name) - before[name] for name in names} == names
    assert client.get("/ready").json()["ready"]


@pytest.mark.parametrize("key", ["s3cret", "schlüssel-ключ-42"])
def test_the_key_is_required(project: Project, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """As a client sends it: in UTF-8. What is in another encoding is another key, and no failure."""
    own = settings_of(project, api_key=True)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with pytest.raises(AdvpriorError, match="SRV005"):
        create_app(own)
    monkeypatch.setenv(KEY_VARIABLE, key)
    with TestClient(create_app(own, make_engine(own, FixedClock(NOW)))) as guarded:

        def status(sent: bytes | None) -> int:
            headers = {} if sent is None else {"x-api-key": sent}
            return guarded.post("/rank", json={"user_id": "u001"}, headers=headers).status_code  # type: ignore[arg-type]

        assert status(None) == 401
        assert status(key.encode()[:-1]) == 401
        assert status("café".encode("latin-1")) == 401
        assert status(key.encode()) == 200
        assert guarded.get("/health").status_code == 200


def test_logs_are_json(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="advprior.access"):
        client.post("/rank", json={"user_id": "nobody"}, headers={"x-request-id": "r-7"})
    line = json.loads(JsonFormatter().format(caplog.records[-1]))
    assert line["request_id"] == "r-7"
    assert line["degraded"] == ["prior_missing"]
    assert line["status"] == 200
    assert "nobody" not in json.dumps(line)


# -- starting ------------------------------------------------------------------------------------------------------


def changed(project: Project, folder: Path, feature: str, **to: str) -> Path:
    """A copy of the ranker with priors, one of whose features is another: the model's width stays."""
    shutil.copytree(project.ranker, folder)
    about = json.loads((folder / "ranker.json").read_text())
    next(entry for entry in about["features"] if entry["name"] == feature).update(to)
    (folder / "ranker.json").write_text(json.dumps(about))
    return folder


def test_what_a_ranker_lacks_is_left_out_and_what_a_service_lacks_is_refused(project: Project, tmp_path: Path) -> None:
    """The list of the ranker counts: the service may offer more, but not less."""
    fewer = changed(project, tmp_path / "fewer", "activity_occasions_4w", name="context_other", source="impressions")
    engine = make_engine(settings_of(project, ranker=fewer))
    assert "activity_occasions_4w" not in [column for _, _, _, column in engine.resources.rankers.priors.plan.user]
    more = changed(project, tmp_path / "more", "activity_occasions_4w", name="history_other")
    with pytest.raises(AdvpriorError, match="SRV003") as caught:
        make_engine(settings_of(project, ranker=more))
    assert "not served: history_other" in str(caught.value)
    with pytest.raises(AdvpriorError, match="SRV004"):
        make_engine(settings_of(project, ranker=project.plain))
    with pytest.raises(AdvpriorError, match="RUN001"):
        make_engine(settings_of(project, ranker=tmp_path))


def test_what_workers_would_refuse_is_refused_before_one_starts(tmp_path: Path) -> None:
    """By a process of its own: the error comes back with its code, and none of the machinery in between."""
    words = ["--repo", str(tmp_path), "--ranker", str(tmp_path), "--fallback", str(tmp_path), "--no-api-key"]
    refused = CliRunner().invoke(serve_command, [*words, "--port", str(free_port()), "--workers", "2"])
    assert isinstance(refused.exception, AdvpriorError)
    assert refused.exception.code == "RUN001"
    assert refused.exception.where == str(tmp_path)


@pytest.mark.parametrize("address", ["${REDIS_NOT_SET}", "redis-host"])
def test_an_address_that_cannot_be_read_is_named(project: Project, tmp_path: Path, address: str) -> None:
    pytest.importorskip("redis")
    copied = copy_project(project, tmp_path / "copied")
    apply(copied.repo)
    path = copied.repo / "feature_store.yaml"
    path.write_text(
        path.read_text()
        .replace("type: sqlite", "type: redis")
        .replace("path: data/online_store.db", f"connection_string: {address}")
    )
    with pytest.raises(AdvpriorError, match="SRV008"):
        make_engine(settings_of(copied))


def test_the_preflight_says_what_is_there_and_what_is_not(project: Project, tmp_path: Path) -> None:
    options = [
        "--repo",
        str(project.repo),
        "--ranker",
        str(project.ranker),
        "--fallback",
        str(project.plain),
        "--no-api-key",
        "--no-compile",
    ]
    good = CliRunner().invoke(check_command, [*options, "--clock-start", NOW.isoformat()])
    assert good.exit_code == 0, good.output
    assert "priors of 50 of 50 users, 2.0 to 2.0 days old" in good.output
    late = CliRunner().invoke(check_command, [*options, "--clock-start", "2025-06-01T00:00:00Z"])
    assert late.exit_code == 3, late.output  # all is there, at another time: materializing again changes nothing
    (fix,) = re.findall(r"--clock-start (\S+)", late.output)
    assert "all of them are stale" in late.output
    assert "feast" not in late.output
    cured = CliRunner().invoke(check_command, [*options, "--clock-start", fix])
    assert cured.exit_code == 0, cured.output
    other = CliRunner().invoke(check_command, [*options, "--fallback", str(project.ranker)])
    assert isinstance(other.exception, AdvpriorError)


def test_compiled_trees_score_as_lightgbm_does(project: Project, tmp_path: Path) -> None:
    pytest.importorskip("lleaves")
    from ranking.models.ranker import Ranker
    from ranking.service.predictor import PARITY, Predictor

    ranker = Ranker.load(project.ranker)
    compiled = Predictor(ranker, project.ranker, tmp_path)
    assert compiled.kind == "lleaves"
    matrix = ranker.encoder.encode(project.frame.tail(500))
    assert abs(compiled.scores(matrix) - Predictor(ranker, project.ranker).scores(matrix)).max() <= PARITY
    kept = list(tmp_path.glob("*.o"))
    again = Predictor(ranker, project.ranker, tmp_path)
    assert again.kind == "lleaves"
    assert list(tmp_path.glob("*")) == kept
    train(project, tmp_path / "other", BASELINE_SERVICE, seed=3)
    assert read_manifest(tmp_path / "other")["facts"]["service"] == BASELINE_SERVICE


def test_compiled_trees_of_rankers_long_gone_are_removed(tmp_path: Path) -> None:
    """A new ranker a week: those used last stay, and what is not ours is left alone."""
    from ranking.service.predictor import forget_unused

    for age in range(12):
        path = tmp_path / f"trees-{age:02d}.o"
        path.write_bytes(b"")
        os.utime(path, (1000 - age, 1000 - age))
    (tmp_path / "encodings").mkdir()
    forget_unused(tmp_path, keep=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encodings", "trees-00.o", "trees-01.o", "trees-02.o"]


# -- a request's own time ------------------------------------------------------------------------------------------


def test_a_request_sets_its_time_only_where_it_may(project: Project) -> None:
    then = {TIME_HEADER: (NOW + timedelta(days=1)).isoformat()}
    body = {"user_id": "u004", "candidates": ["a00/Tea"]}

    def ages(**changed: Any) -> list[Any]:
        own = settings_of(project, **changed)
        with TestClient(create_app(own, make_engine(own, FixedClock(NOW)))) as found:
            answers = [found.post("/rank", json=body, headers=headers) for headers in ({}, then)]
            wrong = found.post("/rank", json=body, headers={TIME_HEADER: "2024-01-01T00:00:00"})
            return [
                *(a.json()["prior"]["age_days"] for a in answers),
                wrong.status_code,
                found.get("/ready").json()["clock"],
            ]

    assert ages() == [2.0, 2.0, 200, "system"]
    assert ages(clock_start=NOW) == [2.0, 2.0, 200, "set"]
    assert ages(clock_source="request") == [2.0, 3.0, 422, "request"]
    assert ages(clock_start=NOW) == [2.0, 2.0, 200, "set"]
    given = ["--repo", str(project.repo), "--ranker", str(project.ranker), "--fallback", str(project.plain)]
    open_to_all = CliRunner().invoke(serve_command, [*given, "--clock", "request", "--host", "0.0.0.0"])
    assert isinstance(open_to_all.exception, AdvpriorError)
    assert open_to_all.exception.code == "SRV013"


# -- the contract --------------------------------------------------------------------------------------------------


def test_the_openapi_is_kept_to(project: Project) -> None:
    own = settings_of(project, max_body=ROOMY)
    app = create_app(own, make_engine(own, FixedClock(NOW)))
    with TestClient(app):
        assert check_contract(app, 30) > 30
