"""The labels that choose: points on the grid of snapshots, as priors are used, whose whole horizon is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from advprior.history.counts import first_times
from advprior.history.targets import Targets
from advprior.predictors.base import FitData
from advprior.predictors.sequence.points import Target
from advprior.store.arrays import Int

CELLS = 8_000_000  # of points × advertisers that anything dense may have: fewer points where the catalog is large


@dataclass(frozen=True)
class Snapshots:
    """Points and their targets.

    Attributes
    ----------
    user, moment : int64 [P]
    target : Targets
        Of P points.
    """

    user: Int
    moment: Int
    target: Targets

    def __len__(self) -> int:
        return len(self.user)

    @classmethod
    def since(cls, data: FitData, border: int, target: Target, seed: int) -> Snapshots:
        """Points from ``border`` (microseconds) on; a sample of them where their targets would not fit into memory."""
        last = data.cutoff - target.horizon
        grid = np.arange(min(border, last), last + 1, data.snapshot_every, dtype=np.int64)
        parts = [_points_at(data, int(moment), target) for moment in grid]
        user, moment, end = (np.concatenate(column) for column in zip(*parts, strict=True))
        most = max(CELLS // target.size, 1000)
        if len(user) > most:
            sample = np.sort(np.random.default_rng(seed).choice(len(user), most, replace=False))
            user, moment, end = user[sample], moment[sample], end[sample]
        return cls(user, moment, target.shares(data.histories, user, moment, end))


def _points_at(data: FitData, moment: int, target: Target) -> tuple[Int, Int, Int]:
    """Users with an event before ``moment`` and one within the horizon: (user, moment, time of that event)."""
    histories = data.histories
    user = np.flatnonzero(first_times(histories) < moment)
    at = np.full(len(user), moment, np.int64)
    row = histories.seek(user, at)
    end = np.where(row < histories.offsets[user + 1], histories.time[np.minimum(row, len(histories.time) - 1)], -1)
    inside = (end >= moment) & (end < moment + target.horizon)
    return user[inside], at[inside], end[inside]
