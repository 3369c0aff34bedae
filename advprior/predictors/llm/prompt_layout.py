"""Bodies of many users' prompts, laid out in flat arrays: the place of each token is arithmetic, not a loop.

A body is a user's occasions in time order; bodies of users follow one another. Each occasion is the days since the one
before (where they are written), its events, and a separator. What is written of an event is given as pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from advprior.predictors.llm.token_table import TokenTable, offsets_of
from advprior.store.arrays import Bool, Int
from advprior.store.times import DAY_US


@dataclass(frozen=True)
class Occasions:
    """Events of U users, flat [E], in K occasions: (user, time).

    Attributes
    ----------
    first : bool [E]
        Whether a row is the first of its occasion.
    rows : int64 [K + 1]
        First row of each occasion, and the end of the last.
    offsets : int64 [U + 1]
        First occasion of each user, and the end of the last.
    times : int64 [K]
        Microseconds.
    """

    first: Bool
    rows: Int
    offsets: Int
    times: Int

    @classmethod
    def of(cls, time: Int, offsets: Int) -> Occasions:
        """Occasions of events at ``time`` [E], users' rows at ``offsets`` [U + 1].

        >>> occasions = Occasions.of(np.array([1, 1, 5, 5]), np.array([0, 3, 3, 4]))
        >>> occasions.rows.tolist(), occasions.offsets.tolist(), occasions.times.tolist()
        ([0, 2, 3, 4], [0, 2, 2, 3], [1, 5, 5])
        """
        first = np.empty(len(time), np.bool_)
        first[:1] = True
        np.not_equal(time[1:], time[:-1], out=first[1:])
        first[offsets[:-1][offsets[1:] > offsets[:-1]]] = True
        begins = np.flatnonzero(first)
        of_user = np.searchsorted(begins, offsets)
        return cls(first, np.append(begins, len(time)), of_user, time[begins])

    def __len__(self) -> int:
        return len(self.times)

    @property
    def sizes(self) -> Int:
        """Events of each occasion [K]."""
        return np.diff(self.rows)

    @property
    def of_row(self) -> Int:
        """Number of the occasion of every row [E]."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.sizes)

    def days_since(self) -> Int:
        """Whole days since the user's occasion before [K]; −1 for a user's first."""
        days = np.empty(len(self), np.int64)
        days[1:] = np.diff(self.times) // DAY_US
        days[self.offsets[:-1][self.offsets[1:] > self.offsets[:-1]]] = -1
        return days


@dataclass(frozen=True)
class Piece:
    """A part of what is written of events.

    Attributes
    ----------
    table : TokenTable
    texts, lengths : int64 [E]
        Text of the table that stands there, and how many of its tokens; where that is 0 any text may be named.
    """

    table: TokenTable
    texts: Int
    lengths: Int


@dataclass(frozen=True)
class Bodies:
    """Bodies of U users' prompts, one after another; places are in ``tokens``.

    Attributes
    ----------
    tokens : int64 [B]
    offsets : int64 [U + 1]
        First token of each user.
    ends : int64 [K]
        Place of each occasion's separator.
    events : int64 [E]
        Place of each event's first token.
    occasion_offsets, event_offsets : int64 [U + 1]
        First occasion and first event of each user.
    """

    tokens: Int
    offsets: Int
    ends: Int
    events: Int
    occasion_offsets: Int
    event_offsets: Int


def lay_out(
    occasions: Occasions, event_offsets: Int, pieces: Sequence[Piece], gaps: TokenTable | None, separator: int
) -> Bodies:
    """Write bodies.

    Parameters
    ----------
    occasions : Occasions
    event_offsets : int64 [U + 1]
    pieces : sequence of Piece
        What is written of each event, in order.
    gaps : TokenTable, optional
        By number of days, the last for that many or more; None where gaps are not written.
    separator : int
        Token that ends an occasion.
    """
    rows, count = occasions.rows, len(occasions)
    lengths = pieces[0].lengths
    for piece in pieces[1:]:
        lengths = lengths + piece.lengths
    before = offsets_of(lengths)  # tokens of events alone
    # each occasion adds its gap before its events, and a separator behind them
    shift = np.arange(count, dtype=np.int64)
    days = gap_lengths = np.zeros(0, np.int64)
    if gaps is not None:
        days = occasions.days_since()
        gap_lengths = np.where(days < 0, 0, gaps.lengths[np.minimum(days, len(gaps.lengths) - 1)])
        shift = shift + np.cumsum(gap_lengths)
    ends = before[rows[1:]] + shift
    events = before[:-1] + np.repeat(shift, occasions.sizes)
    tokens = np.empty(int(before[-1]) + count + int(gap_lengths.sum()), np.int64)
    tokens[ends] = separator
    if gaps is not None:
        some = np.flatnonzero(gap_lengths)
        at = before[rows[some]] + shift[some] - gap_lengths[some]
        gaps.put(tokens, at, np.minimum(days[some], len(gaps.lengths) - 1))
    at = events
    for number, piece in enumerate(pieces):
        piece.table.put(tokens, at, piece.texts, piece.lengths)
        if number < len(pieces) - 1:
            at = at + piece.lengths
    offsets = np.append(0, ends + 1)[occasions.offsets]
    return Bodies(tokens, offsets, ends, events, occasions.offsets, event_offsets)
