"""Histories as the sequence network reads them: one token an event, in windows that a longer history does not move.

A token says which advertiser, how long after the event before, of what category and price. Position 0 of a window
is the profile, so that a user without events has an answer too. Free of torch: scoring reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from advprior.history.counts import DAY
from advprior.history.histories import Histories, recode
from advprior.runtime.batching import padded
from advprior.store.arrays import Int

GAPS = 16  # log2 buckets of days: 0, 1-2, 3-6, … more than 32,767; the last also says 'nothing before'
PRICES = 16  # half-octaves; 0 says 'not known'


@dataclass(frozen=True)
class Vocabulary:
    """What a network was fitted on, in the order of its codes; 0 is what it does not know.

    Attributes
    ----------
    categories : tuple of str
    profile_fields : tuple of str
    profile_levels : tuple of tuple of str
    """

    categories: tuple[str, ...] = ()
    profile_fields: tuple[str, ...] = ()
    profile_levels: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(cls, past: Histories) -> Vocabulary:
        """Values seen in ``past`` alone: later ones would tell of the future."""
        seen = np.unique(past.category[past.category >= 0]) if len(past.category) else ()
        levels = tuple(
            tuple(levels[code] for code in np.unique(past.profile_codes[:, i]) if code >= 0)
            for i, levels in enumerate(past.profile_levels)
        )
        return cls(tuple(past.categories[code] for code in seen), past.profile_fields, levels)

    def category_codes(self, histories: Histories) -> Int:
        """Codes [E] of every row."""
        if not self.categories or not len(histories.category):
            return np.zeros(len(histories.time), np.int64)
        return recode(histories.category, histories.categories, self.categories).astype(np.int64) + 1

    def profile_codes(self, histories: Histories) -> Int:
        """Codes [U, F] of every user; a field that the histories lack is unknown throughout."""
        out = np.zeros((len(histories), len(self.profile_fields)), np.int64)
        for column, (field, levels) in enumerate(zip(self.profile_fields, self.profile_levels, strict=True)):
            if field in histories.profile_fields:
                at = histories.profile_fields.index(field)
                codes = recode(histories.profile_codes[:, at], histories.profile_levels[at], levels)
                out[:, column] = codes.astype(np.int64) + 1
        return out


@dataclass(frozen=True)
class TokenWindow:
    """Tokens of one user, and the points that are read off them.

    Attributes
    ----------
    user : int
    rows : slice
        Rows of the histories that are its tokens, at most ``context``.
    points : int64 [P]
        Index of the points asked for.
    positions : int64 [P]
        Tokens that each point has seen; 0 is the profile alone.
    """

    user: int
    rows: slice
    points: Int
    positions: Int

    def __len__(self) -> int:
        """Tokens, with the profile's."""
        return int(self.rows.stop - self.rows.start) + 1


def gap_bucket(microseconds: npt.NDArray[np.int64]) -> Int:
    """Bucket of a time between events.

    >>> gap_bucket(np.array([0, 1, 2, 3, 40000]) * DAY).tolist()
    [0, 1, 1, 2, 15]
    """
    days = np.maximum(microseconds, 0) // DAY
    bucket: Int = np.minimum(np.floor(np.log2(days + 1)), GAPS - 1).astype(np.int64)
    return bucket


def price_bucket(values: npt.NDArray[np.float32]) -> Int:
    """Bucket of an amount, 1 and above; amounts below one share a bucket, and 0 is one that is not known.

    >>> price_bucket(np.array([0.5, 1.0, 2.0, 1e9, np.inf, np.nan], np.float32)).tolist()
    [1, 1, 3, 15, 15, 0]
    """
    amounts = np.clip(np.nan_to_num(values, nan=1.0), 1.0, np.float32(2**PRICES))
    bucket = np.clip(np.floor(2 * np.log2(amounts)) + 1, 1, PRICES - 1).astype(np.int64)
    return np.where(np.isnan(values), 0, bucket)


def windows(histories: Histories, user: Int, moment: Int, context: int) -> Iterator[TokenWindow]:
    """Windows that hold what each (user, moment) point has seen; points of a user in order of time.

    Which window a point falls in depends on the number of events before it alone, so a point's answer is the same
    from a history that goes on after it. A window starts anew every half context: a point sees at least that much.
    """
    stride = max(context // 2, 1)
    seen = histories.seek(user, moment) - histories.offsets[user]
    start = np.where(seen <= context, 0, (seen - context + stride - 1) // stride * stride)
    key = np.stack([user, start])
    order = np.lexsort([seen, start, user])
    changed = np.flatnonzero((np.diff(key[:, order], axis=1) != 0).any(axis=0)) + 1
    for part in np.split(order, changed):
        if len(part):
            who, first = int(user[part[0]]), int(start[part[0]])
            offset = int(histories.offsets[who])
            rows = slice(offset + first, offset + int(seen[part[-1]]))
            yield TokenWindow(who, rows, part.astype(np.int64), seen[part] - first)


class Tokens:
    """Codes of every row of some histories, computed once."""

    def __init__(self, histories: Histories, vocabulary: Vocabulary) -> None:
        self.histories = histories
        self._category = vocabulary.category_codes(histories)
        self._profile = vocabulary.profile_codes(histories)
        self._price = price_bucket(histories.value) if len(histories.value) else np.zeros(len(histories.time), np.int64)
        gap = np.diff(histories.time, prepend=histories.time[:1])
        first = histories.offsets[:-1][np.diff(histories.offsets) > 0]
        self._gap = gap_bucket(gap)
        self._gap[first] = GAPS - 1

    def batch(self, windows: list[TokenWindow], moment: Int) -> dict[str, Int]:
        """Padded inputs of the network, without the offset.

        Returns
        -------
        dict
            ``advertiser, category, price, gap`` [B, T], ``profile`` [B, F], ``positions, since`` [B, P]; ``since`` is
            the bucket of the time from the last event seen to the point's moment.
        """
        rows = [np.arange(w.rows.start, w.rows.stop) for w in windows]
        # a token that nobody reads, so that no axis is empty
        tokens = {
            name: padded([column[r] if len(r) else column[:0] for r in rows], least=1)
            for name, column in (
                ("advertiser", self.histories.advertiser),
                ("category", self._category),
                ("price", self._price),
                ("gap", self._gap),
            )
        }
        since = []
        for w in windows:
            last = w.rows.start + w.positions - 1
            waited = moment[w.points] - self.histories.time[np.maximum(last, 0)] if len(self.histories.time) else 0
            nothing = (w.positions == 0) & (w.rows.start == self.histories.offsets[w.user])
            since.append(np.where(nothing, GAPS - 1, gap_bucket(np.asarray(waited))))
        return {
            **tokens,
            "profile": self._profile[[w.user for w in windows]],
            "positions": padded([w.positions for w in windows]),
            "since": padded(since),
        }
