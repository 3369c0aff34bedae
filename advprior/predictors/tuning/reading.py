"""Which tokens a network reads of a text, and how its states become one vector: what every text encoder has to settle.

A pooling is a weight for each token: all of a mean but that of the maximum, which no encoder here uses. The first
token of a causal language model is an *attention sink*: its state is large and says nothing of the text, so that a mean
is better without it. With *echo* a text is read twice and the mean taken over its second copy, whose tokens have seen
all of it (arXiv 2402.15449).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from advprior.predictors.tokens import Encode
from advprior.store.arrays import Float

Pooling = Literal["mean", "skip_first", "echo"]
Layers = int | tuple[int, int] | None
Row = tuple[list[int], Float]
RowOf = Callable[[str], Row]


@dataclass(frozen=True)
class Reading:
    """How texts are read.

    Attributes
    ----------
    layers : int, (int, int) or None
        The first so many layers, whose last state is read; or of those from the first to the second number the states
        of each, at unit length, averaged; None: all of a sentence encoder, ``decoder_layers`` of a language model.
    pooling : str, optional
        None: as a sentence encoder was trained, ``mean`` of a language model.
    tokens : int
        Of a text, at most.
    decoder_layers : int
    """

    layers: Layers = None
    pooling: Pooling | None = None
    tokens: int = 160
    decoder_layers: int = 10

    @property
    def last(self) -> int | None:
        """The last layer that is read, where one is named."""
        return self.layers[1] if isinstance(self.layers, tuple) else self.layers

    def span(self, loaded: int) -> tuple[int, int]:
        """First and last layer whose states are read, counted from 1, of the ``loaded`` ones."""
        return self.layers if isinstance(self.layers, tuple) else (loaded, loaded)


def decoder_rows(encode: Encode, reading: Reading, *, bos: int, separator: list[int], limit: int | None) -> RowOf:
    """How a causal language model reads a text.

    Parameters
    ----------
    encode : callable
        Text to token ids, nothing put before or after.
    reading : Reading
    bos : int
        Put before a text whose first token is left out.
    separator : list of int
        Between the copies of an echo.
    limit : int, optional
        Positions that the model has.

    Examples
    --------
    >>> letters = lambda text: [ord(letter) - 96 for letter in text]
    >>> rows = decoder_rows(letters, Reading(pooling="echo"), bos=50, separator=[40], limit=None)
    >>> ids, weights = rows("ab")
    >>> ids, weights.tolist()
    ([50, 1, 2, 40, 1, 2], [[0.0, 0.0, 0.0, 0.0, 0.5, 0.5]])
    """
    pooling = reading.pooling or "mean"
    around = {"mean": 0, "skip_first": 1, "echo": 1 + len(separator)}[pooling]
    most = reading.tokens
    if limit is not None:
        most = max(min(most, (limit - around) // (2 if pooling == "echo" else 1)), 1)

    def row(text: str) -> Row:
        ids = encode(text)[:most] or [0]  # a text without a token is read as the vocabulary's first one
        before = {"mean": [], "skip_first": [bos], "echo": [bos, *ids, *separator]}[pooling]
        weights = np.zeros((1, len(before) + len(ids)), np.float32)
        weights[0, len(before) :] = 1.0 / len(ids)
        return [*before, *ids], weights

    return row


def special_rows(encode: Encode, weights_of: Callable[[int], Float]) -> RowOf:
    """How an encoder reads a text whose tokenizer puts its own marks around it."""

    def row(text: str) -> Row:
        ids = encode(text) or [0]
        return ids, weights_of(len(ids))

    return row
