"""Training points of the sequence network: snapshots between events, drawn anew for every pass.

A prior is asked for at an arbitrary time, not at the moment of an event. So each event that follows another is
asked about from a time drawn evenly from the wait before it (at most the horizon), and a long wait counts for more than
a short one, as a snapshot is more likely to fall into it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from advprior.history.counts import DAY
from advprior.history.histories import Histories
from advprior.history.targets import Targets, targets_of
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
    weight: Float

    def __len__(self) -> int:
        return len(self.user)

    def draw(self, rng: np.random.Generator) -> Int:
        """A moment [W] within each wait: events before it are known."""
        return (self.begin + rng.random(len(self)) * (self.end - self.begin + 1)).astype(np.int64)


@dataclass(frozen=True)
class WaitRules:
    """Which waits are labels, and what each counts for.

    Attributes
    ----------
    horizon : int
        Microseconds: the longest wait that is asked about.
    half_life_days : float, optional
        A wait that ended so long before the cut-off counts for half.
    gap_power : float
        A wait counts for ``(wait / horizon) ** gap_power``.
    most : int
        Waits of one user, drawn at random beyond that.
    seed : int
    """

    horizon: int
    half_life_days: float | None
    gap_power: float
    most: int
    seed: int


def waits(past: Histories, cutoff: int, rules: WaitRules) -> Waits:
    """Every wait that ends before ``cutoff`` (microseconds), by the rules.

    A first event is waited for by nobody that is known yet, so it is no label.
    """
    user, time = past.user_of_row, past.time
    keep = (np.diff(user, prepend=-1) == 0) & (np.diff(time, prepend=0) > 0) & (time < cutoff)
    row = np.flatnonzero(keep)
    if len(row):
        draw = np.random.default_rng(rules.seed).random(len(row))
        order = np.lexsort([draw, user[row]])
        first = np.searchsorted(user[row][order], user[row][order])
        row = np.sort(row[order[np.arange(len(row)) - first < rules.most]])
    end = time[row]
    begin = np.maximum(time[row - 1] + 1, end - rules.horizon + 1)
    weight = ((end - begin + 1) / rules.horizon) ** rules.gap_power
    if rules.half_life_days is not None:
        weight = weight * 0.5 ** ((cutoff - end) / (rules.half_life_days * DAY))
    return Waits(user[row], begin, end, weight.astype(np.float32))


@dataclass(frozen=True)
class Target:
    """What a point is asked: the advertisers of its next occasion alone (``first``), or of all within the horizon.

    Attributes
    ----------
    horizon : int
        Microseconds.
    size : int
        N.
    first : bool
    """

    horizon: int
    size: int
    first: bool

    def shares(self, histories: Histories, user: Int, moment: Int, end: Int) -> Targets:
        """Targets of P points whose next occasion is at ``end``; what a point's count for sums to one."""
        until = end - moment + 1 if self.first else self.horizon
        # a point sees events before its moment: what happens at that very time is target
        return targets_of(histories, user, moment - 1, until, self.size).shares()
