"""The alert rules name what the service really has; each fires when it should, and clears afterwards."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from ranking.service.app import create_app, make_engine
from tests.service.live import TestClient, settings_of
from tests.service.promql import Query, Series
from tests.service.workspaces import NOW, FixedClock, Project

FOLDER = files("ranking.monitor")
RULES = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"][0]["rules"]
BY_NAME = {rule["alert"]: rule for rule in RULES}
MINUTE, HOUR = 60, 3600


def test_every_metric_of_rules_and_dashboard_is_there(project: Project) -> None:
    own = settings_of(project)
    with TestClient(create_app(own, make_engine(own, FixedClock(NOW)))) as client:
        for user in ("u001", "nobody"):
            client.post("/rank", json={"user_id": user})
        page = client.get("/metrics").text
    samples = {line.split("{")[0].split(" ")[0] for line in page.splitlines() if not line.startswith("#")}
    # a counter with labels has no sample before it first counts: its name stands in its HELP line
    described = {line.split(" ")[2] for line in page.splitlines() if line.startswith("# TYPE")}
    wanted = {name for rule in RULES for name in re.findall(r"advprior_\w+", rule["expr"])}
    drawn = set(re.findall(r"advprior_\w+", (FOLDER / "dashboard.json").read_text()))
    assert len(wanted) >= 7
    assert wanted | drawn <= samples | described, sorted((wanted | drawn) - samples - described)
    assert wanted <= drawn  # what wakes somebody can be looked at
    for label in ('stage="total"', 'prior="missing"', 'result="failed"'):
        assert label in page
        assert any(label in rule["expr"] for rule in RULES)


def test_rules_say_what_to_do() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["action"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool")
def test_promtool_takes_the_rules() -> None:
    subprocess.run(["promtool", "check", "rules", str(FOLDER / "alerts.yaml")], check=True)


def test_the_dashboard_can_be_imported_and_its_queries_parse() -> None:
    board = json.loads((FOLDER / "dashboard.json").read_text())
    assert board["title"]
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 8
    empty = Series()
    for panel in panels:
        assert panel["title"]
        for target in panel["targets"]:
            Query(target["expr"].replace("$__rate_interval", "5m")).at(empty, 0.0)


# -- each rule on a day that was made for it: it fires in the bad hours, and in no other ------------------------------

#: What a series is at a minute, in good times and in bad.
Sample = Callable[[Series, float, bool, dict[str, float]], None]


def counted(name: str, good: dict[str, float], bad: dict[str, float], **fixed: str) -> Sample:
    """A counter by one label (``label=value``), growing by so much a minute."""

    def sample(series: Series, at: float, wrong: bool, totals: dict[str, float]) -> None:
        for pair, growth in (bad if wrong else good).items():
            totals[pair] = totals.get(pair, 0.0) + growth
            label, _, value = pair.partition("=")
            series.add(at, name, totals[pair], **{label: value}, **fixed)

    return sample


def gauged(name: str, good: float, bad: float) -> Sample:
    return lambda series, at, wrong, totals: series.add(at, name, bad if wrong else good)


def both(*samples: Sample) -> Sample:
    memory: list[dict[str, float]] = [{} for _ in samples]

    def sample(series: Series, at: float, wrong: bool, totals: dict[str, float]) -> None:
        for one, own in zip(samples, memory, strict=True):
            one(series, at, wrong, own)

    return sample


AGES = [f"le={bound}" for bound in ("7.0", "10.0", "14.0", "+Inf")]
CASES: dict[str, Sample] = {
    "AdvpriorSlow": counted(
        "advprior_rank_seconds_bucket",
        {"le=0.01": 100, "le=0.015": 100, "le=0.025": 100, "le=+Inf": 100},
        {"le=0.01": 90, "le=0.015": 95, "le=0.025": 99, "le=+Inf": 100},
        stage="total",
    ),
    "AdvpriorErrors": counted("advprior_requests_total", {"status=200": 9, "status=500": 0}, {"status=500": 1}),
    "AdvpriorStoreUnavailable": counted(
        "advprior_degradations_total", {"reason=store_unavailable": 0}, {"reason=store_unavailable": 9}
    ),
    "AdvpriorPriorsMissing": counted(
        "advprior_prior_requests_total", {"prior=used": 9, "prior=missing": 1}, {"prior=used": 5, "prior=missing": 5}
    ),
    # a refresh a week, and one that is missed: the limit is 14 days, and nothing older is ever used
    "AdvpriorPriorsOld": both(
        counted(
            "advprior_prior_age_days_bucket",
            dict(zip(AGES, (95, 100, 100, 100), strict=True)),
            dict(zip(AGES, (0, 10, 100, 100), strict=True)),
        ),
        gauged("advprior_prior_limit_days", 14, 14),
    ),
    "AdvpriorAdsOld": gauged("advprior_ads_age_seconds", 40, 1000),
    "AdvpriorExposuresLost": counted("advprior_exposures_total", {"result=failed": 0}, {"result=failed": 1}),
    "AdvpriorRankerRefused": gauged("advprior_ranker_refused", 0, 1),
    "AdvpriorOverloaded": counted(
        "advprior_requests_total",
        {"status=200": 99, "status=429": 0},
        {"status=200": 90, "status=429": 10},
        path="/rank",
    ),
}


def test_every_rule_has_its_day() -> None:
    assert set(CASES) == set(BY_NAME)


@pytest.mark.parametrize("name", BY_NAME)
def test_a_rule_fires_in_bad_hours_and_clears(name: str) -> None:
    rule, series, totals = BY_NAME[name], Series(), dict[str, float]()
    begin, end, last = 4 * HOUR, 8 * HOUR, 12 * HOUR
    for at in range(0, last, MINUTE):
        CASES[name](series, at, begin <= at < end, totals)
    query = Query(rule["expr"])
    true_since, fired = None, []
    for at in range(2 * HOUR, last, MINUTE):
        holds = bool(query.at(series, at))
        true_since = (at if true_since is None else true_since) if holds else None
        if true_since is not None and at - true_since >= seconds(rule.get("for", "0m")):
            fired.append(at)
    assert fired, "it never fires"
    assert begin <= fired[0] <= begin + 3 * HOUR
    assert fired[-1] <= end + 90 * MINUTE, "it does not clear"


def seconds(text: str) -> int:
    return int(text[:-1]) * {"m": MINUTE, "h": HOUR}[text[-1]]


# -- what the alerts read, at the service ------------------------------------------------------------------------------


def value_of(client: TestClient, name: str) -> float:
    page = client.get("/metrics").text
    return float(next(line.split(" ")[1] for line in page.splitlines() if line.startswith(f"{name} ")))


def test_a_refused_ranker_is_no_longer_refused_once_the_old_one_is_back(project: Project, tmp_path: Path) -> None:
    own = tmp_path / "ranker"
    shutil.copytree(project.ranker, own)
    settings = settings_of(project, ranker=own, refresh_s=HOUR)
    engine = make_engine(settings, FixedClock(NOW))
    with TestClient(create_app(settings, engine)) as client:
        assert value_of(client, "advprior_ranker_refused") == 0
        assert value_of(client, "advprior_prior_limit_days") == 14
        good = (own / "manifest.json").read_text()
        (own / "manifest.json").write_text("{")
        engine.resources.refresh_rankers()
        assert value_of(client, "advprior_ranker_refused") == 1
        (own / "manifest.json").write_text(good)
        engine.resources.refresh_rankers()
        assert value_of(client, "advprior_ranker_refused") == 0
