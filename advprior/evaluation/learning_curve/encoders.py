"""What each encoder makes of the catalog's texts, as cosines: computed once, kept beside the cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from advprior.evaluation.learning_curve.arms import LEXICAL
from advprior.history.catalog import Catalog
from advprior.predictors.text.similar import cosines, lexical_cosines
from advprior.store.arrays import Float
from advprior.store.runs import digest

DEFAULT = "HuggingFaceTB/SmolLM2-135M-Instruct"
RANDOM = "random weights"
TOKENS = 160


def names_of(bases: Sequence[str]) -> dict[str, bool]:
    """What arms are called, and whether pre-trained weights are behind them; the random-weight control is of the first.

    >>> names_of(["HuggingFaceTB/SmolLM2-135M-Instruct"])
    {'SmolLM2-135M-Instruct': True, 'random weights': False}
    """
    return {Path(base).name: True for base in bases} | {RANDOM: False}


def catalog_cosines(catalog: Catalog, bases: Sequence[str], layers: int, folder: Path) -> dict[str, Float]:
    """Cosines [N, N] by encoder, the lexical one first; encodings of a base are kept in ``folder``."""
    texts = catalog.descriptions(". ")
    by_encoder = {LEXICAL: lexical_cosines(texts)}
    for base in bases:
        by_encoder[Path(base).name] = cosines(_encodings(texts, base, (layers, None), folder))
    by_encoder[RANDOM] = cosines(_encodings(texts, bases[0], (layers, 0), folder))
    return by_encoder


def _encodings(texts: Sequence[str], base: str, network: tuple[int, int | None], folder: Path) -> Float:
    """Encodings [N, H] by (layers, seed of random weights), read where they were computed before."""
    layers, random_seed = network
    path = folder / f"encodings-{digest([list(texts), base, layers, TOKENS, random_seed])[:16]}.npy"
    if path.exists():
        kept: Float = np.load(path)
        return kept
    from advprior.predictors.tuning.encode import encode_texts

    encodings, _ = encode_texts(texts, base, layers=layers, tokens=TOKENS, twin_seed=random_seed)
    folder.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp.npy")
    np.save(beside, encodings)
    beside.rename(path)
    return encodings
