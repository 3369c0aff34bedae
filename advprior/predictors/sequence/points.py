"""Training points of the sequence network: snapshots between purchases, drawn anew for every pass.

A prior is asked for at an arbitrary time, not at the moment of a purchase. So each purchase that follows another is
asked about from a time drawn evenly from the wait before it (at most the horizon), and a long wait counts for more than
a short one, as a snapshot is more likely to fall into it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from advprior.history.counts import DAY
from advprior.history.histories import Histories
from advprior.history.targets import dense, next_advertisers
from advprior.store.arrays import Float, Int


@dataclass(frozen=True)
class Waits:
    """Waits of users for their next occasion.

    Attributes
    ----------
    user : int64 [W]
    begin, end : int64 [W]
        Microseconds: just after the occasion before (or the horizon before ``end``), and the occasion waited for.
    weight : float32 [W]
    """

    user: Int
    begin: Int
    end: Int
    weight: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.user)


def waits(
    past: Histories, horizon: int, *, cutoff: int, half_life_days: float | None, gap_power: float, most: int, seed: int
) -> Waits:
    """Every wait that ends before ``cutoff`` (microseconds), at most ``most`` a user, drawn by lot beyond that.

    A first purchase is waited for by nobody that is known yet, so it is no label.
    """
    user, time = past.user_of_row, past.time
    keep = (np.diff(user, prepend=-1) == 0) & (np.diff(time, prepend=0) > 0) & (time < cutoff)
    row = np.flatnonzero(keep)
    if len(row):
        lot = np.random.default_rng(seed).random(len(row))
        order = np.lexsort([lot, user[row]])
        first = np.searchsorted(user[row][order], user[row][order])
        row = np.sort(row[order[np.arange(len(row)) - first < most]])
    end = time[row]
    begin = np.maximum(time[row - 1] + 1, end - horizon + 1)
    weight = ((end - begin + 1) / horizon) ** gap_power
    if half_life_days is not None:
        weight = weight * 0.5 ** ((cutoff - end) / (half_life_days * DAY))
    return Waits(user[row], begin, end, weight.astype(np.float32))


def draw(found: Waits, rng: np.random.Generator) -> Int:
    """A moment [W] within each wait: events before it are known."""
    return (found.begin + rng.random(len(found)) * (found.end - found.begin + 1)).astype(np.int64)


def truth(histories: Histories, user: Int, moment: Int, end: Int, horizon: int, size: int, *, first: bool) -> Float:
    """Targets [P, N], rows that sum to one: of the occasion at ``end`` alone, or of all within the horizon."""
    until = end - moment + 1 if first else horizon
    found = dense(*next_advertisers_within(histories, user, moment, until), size)
    shares: Float = found / np.maximum(found.sum(1, keepdims=True), 1.0)
    return shares


def next_advertisers_within(histories: Histories, user: Int, moment: Int, span: int | Int) -> tuple[Int, Int]:
    """Distinct advertisers in ``[moment, moment + span)`` of each point, as `next_advertisers` gives them."""
    if isinstance(span, int):
        return next_advertisers(histories, user, moment - 1, span)
    start = histories.seek(user, moment)
    stop = histories.seek(user, moment + span)
    length = stop - start
    point = np.repeat(np.arange(len(user), dtype=np.int64), length)
    row = np.arange(length.sum(), dtype=np.int64) - np.repeat(np.cumsum(length) - length, length) + start[point]
    size = int(histories.advertiser.max()) + 1 if len(histories.advertiser) else 1
    pairs = np.unique(point * size + histories.advertiser[row])
    offsets = np.concatenate([[0], np.cumsum(np.bincount(pairs // size, minlength=len(user)))])
    return offsets.astype(np.int64), (pairs % size).astype(np.int64)
