"""The arms of a project: those of the shipped file whose priors it makes, and one for each prior that file lacks.

Written into the project's hidden folder, so that `advprior.yaml` stays one screen. The shipped file is read as data:
what an arm's keys mean is `ranking`'s to say.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import yaml

from advprior.pipeline.presets import CHEAP
from advprior.pipeline.settings import Prior, ProjectConfig
from advprior.store.contract import CATALOG_TEXT, HYBRID, LLM, ZERO_SHOT, prior_service

#: Enough trees to see which way the cheap priors point, at a tenth of the cost, where the final arms are the user's.
FIRST_RANKER = {"learning_rate": 0.1, "max_rounds": 120, "patience": 10}


def arms_text(config: ProjectConfig) -> str:
    """Arms file of a project, YAML."""
    shipped = _shipped()
    arms = [arm for arm in shipped["arms"] if arm["role"] == "baseline"]
    for prior in _in_shipped_order(config, shipped):
        arms.append(_arm(shipped, prior))
        if prior.placebo_name is not None:
            arms.append(_placebo(shipped, prior))
    if config.arms.variants:
        arms += [arm for arm in shipped["arms"] if arm.get("optional")]
    return _text(arms, {**shipped.get("ranker", {}), **config.arms.ranker})


def first_arms_text(config: ProjectConfig) -> str:
    """Arms file of the first answer: the cheap priors alone, the last of them on trial."""
    shipped = _shipped()
    cheap = [prior for prior in config.priors if prior.predictor in CHEAP]
    arms = [arm for arm in shipped["arms"] if arm["role"] == "baseline"]
    arms += [{**_arm(shipped, prior), "role": "control"} for prior in cheap]
    arms[-1]["role"] = "treatment"
    small = FIRST_RANKER if config.arms.file is not None else {}
    return _text(arms, {**shipped.get("ranker", {}), **small, **config.arms.ranker})


def _shipped() -> dict[str, Any]:
    text = files("ranking").joinpath("models/arms.yaml").read_text()
    shipped: dict[str, Any] = yaml.safe_load(text)
    return shipped


def _in_shipped_order(config: ProjectConfig, shipped: dict[str, Any]) -> list[Prior]:
    """Priors as the shipped file lists them, then the others; the served one is the first on trial: the verdict's."""
    order = [arm["name"] for arm in shipped["arms"]]
    priors = sorted(config.priors, key=lambda prior: order.index(prior.name) if prior.name in order else len(order))
    if _arm(shipped, config.served)["role"] == "treatment":
        priors.remove(config.served)
        first = next((i for i, prior in enumerate(priors) if _arm(shipped, prior)["role"] == "treatment"), len(priors))
        priors.insert(first, config.served)
    return priors


def _arm(shipped: dict[str, Any], prior: Prior) -> dict[str, Any]:
    same = next((dict(arm) for arm in shipped["arms"] if arm["name"] == prior.name), None)
    if same is None:
        treatments = (LLM, HYBRID, CATALOG_TEXT, ZERO_SHOT)
        words = prior.name.replace("_", " ") + (" by category" if prior.by == "advertiser_category" else "")
        same = {
            "name": prior.name,
            "service": prior_service(prior.name),
            "label": f"+ {words} prior",
            "role": "treatment" if prior.predictor in treatments else "control",
            "adds": _adds(shipped, prior.name),
        }
    same |= {"role": prior.role} if prior.role else {}
    return same | ({"label": prior.label} if prior.label else {})


def _placebo(shipped: dict[str, Any], prior: Prior) -> dict[str, Any]:
    name = str(prior.placebo_name)
    same = next((arm for arm in shipped["arms"] if arm["name"] == name), None)
    return same or {
        "name": name,
        "service": prior_service(name),
        "label": f"+ placebo ({prior.name.replace('_', ' ')} priors of other users)",
        "role": "placebo",
        "of": prior.name,
        "adds": _adds(shipped, name),
    }


def _adds(shipped: dict[str, Any], name: str) -> list[str]:
    """What an arm of this prior adds, in the form in which the shipped LLM arm says it."""
    (model,) = (arm for arm in shipped["arms"] if arm["name"] == LLM)
    return [str(group).replace(LLM, name) for group in model["adds"]]


def _text(arms: list[dict[str, Any]], ranker: dict[str, Any]) -> str:
    head = "# Made by `advprior run` from advprior.yaml, which names a file of your own: arms: {file: my_arms.yaml}\n"
    # through JSON: YAML's anchors for what occurs twice would only puzzle a reader
    return head + yaml.safe_dump(json.loads(json.dumps({"arms": arms, "ranker": ranker})), sort_keys=False)
