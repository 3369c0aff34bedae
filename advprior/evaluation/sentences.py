"""The baseline for new advertisers that needs no LLM: nearest by sentence vectors to what the user turned to before."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from advprior.store.arrays import Float

NAME = "text neighbours"


def installed() -> bool:
    """Whether the optional package `wordllama` is there."""
    return find_spec("wordllama") is not None


def sentence_vectors(texts: Sequence[str]) -> Float:
    """Unit vectors [N, 256] from the static embeddings inside the package `wordllama`: no network."""
    import wordllama

    # the package looks for its own tokenizer under another name than it ships it: point it at itself
    folder = Path(wordllama.__file__).parent
    model = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)
    vectors: Float = np.asarray(model.embed(list(texts), norm=True), np.float32)
    return vectors


def cosines(own: Float, vectors: Float) -> Float:
    """Cosine [P, N] between the mean vector of decayed events ``own`` [P, N] and every advertiser.

    >>> cosines(np.array([[2.0, 0.0]], np.float32), np.eye(2, dtype=np.float32)).tolist()
    [[1.0, 0.0]]
    """
    mean = own @ vectors
    length = np.linalg.norm(mean, axis=1, keepdims=True)
    cosine: Float = (mean / np.maximum(length, 1e-9)) @ vectors.T
    return cosine
