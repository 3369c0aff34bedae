"""A fitted run for a longer catalog: where old and new advertisers stand, and what is taken over as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

from advprior.history.catalog import Catalog
from advprior.store.contract import CATALOG_FILE
from advprior.store.runs import MANIFEST


def places(old: Catalog, new: Catalog) -> tuple[list[int], list[int]]:
    """Where the old advertisers stand in the new catalog, in old order, and where the new ones do."""
    index = new.index
    fitted = set(old.ids)
    return [index[a] for a in old.ids], [i for i, a in enumerate(new.ids) if a not in fitted]


def copy_beside(run: Path, out: Path) -> None:
    """Everything of a run that does not depend on the catalog."""
    for file in sorted(run.iterdir()):
        if file.is_file() and file.name not in (MANIFEST, CATALOG_FILE):
            shutil.copy2(file, out / file.name)
