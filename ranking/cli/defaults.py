"""What `advprior rank …` takes from the project that it works in, where an option says nothing: arms, ranker, seeds."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from advprior.store.errors import AdvpriorError
from advprior.store.project_files import ARMS_FILE, DECIDE_ON, PROJECT_FILE, arms_block, project_folder, read_yaml

if TYPE_CHECKING:
    from ranking.models.arms import Arms


def arms_of(arms_file: Path | None, *places: Path | None) -> Arms:
    """The arms of a command: of the file that it names, else of the project that it works in, else the package's.

    In a project that is the file its `advprior.yaml` names, else its `configs/arms.yaml`; the ranker's settings in
    `advprior.yaml` come on top. What is taken is printed.

    Parameters
    ----------
    arms_file : Path, optional
        What ``--arms`` says.
    places : Path
        Folders that the command was given.

    Raises
    ------
    AdvpriorError
        ``CFG001`` when a file is missing, no YAML, or says something that arms do not know.
    """
    from ranking.models.arms import load_arms

    project = None if arms_file is not None else project_folder(*places)
    if project is None:
        return check_rankers(load_arms(arms_file), arms_file, *places)
    block = arms_block(project)
    named = block.get("file")
    path = project / str(named) if named else project / ARMS_FILE
    taken = [str(path)] if named or path.is_file() else []
    arms = load_arms(path if taken else None)
    ranker = block.get("ranker")
    if isinstance(ranker, dict) and ranker:
        try:
            arms = arms.with_ranker(**{str(name): value for name, value in ranker.items()})
        except AdvpriorError as error:
            where = f"{project / PROJECT_FILE}: arms.ranker"
            raise AdvpriorError(
                error.code, error.what, where=where, actual=error.actual, expected=error.expected, fix=error.fix
            ) from error
        taken.append(f"{project / PROJECT_FILE} (ranker: {', '.join(map(str, ranker))})")
    if taken:
        click.echo(f"arms: {' and '.join(taken)}")
    return check_rankers(arms, project)


def check_rankers(arms: Arms, *places: Path | None) -> Arms:
    """The same arms, once it is known that every ranker of the user's own can be imported and made.

    A module is looked for as Python does, then in the working folder and in the project's.

    Raises
    ------
    AdvpriorError
        ``RNK038`` when one cannot.
    """
    own = [arm for arm in arms.arms if arm.ranker is not None]
    if own:
        from ranking.models.estimators import make_estimator

        folders = [Path(), project_folder(*places)]
        sys.path += [str(folder.absolute()) for folder in folders if folder is not None]
        for arm in own:
            make_estimator(arm, 0)
    return arms


def decided_on(decide_on: str | None, *places: Path | None) -> str | None:
    """``decide_on``: what the command line says, else the project file; None for the metric that fits the data."""
    project = None if decide_on is not None else project_folder(*places)
    own = None if project is None else read_yaml(project / PROJECT_FILE, "the project file").get("decide_on")
    if project is None or own is None:
        return decide_on
    _only(project, "decide_on", own in DECIDE_ON, own, f"one of {', '.join(DECIDE_ON)}")
    click.echo(f"decide_on: {own}, of {project / PROJECT_FILE}")
    return str(own)


def price_of(given: Mapping[str, Any], *places: Path | None) -> dict[str, Any]:
    """Price of an hour of computing: what the command line says, else ``price`` of the project file; empty without.

    Parameters
    ----------
    given : mapping
        ``cpu_hour``, ``gpu_hour`` and ``currency``, None where the command line does not say it.
    places : Path
        Folders that the command was given.

    Raises
    ------
    AdvpriorError
        ``CFG002`` when the project's is no price.
    """
    price = {name: value for name, value in given.items() if value is not None}
    project = project_folder(*places)
    own = {} if project is None else read_yaml(project / PROJECT_FILE, "the project file").get("price") or {}
    if project is not None and own:
        numbers = [own.get(name) for name in ("cpu_hour", "gpu_hour")] if isinstance(own, dict) else ["?"]
        sound = all(n is None or (isinstance(n, int | float) and not isinstance(n, bool) and n > 0) for n in numbers)
        _only(project, "price", sound, own, "price: {cpu_hour: 0.05, currency: USD}")
        if "cpu_hour" not in price and "gpu_hour" not in price:
            click.echo(f"price: {', '.join(f'{name} {value}' for name, value in own.items())}, of {project}")
            price = {**own, **price}
    return price


def _only(project: Path, key: str, sound: bool, value: object, expected: str) -> None:
    if not sound:
        raise AdvpriorError(
            "CFG002",
            f"`{key}` of the project file does not fit",
            where=f"{project / PROJECT_FILE}: {key}",
            actual=str(value),
            expected=expected,
        )


def count_of(name: str, value: int, *places: Path | None) -> int:
    """``seeds`` or ``replicates``: what the command line says, else the project file, else the option's default."""
    if click.get_current_context().get_parameter_source(name) == ParameterSource.COMMANDLINE:
        return value
    project = project_folder(*places)
    own = None if project is None else arms_block(project).get(name)
    if project is None or not isinstance(own, int) or own == value:
        return value
    click.echo(f"{name}: {own}, of {project / PROJECT_FILE}")
    return own
