"""What is wrong with a settings file, in words: each problem by its path, an unknown key with the nearest known one."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

_UNKNOWN = "unknown key"
_MOST = 3  # places that are named for one key


def key_paths(model: type[BaseModel]) -> list[str]:
    """Every key that a model takes, dots between levels; a list's own keys follow the list's name.

    >>> from pydantic import create_model
    >>> training = create_model("Training", epochs=(int, 1))
    >>> key_paths(create_model("Settings", training=(training | None, None)))
    ['training', 'training.epochs']
    """
    paths = []
    for name, field in model.model_fields.items():
        paths.append(name)
        for inner in _models(field.annotation):
            paths += [f"{name}.{path}" for path in key_paths(inner)]
    return paths


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Models inside an annotation such as ``tuple[Prior, ...] | None``."""
    from pydantic import BaseModel

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in typing.get_args(annotation) for model in _models(inner)]


def nearest_key(unknown: str, paths: list[str]) -> str | None:
    """The known path, or paths, that an unknown one was probably meant to be.

    A key of the very name in another place comes before one of a similar name in the same place, unless a letter is all
    that they differ by.

    >>> paths = ["layers", "horizon_days", "training", "training.epochs", "training.valid_days", "ranking.epochs"]
    >>> nearest_key("training.valid_day", paths), nearest_key("valid_days", paths), nearest_key("zzz", paths)
    ('training.valid_days', 'training.valid_days', None)
    >>> nearest_key("training.layers", paths), nearest_key("lora.epochs", paths)
    ('layers', 'training.epochs or ranking.epochs')
    >>> nearest_key("arms.seed", ["arms", "arms.seeds", "seed"])
    'arms.seeds or seed'
    """
    level, _, last = unknown.rpartition(".")
    by_name: dict[str, list[str]] = {}
    for path in paths:
        by_name.setdefault(path.rpartition(".")[2], []).append(path)
    same_level = {path.rpartition(".")[2]: path for path in paths if path.rpartition(".")[0] == level}
    if last in by_name:
        slips = [same_level[name] for name in difflib.get_close_matches(last, same_level, n=1, cutoff=0.85)]
        return " or ".join([*slips, *by_name[last]][:_MOST])
    for names in (same_level, {name: " or ".join(some[:_MOST]) for name, some in by_name.items()}):
        close = difflib.get_close_matches(last, names, n=1, cutoff=0.6)
        if close:
            return names[close[0]]
    return None


def unknown_key(unknown: str, paths: list[str]) -> str:
    """What to say of a key that a settings file does not have.

    >>> unknown_key("valid_days", ["training", "training.valid_days"])
    'unknown key; did you mean training.valid_days?'
    >>> unknown_key("training.valid_days", ["training", "training.valid_days"])
    'unknown key: dots are levels, write training: {valid_days: …}'
    """
    if unknown in paths:  # written with the dots: in YAML one key
        *levels, last = unknown.split(".")
        return f"unknown key: dots are levels, write {': {'.join(levels)}: {{{last}: …{'}' * len(levels)}"
    meant = nearest_key(unknown, paths)
    return _UNKNOWN + (f"; did you mean {meant}?" if meant else "")


def explain(error: ValidationError, model: type[BaseModel], also: Sequence[str] = ()) -> str:
    """All problems of a pydantic error in one line, each by its path.

    Parameters
    ----------
    error : pydantic.ValidationError
    model : type of pydantic.BaseModel
        Whose keys are suggested.
    also : sequence of str
        Paths to suggest where the model has none that is near: of what it takes as it is.
    """
    paths, more = key_paths(model), list(also)
    problems = []
    for problem in error.errors():
        place = ".".join(map(str, problem["loc"]))
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            name = ".".join(str(part) for part in problem["loc"] if not isinstance(part, int))
            message = unknown_key(name, paths)
            message = unknown_key(name, more) if message == _UNKNOWN else message
            inside = problem["input"] if isinstance(problem["input"], dict) and message == _UNKNOWN else {}
            meant = [path for key in inside if (path := nearest_key(f"{name}.{key}", paths))]
            message += f"; did you mean {', '.join(meant)}?" if meant else ""
        problems.append(f"{place}: {message}" if place else message)
    return "; ".join(problems)
