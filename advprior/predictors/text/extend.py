"""New advertisers for a fitted text run: their names and texts are encoded, all else stays as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from advprior.history.catalog import Catalog
from advprior.predictors.extension import copy_beside, places
from advprior.predictors.text.alike import extend_alike
from advprior.predictors.text.predictor import ENCODINGS, PARAMETERS, WORDS, encode_catalog, space_of
from advprior.predictors.text.settings import TextSettings
from advprior.store.arrays import Float
from advprior.store.contract import CATALOG_FILE
from advprior.store.errors import AdvpriorError

CHECKED = 8  # advertisers that are encoded again: the same encodings must come out
DRIFT = 0.01  # of the largest number in them: another encoder is off by far more


def extend_text(run: Path, catalog: Catalog, out: Path) -> dict[str, Any]:
    """Write the text run with encodings of ``catalog`` into ``out``; only new or changed texts are encoded.

    Raises
    ------
    AdvpriorError
        ``PRI064`` when the encoder does not make of the fitted texts what it made of them.
    """
    settings = TextSettings(**json.loads((run / PARAMETERS).read_text())["settings"])
    fitted, before = Catalog.load(run / CATALOG_FILE), np.load(run / ENCODINGS)
    shown = catalog.to_read(masked=settings.masked)
    old_places, new = places(fitted, catalog)
    old_texts, texts = fitted.to_read(masked=settings.masked).descriptions("\n"), shown.descriptions("\n")
    unchanged = [row for row, place in enumerate(old_places) if old_texts[row] == texts[place]]
    fresh = sorted(set(range(len(catalog))) - {old_places[row] for row in unchanged})
    checked = [old_places[row] for row in unchanged[:CHECKED]]
    chosen = [*checked, *fresh]
    every = shown.texts or ("",) * len(shown)
    words = json.loads((run / WORDS).read_text()) if (run / WORDS).is_file() else None
    names = [shown.names[i] for i in chosen]
    rows, _ = encode_catalog(names, [every[i] for i in chosen], settings, fitted_on=words)
    _require_same(before[unchanged[:CHECKED]], rows[: len(checked)], settings.base)
    encodings = np.empty((len(catalog), rows.shape[1]), np.float32)
    encodings[[old_places[row] for row in unchanged]] = before[unchanged]
    encodings[fresh] = rows[len(checked) :]
    copy_beside(run, out)
    np.save(out / ENCODINGS, encodings)
    if settings.alike:
        extend_alike(run, out, space_of(run), encodings, np.asarray(old_places))
    catalog.save(out / CATALOG_FILE)
    return {"new_advertisers": [catalog.ids[i] for i in new]}


def _require_same(before: Float, again: Float, base: str) -> None:
    """Refuse an encoder that is not the one that the run was fitted with."""
    if before.shape == again.shape:
        left, right = np.nan_to_num(before), np.nan_to_num(again)
        drift = float(np.abs(left - right).max(initial=0) / max(float(np.abs(left).max(initial=0)), 1e-9))
    else:
        drift = float("inf")
    if not drift <= DRIFT:
        raise AdvpriorError(
            "PRI064",
            "the encoder does not make of the fitted texts what it made of them",
            where=base,
            actual=f"a difference of {drift:.1e} of their size",
            expected=f"at most {DRIFT:.0e}, with the encoder and the version that the run was fitted with",
            fix="set up the same encoder again, or advprior finetune with the new advertisers",
        )
