"""New advertisers for a fitted text run: their names and texts are encoded, weights and space stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from advprior.history.catalog import Catalog
from advprior.predictors.extension import copy_beside, places
from advprior.predictors.text.predictor import ENCODINGS, PARAMETERS, TextSettings, encode_catalog
from advprior.store.contract import CATALOG_FILE


def extend_text(run: Path, catalog: Catalog, out: Path) -> dict[str, Any]:
    """Write the text run with encodings of ``catalog`` into ``out``; weights and space stay."""
    settings = TextSettings(**json.loads((run / PARAMETERS).read_text())["settings"])
    _, new = places(Catalog.load(run / CATALOG_FILE), catalog)
    encodings, _ = encode_catalog(catalog.names, catalog.texts or ("",) * len(catalog), settings)
    copy_beside(run, out)
    np.save(out / ENCODINGS, encodings)
    catalog.save(out / CATALOG_FILE)
    return {"new_advertisers": [catalog.ids[i] for i in new]}
