"""Which class fits and scores each kind of predictor, imported only when it is used."""

from __future__ import annotations

import importlib
from pathlib import Path

from advprior.predictors.base import Predictor
from advprior.store.contract import CATALOG_TEXT, EASE, HYBRID, L3AE, LLM, NEIGHBOURS, POPULARITY, SASREC, ZERO_SHOT
from advprior.store.errors import AdvpriorError
from advprior.store.runs import read_manifest

#: Kind -> module:class
KINDS = {
    LLM: "advprior.predictors.llm.predictor:LLMPredictor",
    POPULARITY: "advprior.predictors.popularity:PopularityPredictor",
    NEIGHBOURS: "advprior.predictors.neighbours:NeighbourPredictor",
    EASE: "advprior.predictors.linear:EasePredictor",
    L3AE: "advprior.predictors.linear:L3AEPredictor",
    SASREC: "advprior.predictors.sequence.predictor:SASRecPredictor",
    HYBRID: "advprior.predictors.sequence.predictor:HybridPredictor",
    CATALOG_TEXT: "advprior.predictors.text.predictor:TextPredictor",
    ZERO_SHOT: "advprior.predictors.llm.zero_shot:ZeroShotPredictor",
}


def predictor_class(kind: str) -> type[Predictor]:
    """Class of a predictor by its name.

    Raises
    ------
    AdvpriorError
        ``PRI003`` when there is none of that name.

    Examples
    --------
    >>> predictor_class("popularity").settings({"smoothing": 1.0}).smoothing
    1.0
    """
    if kind not in KINDS:
        raise AdvpriorError("PRI003", f"no predictor named {kind!r}", expected=", ".join(KINDS))
    module, name = KINDS[kind].split(":")
    predictor: type[Predictor] = getattr(importlib.import_module(module), name)
    return predictor


def load_predictor(run: Path) -> Predictor:
    """The predictor that the run of an ``advprior finetune`` holds.

    Raises
    ------
    AdvpriorError
        When ``run`` is not such a folder; ``PRI003`` when its kind is unknown.
    """
    manifest = read_manifest(run, step="finetune", fix="advprior finetune --tables TABLES --out RUN")
    return predictor_class(manifest["facts"]["predictor"])(run)
