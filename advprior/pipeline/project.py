"""A project folder of the user's own: one project file, the feature repository, and what goes with it.

The files are copies of what the packages ship, so that the demo runs exactly what a user gets. A copy that the
user edited is theirs: it is kept and named. A copy nobody edited follows the package when that changes, which
needs the digests of what was written (``.advprior/files.json``).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from advprior.store.errors import AdvpriorError
from advprior.store.project_files import PROJECT_FILE
from advprior.store.runs import write_json

RECORD = ".advprior/files.json"
OLD_RECORD = ".advprior.json"  # where earlier versions kept it

#: file of the project -> (package, file inside it). Packages are looked up by name: no import of ``ranking``.
_SOURCES = {
    "README.md": ("advprior", "templates/README.md"),
    ".gitignore": ("advprior", "templates/gitignore"),
    "configs/llm.yaml": ("advprior", "templates/llm.yaml"),
    "configs/hybrid.yaml": ("advprior", "templates/hybrid.yaml"),
    "configs/text.yaml": ("advprior", "templates/text.yaml"),
    "configs/arms.yaml": ("ranking", "models/arms.yaml"),
    "configs/experiment.yaml": ("advprior", "templates/experiment.yaml"),
}
MAPPING = "mapping.yaml"

#: The `tables` block of a project file, by example; "" is the user's own.
_TABLES = {
    "": f"  mapping: {MAPPING}            # which of your columns is which",
    "complete_journey": (
        "  example: complete_journey        # a year of grocery purchases and store mailers, public\n"
        "  households: 200                  # of 801, or all"
    ),
    "clicks": (
        "  example: clicks                  # a made-up ads log whose every effect is known; so small that all is\n"
        "  users: 400                       # done in minutes: 2000 users over 26 weeks have something to find\n"
        "  advertisers: 24\n"
        "  weeks: 20"
    ),
}
#: Its line on arms. Rankers that wait 20 rounds, not 40, reach the same AUC there for 5 to 15 % less CPU time.
_ARMS = {
    "complete_journey": "arms: {ranker: {patience: 20}}    ",
    "clicks": "arms: {seeds: 2, ranker: {learning_rate: 0.1, patience: 10}}",
}
_ARMS_DEFAULT = "# arms: {seeds: 3, ranker: {num_leaves: 31}}"
#: Its lines on priors. Of the public data: six of the LLM's layers and three epochs are within a seed of ten and four
#: there, at two thirds of the cost of the fit (docs/experiments/2026-11-25-cheaper-llm.md), and six layers and half the
#: points do for its texts, which pays for their random-weight control; elsewhere the defaults stay: they were not
#: compared. The click log shows that everything runs, at a cost that each change can pay.
_TEXTS = {
    "complete_journey": {"lexical_pair": ", points: 2500", "text_twin_pair": ", layers: 6, points: 2500"},
    "clicks": {"lexical_pair": ", points: 1000", "text_twin_pair": ", layers: 4, points: 1000"},
}
_HYBRID = "settings: {encoder: {layers: 4}, network: {width: 32, layers: 1}, training: {epochs: 2}}"
_SETTINGS = {
    "": {"llm": "# settings: {training: {epochs: 2}}"},
    "complete_journey": {
        "text_pair": "settings: {layers: 6, points: 2500}",
        "llm": "settings: {layers: 6, training: {epochs: 3}}",
    },
    "clicks": {
        "sasrec": "settings: {network: {width: 32, layers: 1}, training: {epochs: 2}}",
        "hybrid": _HYBRID,
        "text_pair": "settings: {layers: 4, points: 1000}",
        "llm": "settings: {layers: 3, training: {epochs: 1}}",
    },
}
EXAMPLES = tuple(name for name in _TABLES if name)

#: The plain Feast repository that a project starts with.
_REPO_FILES = ("feature_store.yaml", "definitions.py", ".feastignore")


@dataclass
class Laid:
    """What `lay_out` did, by file name relative to the project."""

    written: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


def shipped_repo() -> Path:
    """Folder of the Feast repository that projects start with: inside the wheel, or beside the packages in a checkout.

    Never looked up by import: `feature_repo` is Feast's own name for a user's folder, and may be a package there.
    """
    package = Path(__file__).resolve().parents[1]
    inside = package / "templates" / "feature_repo"
    return inside if inside.is_dir() else package.parent / "feature_repo"


def shipped(example: str = "") -> dict[str, bytes]:
    """Content of every file of a new project, by its path there.

    Parameters
    ----------
    example : str
        Public data that it starts with; without one, a mapping of the user's own tables.
    """
    template = files("advprior").joinpath("templates/advprior.yaml").read_text()
    settings = dict.fromkeys(("sasrec", "hybrid", "text_pair", "llm"), "") | {
        name: f"\n    {line}" for name, line in _SETTINGS[example].items()
    }
    if settings["hybrid"]:  # in no list of few, and it has to run in the example that runs everything
        settings["hybrid"] = f"\n  - name: hybrid{settings['hybrid']}"
    settings |= {"lexical_pair": "", "text_twin_pair": ""} | _TEXTS.get(example, {})
    words = template.format(tables=_TABLES[example], arms=_ARMS.get(example, _ARMS_DEFAULT), **settings)
    contents = {PROJECT_FILE: words.encode()}
    sources = dict(_SOURCES) if example else {**_SOURCES, MAPPING: ("advprior", "templates/mapping.yaml")}
    contents |= {name: files(package).joinpath(source).read_bytes() for name, (package, source) in sources.items()}
    return contents | {f"feature_repo/{name}": (shipped_repo() / name).read_bytes() for name in _REPO_FILES}


def lay_out(folder: Path, example: str | None = None) -> Laid:
    """Write a project folder, or bring one up to date; a file that the user wrote or edited is never touched.

    Parameters
    ----------
    folder : Path
        Made when missing. Other files in it are left alone.
    example : str, optional
        Public data that a new project starts with; without one, the user's own tables. An existing project keeps its.

    Returns
    -------
    Laid
        Files written, updated (unedited copies of an older version), unchanged, and kept (the user's own).

    Raises
    ------
    AdvpriorError
        ``CFG010`` when the folder cannot be made or written to, ``DAT041`` when there is no such example.
    """
    folder = Path(folder)
    if example is not None and example not in EXAMPLES:
        raise AdvpriorError(
            "DAT041", "no such example", where="--example", actual=example, expected=", ".join(EXAMPLES)
        )
    result = Laid()
    contents = shipped(_example_of(folder) if example is None else example)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        record = _read_record(folder)
        for name, content in contents.items():
            path = folder / name
            old = path.read_bytes() if path.exists() else None
            if old == content:
                result.unchanged.append(name)
            elif old is None or _sha256(old) == record.get(name):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                (result.written if old is None else result.updated).append(name)
            else:
                result.kept.append(name)
                continue
            record[name] = _sha256(content)
        if result.written or result.updated or not (folder / RECORD).exists():
            (folder / RECORD).parent.mkdir(exist_ok=True)
            write_json(folder / RECORD, record)
    except OSError as error:
        raise AdvpriorError(
            "CFG010",
            "the project folder cannot be written",
            where=str(error.filename or folder),
            actual=error.strerror,
            expected="a folder that you may write to",
            fix="advprior init OTHER_DIR",
        ) from error
    return result


def _example_of(folder: Path) -> str:
    """The example that an existing project file names."""
    try:
        text = (folder / PROJECT_FILE).read_text()
    except (OSError, UnicodeDecodeError):
        return ""
    return next((name for name in EXAMPLES if f"\n  example: {name}" in text), "")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read_record(folder: Path) -> dict[str, str]:
    """Digests of the files as they were written; a lost or broken record means that every file is the user's."""
    path = folder / RECORD
    try:
        record = json.loads((path if path.exists() else folder / OLD_RECORD).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return {str(name): str(value) for name, value in record.items()} if isinstance(record, dict) else {}
