"""Habit and drift: what everyone buys lately and what this user keeps buying, as terms of a logit.

Time matters as much as the model: popularity moves within months, and most purchases repeat. Every
personal predictor starts from these terms, with weights fitted on the last labels before the cut-off,
so that what it learns beyond them is what it can be credited with.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from advprior.history import counts
from advprior.history.histories import Histories
from advprior.store.arrays import Float, Int

SMOOTHING = 0.5


@dataclass(frozen=True)
class Habit:
    """``w0·log(popularity + 0.5) + Σ wk·log1p(own decayed purchases)``.

    Parameters
    ----------
    popularity_half_life, half_lives : float, tuple of float
        Days.
    weights : tuple of float
        One for popularity, then one a half-life.
    """

    popularity_half_life: float
    half_lives: tuple[float, ...]
    weights: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Habit:
        """Read what `to_json` wrote."""
        return cls(float(data["popularity_half_life"]), tuple(data["half_lives"]), tuple(data["weights"]))

    def everyone(self, histories: Histories, cutoff: Int, size: int) -> Float:
        """Popularity's share of the logits [P, N]: the same for all users."""
        popular: Float = np.float32(self.weights[0]) * log_popularity(
            histories, cutoff, self.popularity_half_life, size
        )
        return popular

    def logits(self, histories: Histories, user: Int, cutoff: Int, size: int, everyone: Float | None = None) -> Float:
        """Logits [P, N] of P (user, cut-off) points, from events strictly before each cut-off.

        ``everyone`` [P, N] is `everyone` at the cut-offs, where the caller has it for many users.
        """
        if everyone is None:
            everyone = self.everyone(histories, cutoff, size)
        logits = everyone
        own = own_terms(histories, user, cutoff, self.half_lives, size)
        for weight, term in zip(self.weights[1:], own, strict=True):
            logits = logits + np.float32(weight) * term
        return logits


def log_popularity(histories: Histories, cutoff: Int, half_life: float, size: int) -> Float:
    """``log(decayed purchases of everyone + 0.5)`` [P, N], computed once per distinct cut-off."""
    moments, index = np.unique(cutoff, return_inverse=True)
    weight = counts.popularity(histories, moments, half_life, size)
    return np.log(weight + SMOOTHING).astype(np.float32)[index]


def habit_terms(
    histories: Histories, user: Int, cutoff: Int, popularity_half_life: float, half_lives: tuple[float, ...], size: int
) -> Float:
    """Terms [1 + len(half_lives), P, N]: log-popularity, then log1p of own decayed purchases."""
    popular = log_popularity(histories, cutoff, popularity_half_life, size)
    return np.stack([popular, *own_terms(histories, user, cutoff, half_lives, size)])


def own_terms(histories: Histories, user: Int, cutoff: Int, half_lives: tuple[float, ...], size: int) -> list[Float]:
    """log1p of own decayed purchases [P, N], one a half-life."""
    return [np.log1p(counts.own_points(histories, user, cutoff, half_life, size)) for half_life in half_lives]
