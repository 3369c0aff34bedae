"""Runs that differ in nothing but their seed are one arm: one draw of luck is no figure of a method."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from advprior.predictors.registry import predictor_class
from advprior.store.arrays import Float
from advprior.store.errors import AdvpriorError
from advprior.store.runs import digest, read_manifest

SEED = "seed"
AVERAGED = " averaged"
KEPT = "keep_before"  # what is kept beside a fit changes nothing in it


@dataclass(frozen=True)
class Group:
    """One arm: a name, the positions of its runs in the order they were given, and whether they answer as one."""

    name: str
    members: tuple[int, ...]
    averaged: bool = False


def group_runs(
    runs: Sequence[Path], taken: Sequence[str], *, together: bool = True, averaged: bool = False
) -> list[Group]:
    """Arms of ``runs``, named apart from each other and from ``taken``.

    Runs belong together when their fits had the same step, inputs and settings but for settings named ``seed``, which
    must differ: the same fit twice is no second draw. A setting that did not exist yet when a run was fitted counts at
    its default. With ``together`` false every run is its own arm; with ``averaged`` several are named and marked so.
    """
    keys: dict[str, list[int]] = {}
    seen: set[tuple[str, str]] = set()
    for position, run in enumerate(runs):
        manifest = read_manifest(run, step="finetune")
        config = _filled(manifest["config"])
        key, fit = digest([_without(config, SEED), manifest["inputs"]]), digest(config)
        if not together or (key, fit) in seen:
            key = f"{key} {position}"
        seen.add((key, fit))
        keys.setdefault(key, []).append(position)
    many = [averaged and len(members) > 1 for members in keys.values()]
    called = [common_name([runs[i].resolve().name for i in members]) for members in keys.values()]
    names = unique_names([name + AVERAGED * mean for name, mean in zip(called, many, strict=True)], taken)
    return [Group(name, tuple(members), mean) for name, members, mean in zip(names, keys.values(), many, strict=True)]


def mean_probability(log_probs: Sequence[Float]) -> Float:
    """Log of the mean of several predictors' probabilities [P, N]: an ensemble, whose members weigh the same.

    >>> np.exp(mean_probability([np.log([[.5, .5]]), np.log([[.1, .9]])])).round(3).tolist()
    [[0.3, 0.7]]
    """
    mean: Float = np.logaddexp.reduce(np.stack(log_probs)) - np.float32(np.log(len(log_probs)))
    return mean


def common_name(names: Sequence[str]) -> str:
    """What the folder names of one arm share, without the count that tells them apart.

    >>> common_name(["llm-seed0", "llm-seed1"]), common_name(["llm_0", "llm_1"]), common_name(["llm7"])
    ('llm', 'llm', 'llm7')
    """
    if len(names) == 1:
        return names[0]
    shared = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    prefix = "".join(letters[0] for letters in shared)
    return re.sub(r"[-_. ]*(seed|s)?[-_. ]*\d*$", "", prefix) or names[0]


def unique_names(names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """``names`` told apart from each other and from ``taken``.

    >>> unique_names(["llm", "llm", "popularity"], ["popularity"])
    ['llm', 'llm (2)', 'popularity (2)']
    """
    used, unique = set(taken), []
    for base in names:
        name, number = base, 1
        while name in used:
            number += 1
            name = f"{base} ({number})"
        used.add(name)
        unique.append(name)
    return unique


def _filled(config: dict[str, Any]) -> Any:
    """A fit's configuration with today's defaults where it says nothing, without what changes no weight."""
    try:
        settings = predictor_class(config["predictor"]).settings(config["settings"]).model_dump(mode="json")
    except (KeyError, ValueError, AdvpriorError):  # of a predictor or a setting that is no more
        return config
    return _without({**config, "settings": settings}, KEPT)


def _without(config: Any, name: str) -> Any:
    if isinstance(config, dict):
        return {key: _without(value, name) for key, value in config.items() if key != name}
    return [_without(value, name) for value in config] if isinstance(config, list) else config
