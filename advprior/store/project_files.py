"""The defaults that a project folder gives to every command run in it: its project file and the files of `configs/`.

An option on the command line always wins; what is taken from a project is printed by the command that takes it.
"""

from __future__ import annotations

import os
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

from advprior.store.contract import CATALOG_TEXT, HYBRID, LLM, SASREC
from advprior.store.errors import AdvpriorError

PROJECT_FILE = "advprior.yaml"
CONFIGS = "configs"
#: What ``decide_on`` may say: the metrics that a verdict can be about (`ranking.evidence.deciding`).
DECIDE_ON = ("conversions", "auc", "pr_auc", "log_loss", "ndcg")
ARMS_FILE = f"{CONFIGS}/arms.yaml"
#: Folders of a project, and of one cut-off inside it: canonical tables, by advertiser × category, and with clusters.
TABLES_FOLDER, PAIRS_FOLDER, CLUSTERED_FOLDER = "tables", "tables_pair", "tables_cluster"
CUTOFF = "cutoff_"  # and its number: the folder of a cut-off

#: Settings file of each predictor that has one, relative to the project.
SETTINGS_FILES = {
    LLM: f"{CONFIGS}/llm.yaml",
    HYBRID: f"{CONFIGS}/hybrid.yaml",
    SASREC: f"{CONFIGS}/hybrid.yaml",
    CATALOG_TEXT: f"{CONFIGS}/text.yaml",
}


def project_folder(*places: Path | None) -> Path | None:
    """The project that a command works in: the nearest folder with a project file at or above one of its paths.

    Parameters
    ----------
    places : Path or None
        Paths that the command was given, looked at in order; the working folder is the last.

    Returns
    -------
    Path or None
        As seen from the working folder where it lies below it.
    """
    for place in (*places, Path()):
        if place is None:
            continue
        whole = Path(place).absolute()
        for folder in (whole, *whole.parents):
            if (folder / PROJECT_FILE).is_file():
                return _relative(folder)
    return None


def _relative(folder: Path) -> Path:
    """Short where that is easy to read: the folder from here, else whole."""
    short = Path(os.path.relpath(folder))
    return folder if ".." in short.parts else short


def parsed_yaml(text: str) -> Any:
    """What a YAML text says; a text that was read before, as a plan reads its files several times, is not parsed again.

    Raises
    ------
    yaml.YAMLError

    Examples
    --------
    >>> parsed_yaml("serve: llm")
    {'serve': 'llm'}
    """
    return deepcopy(_parsed(text))


@lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    import yaml

    return yaml.safe_load(text)


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """A YAML mapping of a user's; an empty file is an empty one.

    Parameters
    ----------
    path : Path
    what : str
        What the file is called in an error: "the config".

    Raises
    ------
    AdvpriorError
        ``CFG001`` when it is missing, cannot be read or is no YAML mapping.
    """
    import yaml

    try:
        raw = parsed_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AdvpriorError("CFG001", f"{what} cannot be read", where=str(path), actual=reason) from error
    raw = {} if raw is None else raw
    if not isinstance(raw, dict):
        raise AdvpriorError("CFG001", f"{what} is no mapping", where=str(path), actual=type(raw).__name__)
    return raw


def counted_tables(base: Path) -> Path:
    """Which tables features are counted from, in a project's folder or in that of one cut-off inside it.

    With ``clusters`` these are the tables that have the column; else those that ``tables.folder`` names, or ``tables``.

    Parameters
    ----------
    base : Path
        Where the feature repository lies. Without a project file the tables have their usual name.
    """
    cutoff = base.absolute().name.startswith(CUTOFF)
    project = next((folder for folder in (base, base / "..")[: 1 + cutoff] if (folder / PROJECT_FILE).is_file()), None)
    try:
        raw = {} if project is None else read_yaml(project / PROJECT_FILE, "the project file")
    except AdvpriorError:  # whoever reads it for its own sake says so
        raw = {}
    if raw.get("clusters") not in (None, False):
        return base / CLUSTERED_FOLDER
    tables = raw.get("tables")
    own = tables.get("folder") if isinstance(tables, dict) and project == base else None
    return base / (own if isinstance(own, str) else TABLES_FOLDER)


def arms_block(folder: Path) -> dict[str, Any]:
    """What a project file says of arms: ``file``, ``seeds``, ``replicates``, ``ranker``; all of it optional.

    Raises
    ------
    AdvpriorError
        ``CFG001`` when the project file cannot be read.
    """
    block = read_yaml(folder / PROJECT_FILE, "the project file").get("arms")
    return {"file": block} if isinstance(block, str) else block if isinstance(block, dict) else {}
