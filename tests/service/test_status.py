"""`advprior status --serve`: how a running service is, at a terminal."""

from __future__ import annotations

import importlib.resources
import re

import pytest
from click.testing import CliRunner

from advprior.cli import cli
from advprior.pipeline.service_status import Between, Look
from tests.ports import free_port
from tests.service.live import live, post
from tests.service.workspaces import Project

ALERTS = (importlib.resources.files("ranking") / "monitor" / "alerts.yaml").read_text()


def test_a_running_service_is_shown(project: Project) -> None:
    with live(project) as service:
        url = f"http://127.0.0.1:{service.port}"
        before = Look.at_service(url)
        for _ in range(3):
            post(service.port, {"user_id": "u001"})
        result = CliRunner().invoke(cli, ["status", "--serve", url])
        between = Between(Look.at_service(url), before)
    assert result.exit_code == 0, result.output
    assert re.search(r"ready  version \d", result.output)
    assert "3 × 200" in result.output
    assert "24 ads" in result.output
    assert between.count("advprior_requests_total", path="/rank") == 3
    assert 0 < between.quantile(0.5, "advprior_rank_seconds", stage="total") < 60
    assert "AdvpriorErrors" not in between.alerts()


def test_where_nothing_answers_the_address_is_named() -> None:
    result = CliRunner().invoke(cli, ["status", "--serve", f"http://127.0.0.1:{free_port()}"])
    assert result.exit_code != 0
    assert getattr(result.exception, "code", None) == "SRV023"


BAD = {
    "AdvpriorSlow": {'advprior_rank_seconds_bucket{stage="total",le="0.025"}': 0, '…{stage="total",le="+Inf"}': 9},
    "AdvpriorErrors": {'advprior_requests_total{path="/rank",status="500"}': 1},
    "AdvpriorStoreUnavailable": {'advprior_degradations_total{reason="store_unavailable"}': 1},
    "AdvpriorPriorsMissing": {'advprior_prior_requests_total{prior="missing"}': 1},
    "AdvpriorPriorsOld": {
        'advprior_prior_age_days_bucket{le="10"}': 0,
        'advprior_prior_age_days_bucket{le="14"}': 5,
        'advprior_prior_age_days_bucket{le="+Inf"}': 5,
        "advprior_prior_limit_days": 14,
    },
    "AdvpriorAdsOld": {"advprior_ads_age_seconds": 901},
    "AdvpriorExposuresLost": {'advprior_exposures_total{result="failed"}': 1},
    "AdvpriorRankerRefused": {"advprior_ranker_refused": 1},
    "AdvpriorOverloaded": {'advprior_requests_total{path="/rank",status="429"}': 1},
}


def look(metrics: dict[str, float], at: float = 0.0) -> Look:
    samples = {}
    for text, value in metrics.items():
        name, _, labels = text.replace("…", "advprior_rank_seconds_bucket").rstrip("}").partition("{")
        samples[name, tuple(sorted(re.findall(r'(\w+)="([^"]*)"', labels)))] = float(value)
    return Look({"ready": True}, samples, at)


@pytest.mark.parametrize("alert", re.findall(r"alert: (\w+)", ALERTS))
def test_every_alert_shows_and_clears(alert: str) -> None:
    bad = look(BAD[alert])
    assert list(Between(bad).alerts()) == [alert]
    if any("_total" in name or "_bucket" in name for name in BAD[alert]):  # what is past is past
        assert alert not in Between(look(BAD[alert], 2.0), bad).alerts()


def test_a_service_that_began_anew_counts_from_nothing() -> None:
    many, few = (look({'advprior_requests_total{path="/rank",status="200"}': n}) for n in (50, 4))
    assert Between(few, many).count("advprior_requests_total") == 4
