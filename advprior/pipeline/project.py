"""A project folder of the user's own: the feature repository and commented configs, as ``feast init`` makes one.

The files are copies of what the packages ship, so that the demo runs exactly what a user gets. A copy that the
user edited is theirs: it is kept and named. A copy nobody edited follows the package when that changes, which
needs the digests of what was written (``.advprior.json``).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from advprior.store.errors import AdvpriorError
from advprior.store.runs import write_json

RECORD = ".advprior.json"

#: file of the project -> (package, file inside it). Packages are looked up by name: no import of ``ranking``.
_SOURCES = {
    "README.md": ("advprior", "templates/README.md"),
    ".gitignore": ("advprior", "templates/gitignore"),
    "configs/llm.yaml": ("advprior", "templates/llm.yaml"),
    "configs/hybrid.yaml": ("advprior", "templates/hybrid.yaml"),
    "configs/text.yaml": ("advprior", "templates/text.yaml"),
    "configs/mapping.yaml": ("advprior", "templates/mapping.yaml"),
    "configs/arms.yaml": ("ranking", "models/arms.yaml"),
    "configs/experiment.yaml": ("advprior", "templates/experiment.yaml"),
    "refresh.sh": ("advprior", "templates/refresh.sh"),
}


@dataclass
class Laid:
    """What `lay_out` did, by file name relative to the project."""

    written: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


#: The plain Feast repository that a project starts with.
_REPO_FILES = ("feature_store.yaml", "definitions.py", ".feastignore")


def shipped_repo() -> Path:
    """Folder of the Feast repository that projects start with: inside the wheel, or beside the packages in a checkout.

    Never looked up by import: `feature_repo` is Feast's own name for a user's folder, and may be a package there.
    """
    package = Path(__file__).resolve().parents[1]
    inside = package / "templates" / "feature_repo"
    return inside if inside.is_dir() else package.parent / "feature_repo"


def shipped() -> dict[str, bytes]:
    """Content of every file of a new project, by its path there."""
    contents = {name: files(package).joinpath(source).read_bytes() for name, (package, source) in _SOURCES.items()}
    return contents | {f"feature_repo/{name}": (shipped_repo() / name).read_bytes() for name in _REPO_FILES}


def lay_out(folder: Path) -> Laid:
    """Write a project folder, or bring one up to date; a file that the user wrote or edited is never touched.

    Parameters
    ----------
    folder : Path
        Made when missing. Other files in it are left alone.

    Returns
    -------
    Laid
        Files written, updated (unedited copies of an older version), unchanged, and kept (the user's own).

    Raises
    ------
    AdvpriorError
        ``CFG010`` when the folder cannot be made or written to.
    """
    folder = Path(folder)
    result = Laid()
    contents = shipped()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        record = _read_record(folder / RECORD)
        for name, content in contents.items():
            path = folder / name
            there = path.read_bytes() if path.exists() else None
            if there == content:
                result.unchanged.append(name)
            elif there is None or _sha256(there) == record.get(name):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                (result.written if there is None else result.updated).append(name)
            else:
                result.kept.append(name)
                continue
            record[name] = _sha256(content)
        if result.written or result.updated or not (folder / RECORD).exists():
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


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read_record(path: Path) -> dict[str, str]:
    """Digests of the files as they were written; a lost or broken record means that every file is the user's."""
    try:
        record = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return {str(name): str(value) for name, value in record.items()} if isinstance(record, dict) else {}
