"""The steps of a project: every command is one that exists, every prior has an arm that reads it, order is by need."""

from __future__ import annotations

import shlex

import click
import pytest
import yaml

from advprior.cli import cli
from advprior.pipeline.armsfile import arms_text, first_arms_text
from advprior.pipeline.plan import FIRST, make_plan
from advprior.pipeline.project import EXAMPLES, PROJECT_FILE, lay_out
from advprior.pipeline.settings import Project, ProjectConfig, read_project
from advprior.pipeline.steps import Stamps, states
from advprior.store.contract import prior_view
from ranking.models.arms import Arms

EXAMPLE = {"example": "complete_journey"}


def parse(words: list[str]) -> click.Context:
    """Resolve a command line without running it; click refuses unknown options and missing values."""
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(context, words)
        context = click.Context(command, parent=context, info_name=name)
    return command.make_context(command.name or "", list(words))


def project(folder, **keys) -> Project:
    return Project(folder, ProjectConfig.model_validate({"tables": EXAMPLE, **keys}))


@pytest.mark.parametrize("keys", [{}, {"priors": "full"}, {"origins": 3}, {"retrieval": False, "report": False}])
def test_every_step_is_a_command_that_exists(tmp_path, keys):
    steps = make_plan(project(tmp_path, **keys)).steps
    assert len({step.name for step in steps}) == len(steps)
    for step in steps:
        if step.command[0] == "advprior":
            assert parse(list(step.command[1:])).params, shlex.join(step.command)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_built_by_a_command(tmp_path, example):
    lay_out(tmp_path, example)
    build = make_plan(read_project(tmp_path)).steps[0]
    assert build.command[:4] == ("advprior", "data", "build", example)
    assert parse(list(build.command[1:])).params


@pytest.mark.parametrize("keys", [{}, {"priors": "full"}, {"origins": 2}])
def test_a_step_stands_after_all_that_it_needs(tmp_path, keys):
    plan = make_plan(project(tmp_path, **keys))
    place = {step.name: i for i, step in enumerate(plan.steps)}
    for step in plan.steps:
        assert all(place[other.name] < place[step.name] for other in plan.needs(step)), step.name
    outputs = {step.output for step in plan.steps} | set(plan.files)
    views = ("user_profile", "ad_stats")  # written by `rank features`, whose output is named by the third
    for step in plan.steps:
        for name in step.inputs:
            assert name in outputs or name.endswith(views) or "feature_repo/" in name, (step.name, name)


def test_the_first_answer_comes_before_every_network(tmp_path):
    plan = make_plan(project(tmp_path))
    names = [step.name for step in plan.steps]
    assert names.index(FIRST) < min(names.index(f"finetune {name}") for name in ("llm", "sasrec", "text_pair"))
    first = {step.name for step in plan.until(FIRST)}
    assert "finetune popularity" in first
    assert not {"finetune llm", "rank frame", "publish placebo"} & first


@pytest.mark.parametrize("priors", ["few", "full"])
def test_every_prior_and_placebo_has_its_arm(tmp_path, priors):
    config = project(tmp_path, priors=priors).config
    arms = Arms.model_validate(yaml.safe_load(arms_text(config)))
    for prior in config.priors:
        assert arms.find(prior.name).adds, prior.name
        if prior.placebo_name:
            assert arms.placebo_of(arms.find(prior.name)) == arms.find(prior.placebo_name)
    assert arms.of_role("treatment")[0].name == "llm"


def test_a_prior_of_ones_own_gets_an_arm_and_the_served_one_the_verdict(tmp_path):
    own = {"name": "ours", "predictor": "text", "label": "+ our texts", "placebo": True}
    config = project(tmp_path, priors=["popularity", {"name": "llm"}, own], serve="ours").config
    arms = Arms.model_validate(yaml.safe_load(arms_text(config)))
    assert arms.of_role("treatment")[0].label == "+ our texts"
    assert arms.placebo_of(arms.find("ours")) == arms.find("placebo_ours")
    assert arms.find("ours").adds == tuple(pattern.replace("llm", "ours") for pattern in arms.find("llm").adds)


def test_the_first_arms_are_the_cheap_ones(tmp_path):
    arms = Arms.model_validate(yaml.safe_load(first_arms_text(project(tmp_path).config)))
    assert [arm.role for arm in arms.arms] == ["baseline", "control", "control", "treatment"]


def test_only_the_served_prior_is_published_online(tmp_path):
    steps = make_plan(project(tmp_path, serve="text_pair")).steps
    online = {step.name for step in steps if step.kind == "publish" and "--offline" not in step.command}
    assert online == {"publish text_pair"}
    (materialize,) = (step for step in steps if step.kind == "feast materialize")
    assert f"feature_repo/data/{prior_view('text_pair')}" in materialize.inputs
    assert f"feature_repo/data/{prior_view('llm')}" not in materialize.inputs


def test_a_new_project_has_everything_missing_and_says_so(tmp_path):
    lay_out(tmp_path, "complete_journey")
    made = read_project(tmp_path)
    plan = make_plan(made)
    every = states(tmp_path, plan, Stamps(tmp_path / "none.json"))
    assert {state for state, _ in every.values()} == {"missing"}
    assert (tmp_path / PROJECT_FILE).is_file()
