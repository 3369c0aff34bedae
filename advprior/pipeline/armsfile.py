"""The arms of a project: those of its `configs/arms.yaml` whose priors it makes, and one for each prior that lacks one.

Written into the project's hidden folder, so that `advprior.yaml` stays one screen. The file is read as data: what an
arm's keys mean is `ranking`'s to say.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from advprior.pipeline.controls import Bond, bonds, kind_of, lines_of_absent, settings_of
from advprior.pipeline.own_defaults import own_arms, shipped_arms
from advprior.pipeline.presets import CHEAP
from advprior.pipeline.settings import Prior, ProjectConfig
from advprior.predictors.encoding.settings import Encoding, parse_encoding
from advprior.store.contract import CLUSTER, PRETRAINED, prior_service, prior_view

#: Enough trees to see which way the cheap priors point, at a tenth of the cost, where the final arms are the user's.
FIRST_RANKER = {"learning_rate": 0.1, "max_rounds": 120, "patience": 10}


def arms_text(config: ProjectConfig, project: Path | None = None) -> str:
    """Arms file of a project, YAML.

    Parameters
    ----------
    config : ProjectConfig
    project : Path, optional
        Folder whose `configs/arms.yaml` is the template: its arms of the project's priors, those that the user wrote
        into it, and its ranker. A shipped arm that the user took out is not measured. Without one, the shipped file.
    """
    template = _template(config, project)
    arms = [arm for arm in template["arms"] if _role(arm) == "baseline"]
    for prior in _in_order(config, template):
        if prior.name in template["removed"] and prior != config.served:
            continue
        arms.append(_arm(template, prior))
        if prior.placebo_name is not None and prior.placebo_name not in template["removed"]:
            arms.append(_placebo(template, prior))
    arms += _cluster_arm(template, config)
    names = {arm["name"] for arm in arms}
    more = [arm for arm in template["arms"] if arm["name"] not in names and _role(arm) != "baseline"]
    arms += [arm for arm in more if config.arms.variants and arm.get("optional")]
    arms += [arm for arm in more if arm["name"] in template["added"] and not arm.get("optional")]
    return _text(arms, {**template["ranker"], **config.arms.ranker})


def arms_absent(config: ProjectConfig, project: Path) -> list[str]:
    """Priors that are made but not measured, because their arms were taken out of the project's arms file."""
    if config.arms.file is not None:
        return []
    removed = _template(config, project)["removed"]
    return [prior.name for prior in config.priors if prior.name in removed and prior != config.served]


def control_names(config: ProjectConfig, project: Path | None = None) -> list[str]:
    """Priors that the others are held against, by the roles of their arms; ``NAME:KIND:OF…`` for one of a kind."""
    template = _template(config, project)
    arms = [_arm(template, prior) for prior in config.priors]
    return [
        ":".join([str(arm["name"]), *([str(arm["kind"]), *_names(arm["of"])] if "kind" in arm else [])])
        for arm in arms
        if _role(arm) == "control"
    ]


def controls_absent(config: ProjectConfig, project: Path) -> list[str]:
    """A line for each control of a kind that priors on trial lack; none where the arms are a file of the user's."""
    if config.arms.file is not None:
        return []
    template = _template(config, project)
    on_trial = [prior.name for prior in config.priors if _role(_arm(template, prior)) == "treatment"]
    return lines_of_absent(config, on_trial, template["bonds"], project)


def first_arms_text(config: ProjectConfig, project: Path | None = None) -> str:
    """Arms file of the first answer: the cheap priors alone, as the controls that they are."""
    template = _template(config, project)
    cheap = [prior for prior in config.priors if prior.predictor in CHEAP]
    cheap = [prior for prior in cheap if prior.name not in template["removed"]] or cheap
    arms = [arm for arm in template["arms"] if _role(arm) == "baseline"]
    arms += [{**_arm(template, prior), "role": "control"} for prior in cheap]
    small = FIRST_RANKER if config.arms.file is not None else {}
    return _text(arms, {**template["ranker"], **small, **config.arms.ranker})


def ranker_modules(arms: str) -> list[str]:
    """Files of modules that an arms file's text names as rankers, relative to it."""
    names = re.findall(r"^\s*(?:- )?ranker:\s*['\"]?([\w.]+):\w", arms, flags=re.MULTILINE)
    return [f"{name.replace('.', '/')}.py" for name in dict.fromkeys(names)]


def _template(config: ProjectConfig, project: Path | None) -> dict[str, Any]:
    """The arms and the ranker to start from, which arms the user wrote or took out, and controls of a kind."""
    shipped = shipped_arms()
    template = shipped if project is None else own_arms(project)
    names = {arm["name"] for arm in template["arms"]}
    packaged = {arm["name"]: _bond(arm) for arm in shipped["arms"]}
    written = {arm["name"]: bond for arm in template["arms"] if (bond := _bond(arm)) is not None}
    written = {name: bond for name, bond in written.items() if bond != packaged.get(name)}
    return {
        "arms": template["arms"],
        "ranker": dict(template.get("ranker") or {}),
        "added": names - {*packaged},
        "removed": {*packaged} - names,
        "bonds": bonds(config.priors, written, project),
        "kinds": {prior.name: kind_of(settings_of(prior, project)) for prior in config.priors},
    }


def _bond(arm: dict[str, Any]) -> Bond | None:
    """What an arm says that it lacks, and of whom."""
    return Bond(str(arm["kind"]), _names(arm["of"])) if arm.get("kind") and arm.get("of") else None


def _names(of: Any) -> tuple[str, ...]:
    return tuple(map(str, of)) if isinstance(of, list) else (str(of),)


def _role(arm: dict[str, Any]) -> str:
    return str(arm.get("role", "treatment"))


def _in_order(config: ProjectConfig, template: dict[str, Any]) -> list[Prior]:
    """Priors as the template lists them, then the others; the served one is the first on trial: the verdict's."""
    order = [arm["name"] for arm in template["arms"]]
    priors = sorted(config.priors, key=lambda prior: order.index(prior.name) if prior.name in order else len(order))
    if _role(_arm(template, config.served)) == "treatment":
        priors.remove(config.served)
        first = next(
            (i for i, prior in enumerate(priors) if _role(_arm(template, prior)) == "treatment"),
            len(priors),
        )
        priors.insert(first, config.served)
    return priors


def _arm(template: dict[str, Any], prior: Prior) -> dict[str, Any]:
    same = next((dict(arm) for arm in template["arms"] if arm["name"] == prior.name), None)
    bond = template["bonds"].get(prior.name)
    if same is None:
        on_trial = prior.predictor in PRETRAINED and template["kinds"][prior.name] is None
        words = f"{prior.name.removesuffix('_pair').replace('_', ' ')} prior"
        words += " by category" if prior.by == "advertiser_category" else ""
        same = {
            "name": prior.name,
            "service": prior_service(prior.name),
            "label": f"+ {words}",
            "role": "treatment" if on_trial else "control",
            "adds": [prior_view(prior.name)],
        }
    same |= {"role": prior.role} if prior.role else {}
    if same.pop("kind", None):  # of a placebo `of` says whom it imitates
        same.pop("of", None)
    if bond is not None and same.get("role") == "control":  # made a treatment, it is on trial itself
        same |= {"kind": bond.kind, "of": bond.of[0] if len(bond.of) == 1 else list(bond.of)}
    return same | ({"label": prior.label} if prior.label else {})


def _cluster_arm(template: dict[str, Any], config: ProjectConfig) -> list[dict[str, Any]]:
    """The arm of the counts by semantic cluster, where the project makes clusters: a control without pre-training."""
    if config.clusters is None:
        return []
    arms = [*template["arms"], *shipped_arms()["arms"]]
    same = next({**arm} for arm in arms if arm["name"] == CLUSTER)
    same.pop("optional", None)
    encoding = Encoding() if config.clusters.base is None else parse_encoding(config.clusters.base)
    reader = config.cluster_reader
    pretrained = encoding.pretrained and (reader is None or template["kinds"][reader.name] != "random_weights")
    if config.clusters.shuffled:
        same["label"] = "+ counts by random group"
    return [same if pretrained and not config.clusters.shuffled else same | {"role": "control"}]


def _placebo(template: dict[str, Any], prior: Prior) -> dict[str, Any]:
    name = str(prior.placebo_name)
    same = next((arm for arm in template["arms"] if arm["name"] == name), None)
    return same or {
        "name": name,
        "service": prior_service(name),
        "label": f"+ placebo ({prior.name.replace('_', ' ')} priors of other users)",
        "role": "placebo",
        "of": prior.name,
        "adds": [prior_view(name)],
    }


def _text(arms: list[dict[str, Any]], ranker: dict[str, Any]) -> str:
    head = "# Made by `advprior run` from configs/arms.yaml: arms of the priors in advprior.yaml, and your own\n"
    # through JSON: YAML's anchors for what occurs twice would only puzzle a reader
    return head + yaml.safe_dump(json.loads(json.dumps({"arms": arms, "ranker": ranker}, default=str)), sort_keys=False)
