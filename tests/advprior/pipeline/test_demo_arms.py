"""The demo's choices of arms: every command it types is one that exists, every prior has an arm that reads it."""

from __future__ import annotations

import shlex

import click
import pytest

from advprior.cli import cli
from advprior.pipeline.demo import ARMS, Step, steps
from ranking.models.arms import load_arms


def parse(words: list[str]) -> click.Context:
    """Resolve a command line without running it; click refuses unknown options and missing values."""
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(context, words)
        context = click.Context(command, parent=context, info_name=name)
    return command.make_context(command.name or "", list(words))


@pytest.mark.parametrize("arms", sorted(ARMS))
def test_every_step_is_a_command_that_exists(tmp_path, arms):
    chain = [step for step in steps(tmp_path, "all", 0, arms=arms) if isinstance(step, Step)]
    assert len({step.name for step in chain}) == len(chain)
    for step in chain:
        if step.command[0] == "advprior":
            assert parse(list(step.command[1:])).params, shlex.join(step.command)


@pytest.mark.parametrize("arms", sorted(ARMS))
def test_every_prior_of_the_demo_has_its_arm(arms):
    adds = {pattern for arm in load_arms().arms for pattern in arm.adds}
    assert {f"prior_{prior.name}_*" for prior in ARMS[arms]} <= adds


def test_all_arms_are_asked_with_old_and_optional_priors(tmp_path):
    of = {step.name: step.command for step in steps(tmp_path, "all", 0, arms="full") if isinstance(step, Step)}
    assert of["rank frame"][-2:] == ("--stale", "1,4,12")
    assert "--optional" in of["rank ablate"]
    assert of["finetune twin"][-2:] == ("--set", "encoder.twin=true")
    assert str(tmp_path / "tables_pair") in of["score hybrid_pair"]
    few = {step.name: step.command for step in steps(tmp_path, "all", 0) if isinstance(step, Step)}
    assert "--optional" not in few["rank ablate"]
    assert str(tmp_path / "tables_pair") in few["score text_pair"]


@pytest.mark.parametrize("arms", sorted(ARMS))
def test_what_is_on_trial_has_its_placebo(tmp_path, arms):
    of = {step.name: step.command for step in steps(tmp_path, "all", 0, arms=arms) if isinstance(step, Step)}
    shuffled = [prior.name for prior in ARMS[arms] if prior.shuffled]
    assert shuffled == ["llm", "text_pair"]
    for name in shuffled:
        placebo = load_arms().placebo_of(load_arms().find(name))
        published = of[f"publish {placebo.name}"]
        assert published[2] == str(tmp_path / "priors" / name)
        assert published[published.index("--as") + 1] == placebo.name
