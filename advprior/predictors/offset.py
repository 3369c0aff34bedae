"""What the sequence network's logits start from: drift at several half-lives, and the user's own habit.

While it is *fitted*, drift is that of the label's own time, both sides of it: the network then learns how a user
differs from everyone at that time, and not which advertisers were about to be in fashion. When it *scores*, drift is
what was known at the snapshot, with weights of its own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from advprior.history import counts
from advprior.history.histories import Histories
from advprior.predictors.logit import fit_logit
from advprior.store.arrays import Double, Float, Int

MONTH = 30.0  # days: popularity is purchases a month, whatever the half-life
FLOOR = 0.05  # purchases a month that an advertiser without any counts for


@dataclass(frozen=True)
class Offset:
    """``Σ w·log(purchases a month of everyone) + Σ v·log1p(own decayed purchases)``.

    Parameters
    ----------
    popular, own : tuple of float
        Half-lives in days.
    weights : tuple of float
        One for each of ``popular``, then one for each of ``own``.
    """

    popular: tuple[float, ...]
    own: tuple[float, ...]
    weights: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Offset:
        """Read what `to_json` wrote."""
        return cls(tuple(data["popular"]), tuple(data["own"]), tuple(data["weights"]))

    def __call__(self, terms: Float) -> Float:
        """Logits [P, N] of terms [K, P, N]."""
        logits: Float = np.tensordot(np.asarray(self.weights, np.float32), terms, 1)
        return logits

    def everyone(self, histories: Histories, cutoff: Int, size: int) -> Float:
        """Drift's share of the logits [P, N]: the same for all users."""
        terms = popular_terms(histories, cutoff, self.popular, size)
        found: Float = np.tensordot(np.asarray(self.weights[: len(self.popular)], np.float32), terms, 1)
        return found

    def logits(self, histories: Histories, user: Int, cutoff: Int, size: int, everyone: Float | None = None) -> Float:
        """Logits [P, N] of P (user, cut-off) points; ``everyone`` [P, N] where the caller has it for many users."""
        if everyone is None:
            everyone = self.everyone(histories, cutoff, size)
        own = np.asarray(self.weights[len(self.popular) :], np.float32)
        found: Float = everyone + np.tensordot(own, own_terms(histories, user, cutoff, self.own, size), 1)
        return found


def popular_terms(histories: Histories, cutoff: Int, half_lives: tuple[float, ...], size: int) -> Float:
    """Log of everyone's purchases a month [len(half_lives), P, N] before each cut-off (microseconds)."""
    moments, index = np.unique(cutoff, return_inverse=True)
    return np.stack([_log_rate(counts.popularity(histories, moments, h, size), h)[index] for h in half_lives])


def own_terms(histories: Histories, user: Int, cutoff: Int, half_lives: tuple[float, ...], size: int) -> Float:
    """log1p of own decayed purchases [len(half_lives), P, N]."""
    found = [np.log1p(counts.own_points(histories, user, cutoff, h, size)) for h in half_lives]
    return np.stack(found) if found else np.zeros((0, len(user), size), np.float32)


def _log_rate(decayed: Double, half_life: float) -> Float:
    # a steady rate r gives r · half_life / ln 2 decayed purchases
    rate: Float = np.log(decayed * (MONTH * np.log(2) / half_life) + FLOOR).astype(np.float32)
    return rate


def weigh(terms: Float, target: Float, deviation: Float | None = None) -> tuple[tuple[float, ...], float]:
    """Weights of the offset's terms [K, P, N] by likelihood, and the strength of a deviation [P, N] beside them.

    Terms are held to an equal share each and the deviation to nothing (`advprior.predictors.logit.RIDGE`).
    """
    centre = np.full(len(terms), 1.0 / len(terms))
    if deviation is not None:
        *weights, strength = map(
            float, fit_logit(np.concatenate([terms, deviation[None]]), target, centre=np.append(centre, 0.0))
        )
        if strength > 0:
            return tuple(weights), strength
    # a deviation that does not help is left out, not turned round
    return tuple(map(float, fit_logit(terms, target, centre=centre))), 0.0


class Around:
    """Log of everyone's purchases around a day, before and after it: the drift of that very time.

    Purchases that are a user's first are left out, as their labels are. For fitting alone: it knows what came after.

    Parameters
    ----------
    past : Histories
        Events before the cut-off of what is fitted.
    half_life : float
        Days, to both sides.
    size : int
        N.
    """

    def __init__(self, past: Histories, half_life: float, size: int) -> None:
        began = np.full(len(past), np.iinfo(np.int64).max)
        some = np.diff(past.offsets) > 0
        began[some] = past.time[past.offsets[:-1][some]]
        later = past.time > began[past.user_of_row]
        day = past.time[later] // counts.DAY
        self._first = int(day.min()) if len(day) else 0
        days = int(day.max()) - self._first + 1 if len(day) else 1
        daily = np.zeros((days, size))
        np.add.at(daily, (day - self._first, past.advertiser[later]), 1.0)
        decay = 0.5 ** (1.0 / half_life)
        before, after = np.zeros((days, size)), np.zeros((days, size))
        for i in range(1, days):
            before[i] = (before[i - 1] + daily[i - 1]) * decay
        for i in range(days - 2, -1, -1):
            after[i] = (after[i + 1] + daily[i + 1]) * decay
        self._log: Float = np.log(before + daily + after + FLOOR).astype(np.float32)

    def __call__(self, moment: Int) -> Float:
        """[P, N]; a day outside is the nearest one inside."""
        return self._log[np.clip(moment // counts.DAY - self._first, 0, len(self._log) - 1)]
