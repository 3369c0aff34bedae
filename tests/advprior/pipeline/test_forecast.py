"""What a step will take: by the size of the data, by this machine's speed, by its own last run."""

from __future__ import annotations

import json

import pytest

from advprior.pipeline.budget import forecast_lines
from advprior.pipeline.forecast import Forecast
from advprior.pipeline.plan import make_plan
from advprior.pipeline.settings import Project, ProjectConfig
from advprior.pipeline.steps import Cost, Stamps
from advprior.store.progress import duration
from tests.tiny import write_tiny

MILLION = {"users": 200, "advertisers": 664, "ads": 864, "events": 1_000_000, "impressions": 1_000_000}


@pytest.fixture
def project(tmp_path):
    """A project whose tables say that they hold a million rows."""
    write_tiny(tmp_path / "tables")
    manifest = tmp_path / "tables" / "manifest.json"
    written = json.loads(manifest.read_text())
    written["facts"]["rows"] = MILLION
    manifest.write_text(json.dumps(written))
    return Project(tmp_path, ProjectConfig.model_validate({"tables": {"example": "complete_journey"}}))


def step(plan, name):
    return next(step for step in plan.steps if step.name == name)


def test_costs_grow_with_the_data(project):
    plan, stamps = make_plan(project), Stamps(project.folder / "steps.json")
    before = Forecast(project, plan, stamps)
    manifest = project.folder / "tables" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("1000000", "4000000"))
    after = Forecast(project, plan, stamps)
    for name in ("finetune llm", "score llm", "rank frame", "rank ablate"):
        few, many = before.of(step(plan, name)), after.of(step(plan, name))
        assert 2 * few.seconds < many.seconds <= 4 * few.seconds, name
        assert few.memory_mb < many.memory_mb, name
    assert before.of(step(plan, "export llm")) == after.of(step(plan, "export llm"))


def test_what_a_step_took_here_is_what_it_is_expected_to_take(project):
    plan, stamps = make_plan(project), Stamps(project.folder / "steps.json")
    cost = Cost(seconds=7.0, cpu_seconds=9.0, memory_mb=300.0, disk_mb=1.0)
    stamps.put(step(plan, "finetune llm"), {}, cost)
    assert Forecast(project, plan, stamps).of(step(plan, "finetune llm")) == cost


def test_steps_that_ran_correct_the_others_for_the_machine(project):
    plan, stamps = make_plan(project), Stamps(project.folder / "steps.json")
    expected = Forecast(project, plan, stamps)
    for name in ("rank frame", "rank ablate", "rank towers"):
        stamps.put(step(plan, name), {}, Cost(seconds=2 * expected.of(step(plan, name)).seconds))
    slower = Forecast(project, plan, stamps)
    assert slower.speed == pytest.approx(2.0)
    assert slower.of(step(plan, "score llm")).seconds == pytest.approx(2 * expected.of(step(plan, "score llm")).seconds)


def test_before_the_tables_only_what_is_fixed_is_foreseen(tmp_path):
    project = Project(tmp_path, ProjectConfig.model_validate({"tables": {"example": "complete_journey"}}))
    plan = make_plan(project)
    forecast = Forecast(project, plan, Stamps(tmp_path / "steps.json"))
    assert forecast.of(step(plan, "finetune llm")) == Cost()
    assert forecast.of(step(plan, "feast apply")).seconds > 0


def test_the_lines_name_the_long_steps(project):
    plan = make_plan(project)
    forecast = Forecast(project, plan, Stamps(project.folder / "steps.json"))
    head, *lines = forecast_lines(forecast, list(plan.steps))
    assert duration(sum(forecast.of(one).seconds for one in plan.steps)) in head
    assert any(line.split()[:2] == ["finetune", "llm"] for line in lines)
    assert not any("publish" in line for line in lines)
