"""The alert rules name metrics, labels and reasons that the service really has."""

from __future__ import annotations

import re
from importlib.resources import files

import yaml

from ranking.service.app import create_app, make_engine
from tests.service.live import TestClient, settings_of
from tests.service.workspaces import NOW, FixedClock, Project

RULES = yaml.safe_load((files("ranking.monitor") / "alerts.yaml").read_text())["groups"][0]["rules"]


def test_every_metric_of_the_rules_is_there(project: Project) -> None:
    own = settings_of(project)
    with TestClient(create_app(own, make_engine(own, FixedClock(NOW)))) as client:
        for user in ("u001", "nobody"):
            client.post("/rank", json={"user_id": user})
        page = client.get("/metrics").text
    samples = {line.split("{")[0].split(" ")[0] for line in page.splitlines() if not line.startswith("#")}
    # a counter with labels has no sample before it first counts: its name stands in its HELP line
    described = {line.split(" ")[2] for line in page.splitlines() if line.startswith("# TYPE")}
    wanted = {name for rule in RULES for name in re.findall(r"advprior_\w+", rule["expr"])}
    assert len(wanted) >= 7
    assert wanted <= samples | described, sorted(wanted - samples - described)
    for label in ('stage="total"', 'prior="missing"', 'result="failed"', 'result="refused"'):
        assert label in page
        assert any(label in rule["expr"] for rule in RULES)


def test_rules_say_what_to_do() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["action"]
        assert rule["expr"].count("(") == rule["expr"].count(")")
