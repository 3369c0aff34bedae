"""Which prior of a project is another one's control of a kind, by their settings; and which controls it lacks.

A control lacks one thing of a prior: pre-training, the network, or advertisers' names. Words of the same texts serve
every prior that reads them. A network without pre-training, or without names, serves those of the same base alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from advprior.pipeline.own_defaults import edited_settings
from advprior.pipeline.settings import Prior, ProjectConfig
from advprior.pipeline.span_settings import merged
from advprior.predictors.encoding.settings import Encoding
from advprior.store.claims import CONTROL_NAMES, expected_of
from advprior.store.contract import CATALOG_TEXT, HYBRID, L3AE, LEXICAL, LLM
from advprior.store.project_files import PROJECT_FILE, read_yaml

#: What a control changes of its prior's settings, by its kind, and the name that such a prior may get.
_CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "random_weights": ({"twin": True}, "twin"),
    "lexical": ({"base": LEXICAL}, "lexical"),
}
#: Settings that say nothing of words: the control without a network has none of them.
_OF_NETWORKS = ("layers", "pooling", "tokens")
#: Predictors whose settings can take the place of pre-trained weights; those that keep them in a part of their own.
_CHANGEABLE, _NESTED = (LLM, HYBRID, CATALOG_TEXT, L3AE), (HYBRID, L3AE)


@dataclass(frozen=True)
class Bond:
    """What a control lacks, and the priors that it lacks it of."""

    kind: str
    of: tuple[str, ...]


def bonds(priors: Sequence[Prior], written: Mapping[str, Bond], project: Path | None = None) -> dict[str, Bond]:
    """The controls of a kind among priors, by name.

    Parameters
    ----------
    priors : sequence of Prior
    written : mapping of str to Bond
        What the user's own arms file says of priors; each stays as it is.
    project : Path, optional
        Folder whose files are the defaults of settings.

    Returns
    -------
    dict of str to Bond
        Each prior has one control of a kind at most: that whose other settings differ least from its own.

    Examples
    --------
    >>> own = {"name": "minilm", "predictor": "text", "settings": {"base": "all-MiniLM-L6-v2"}}
    >>> words, masked = {"base": "lexical"}, {"masked": True}
    >>> raw = [own, "text", {"name": "words", "predictor": "text", "settings": words}]
    >>> raw.append({"name": "nameless", "predictor": "text", "settings": masked})
    >>> for name, bond in bonds([Prior.model_validate(one) for one in raw], {}).items():
    ...     print(name, bond.kind, *bond.of)
    words lexical minilm text
    nameless masked text
    """
    settings = {prior.name: settings_of(prior, project) for prior in priors}
    kinds = {name: kind_of(own) for name, own in settings.items()}
    own = {(bond.kind, name) for bond in written.values() for name in bond.of}
    of: dict[str, list[str]] = {}
    for prior in priors:
        if kinds[prior.name] is not None or prior.name in written:
            continue
        for kind in CONTROL_NAMES:
            among = [
                one.name
                for one in priors
                if (one.predictor, one.by) == (prior.predictor, prior.by)
                and kinds[one.name] == kind
                and one.role != "treatment"  # it is on trial itself
                and one.name not in written
                and (kind == LEXICAL or _base(settings[one.name]) == _base(settings[prior.name]))
            ]
            if among and (kind, prior.name) not in own:
                distances = {name: _distance(settings[prior.name], settings[name], kind) for name in among}
                of.setdefault(min(among, key=lambda name: distances[name]), []).append(prior.name)
    return {**{name: Bond(str(kinds[name]), tuple(names)) for name, names in of.items()}, **written}


def settings_of(prior: Prior, project: Path | None = None) -> dict[str, Any]:
    """What a prior's settings say besides the defaults of the package: its file's, or the project's and its own.

    Raises
    ------
    AdvpriorError
        ``CFG001`` when a file of the project cannot be read.
    """
    if project is None:
        return prior.settings
    if prior.settings_file is None:
        return merged(edited_settings(prior.predictor, project), prior.settings)
    path = project / prior.settings_file
    return read_yaml(path, "the config") if path.is_file() else {}


def kind_of(settings: Mapping[str, Any]) -> str | None:
    """What a prior of these settings lacks, as a key of `CONTROL_NAMES`; None for nothing.

    >>> kind_of({"encoder": {"base": "lexical"}}), kind_of({"masked": True}), kind_of({"points": 100})
    ('lexical', 'masked', None)
    """
    own = _of_texts(settings)
    if own.get("twin"):
        return "random_weights"
    return LEXICAL if own.get("base") == LEXICAL else "masked" if own.get("masked") else None


def lines_of_absent(
    config: ProjectConfig, on_trial: Sequence[str], bound: Mapping[str, Bond], project: Path | None = None
) -> list[str]:
    """A line for each control of a kind that priors on trial lack: what the verdict will miss, and how to have it.

    Parameters
    ----------
    config : ProjectConfig
    on_trial : sequence of str
        Priors that a verdict is about.
    bound : mapping of str to Bond
        What `bonds` gave.
    project : Path, optional
        As there.
    """
    measured = {(bond.kind, name) for bond in bound.values() for name in bond.of}
    lacking: dict[tuple[str, ...], list[Prior]] = {}
    for prior in config.priors:
        for kind in expected_of(prior.predictor) if prior.predictor in _CHANGEABLE else ():
            if prior.name in on_trial and (kind, prior.name) not in measured:
                base = "" if kind == LEXICAL else _base(settings_of(prior, project))  # words serve every base
                lacking.setdefault((kind, prior.predictor, prior.by, base), []).append(prior)
    names = {prior.name for prior in config.priors}
    return [
        f"{', '.join(prior.name for prior in priors)} {'have' if len(priors) > 1 else 'has'} no "
        f"{CONTROL_NAMES[kind]}: the verdict will say that it was not measured; to measure it, add to priors in "
        f"{PROJECT_FILE}: {_to_add(priors[0], kind, names)}"
        for (kind, *_), priors in lacking.items()
    ]


def _to_add(prior: Prior, kind: str, names: set[str]) -> str:
    """The entry of a project file that makes a control of a prior."""
    change, word = _CHANGES[kind]
    name = f"{prior.name}_{word}"
    while name in names:
        name += "_2"
    entry: dict[str, Any] = {"name": name, "predictor": prior.predictor}
    entry |= {} if prior.by == "advertiser" else {"by": prior.by}
    nested = prior.predictor in _NESTED
    if prior.settings_file is not None:
        said = ", ".join(f"{key}: {str(value).lower()}" for key, value in change.items())
        where = "encoder: " if nested else ""
        return f"{_flow(entry)[:-1]}, settings: a copy of {prior.settings_file} with {where}{said}}}"
    own = dict(prior.settings.get("encoder") or {}) if nested else dict(prior.settings)
    dropped = _OF_NETWORKS if kind == LEXICAL else ()
    own = {key: value for key, value in own.items() if key not in dropped} | change
    entry["settings"] = {**prior.settings, "encoder": own} if nested else own
    return _flow(entry)


def _flow(entry: dict[str, Any]) -> str:
    return yaml.safe_dump(entry, default_flow_style=True, sort_keys=False, width=10_000).strip()


def _of_texts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of what reads texts: of an encoder, where that is a part of its own."""
    inner = settings.get("encoder")
    return {**settings, **inner} if isinstance(inner, dict) else dict(settings)


def _base(settings: Mapping[str, Any]) -> str:
    return str(_of_texts(settings).get("base") or Encoding().base)


def _distance(one: Mapping[str, Any], other: Mapping[str, Any], kind: str) -> int:
    """How many settings differ, apart from those that make the other a control."""
    apart = {"twin", "masked", "base", "encoder", *(_OF_NETWORKS if kind == LEXICAL else ())}
    first, second = _of_texts(one), _of_texts(other)
    return sum(first.get(key) != second.get(key) for key in {*first, *second} - apart)
