"""What a project's own files under `configs/` change of the shipped ones: the defaults of everything that `run` does.

A shipped file states every default. Only what a copy says otherwise counts as the user's: a default that follows from
the data's span (`span_settings`) gives way to that, and to nothing else.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from advprior.pipeline.fit import own_settings
from advprior.store.project_files import ARMS_FILE, SETTINGS_FILES, parsed_yaml, read_yaml


def edited_settings(predictor: str, project: Path) -> dict[str, Any]:
    """Settings of a predictor that the project's file gives another value than the shipped one.

    Raises
    ------
    AdvpriorError
        ``CFG001`` when the file cannot be read.
    """
    own = own_settings(predictor, project)
    if not own:
        return {}
    shipped = files("advprior").joinpath(f"templates/{Path(SETTINGS_FILES[predictor]).name}").read_text()
    return differences(own, parsed_yaml(shipped))


def differences(own: dict[str, Any], shipped: dict[str, Any]) -> dict[str, Any]:
    """Nested settings of the first that the second says otherwise, or not at all.

    >>> differences({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 2, "d": 4}, "e": 5})
    {'b': {'d': 3}}
    """
    result: dict[str, Any] = {}
    for key, value in own.items():
        other = shipped.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            inner = differences(value, other)
            result |= {key: inner} if inner else {}
        elif key not in shipped or value != other:
            result[key] = value
    return result


def shipped_arms() -> dict[str, Any]:
    """The package's own arms file, as data: what an arm's keys mean is `ranking`'s to say."""
    arms: dict[str, Any] = parsed_yaml(files("ranking").joinpath("models/arms.yaml").read_text())
    return arms


def own_arms(project: Path) -> dict[str, Any]:
    """The project's arms file, or the shipped one where it has none.

    Raises
    ------
    AdvpriorError
        ``CFG001`` when it cannot be read, or is no list of arms with names.
    """
    from advprior.store.errors import AdvpriorError

    path = project / ARMS_FILE
    if not path.is_file():
        return shipped_arms()
    own = read_yaml(path, "the arms file")
    arms, ranker = own.get("arms"), own.get("ranker") or {}
    listed = isinstance(arms, list) and all(isinstance(arm, dict) and isinstance(arm.get("name"), str) for arm in arms)
    if not listed or not isinstance(ranker, dict):
        raise AdvpriorError(
            "CFG001",
            "the arms file is not valid",
            where=str(path),
            actual="`ranker` is no mapping" if listed else "`arms` is no list of arms, each with a name",
            fix="start from the commented template that `advprior init` writes",
        )
    return {"arms": arms, "ranker": ranker}


def edited_files(project: Path) -> list[str]:
    """Files under `configs/` that differ in what they say from the shipped ones, relative to the project."""
    edited = {SETTINGS_FILES[kind] for kind in SETTINGS_FILES if edited_settings(kind, project)}
    arms, shipped = own_arms(project), shipped_arms()
    if arms["arms"] != shipped["arms"] or differences(arms["ranker"], shipped["ranker"]):
        edited.add(ARMS_FILE)
    return sorted(edited)
