"""Token ids of many texts in flat arrays, and where they go: what prompts are laid out with, without a loop over texts.

"Ragged" here: rows of unlike length, one after another in one array, with where each starts and how long it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from advprior.store.arrays import Int


def ragged(starts: Int, lengths: Int) -> Int:
    """Index of every element of rows that start at ``starts`` [n] and are ``lengths`` [n] long, one row after another.

    >>> ragged(np.array([10, 3]), np.array([2, 3])).tolist()
    [10, 11, 3, 4, 5]
    """
    stops = np.cumsum(lengths)
    total = int(stops[-1]) if len(stops) else 0
    return np.repeat(starts - (stops - lengths), lengths) + np.arange(total, dtype=np.int64)


def offsets_of(lengths: Int) -> Int:
    """Where rows of these lengths [n] begin, and where the last one ends [n + 1].

    >>> offsets_of(np.array([2, 0, 3])).tolist()
    [0, 2, 2, 5]
    """
    out = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=out[1:])
    return out


@dataclass(frozen=True)
class TokenTable:
    """Token ids of texts, one after another.

    Attributes
    ----------
    tokens : int64 [T]
    starts, lengths : int64 [n]
        Of each text in ``tokens``.
    """

    tokens: Int
    starts: Int
    lengths: Int

    @classmethod
    def of(cls, texts: Iterable[Sequence[int]]) -> TokenTable:
        """The table of texts given as token ids.

        >>> table = TokenTable.of([[7, 8], [], [9]])
        >>> table.tokens.tolist(), table.starts.tolist(), table.lengths.tolist()
        ([7, 8, 9], [0, 2, 2], [2, 0, 1])
        """
        every = [np.asarray(text, np.int64) for text in texts]
        lengths = np.fromiter(map(len, every), np.int64, len(every))
        tokens = np.concatenate(every) if every else np.zeros(0, np.int64)
        return cls(tokens, offsets_of(lengths)[:-1], lengths)

    def put(self, out: Int, at: Int, texts: Int, lengths: Int | None = None) -> None:
        """Write the tokens of ``texts`` [n] into ``out``, each from its place in ``at`` [n] on.

        Parameters
        ----------
        lengths : int64 [n], optional
            How many of each text's tokens; all of them by default.

        Examples
        --------
        >>> out = np.zeros(4, np.int64)
        >>> TokenTable.of([[7, 8], [9]]).put(out, np.array([2, 0]), np.array([0, 1]))
        >>> out.tolist()
        [9, 0, 7, 8]
        """
        lengths = self.lengths[texts] if lengths is None else lengths
        if len(lengths) and lengths.min() == 1 == lengths.max():
            out[at] = self.tokens[self.starts[texts]]
        else:
            out[ragged(at, lengths)] = self.tokens[ragged(self.starts[texts], lengths)]
