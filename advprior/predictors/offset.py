"""What every personal predictor's logits start from: drift of popularity, and the user's own habit.

Time matters as much as the model: popularity moves within months, and most events repeat. Every personal predictor
starts from these terms, with weights fitted on labels before the cut-off, so that what it learns beyond them is what it
can be credited with.

Where labels reach over months, a network is *fitted* on top of the drift of each label's own time, both sides of it
(`advprior.predictors.around`): it then learns how a user differs from everyone at that time, and not which advertisers
were about to be in fashion. When it *scores*, drift is what was known at the snapshot, with weights of its own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from advprior.history import counts
from advprior.history.histories import Histories
from advprior.history.targets import Targets
from advprior.predictors.logit import fit_logit
from advprior.predictors.terms import Terms
from advprior.store.arrays import Double, Float, Int

MONTH = 30.0  # days: popularity is events a month, whatever the half-life
FLOOR = 0.05  # events a month that an advertiser without any counts for
SMOOTHING = 0.5  # the same, of decayed events that are not scaled to a month


@dataclass(frozen=True)
class OffsetTerms:
    """Which terms an offset has: one for each half-life.

    Attributes
    ----------
    popular : tuple of float
        Half-lives in days of everyone's events: ``log(events + floor)``.
    own : tuple of float
        Half-lives in days of the user's: ``log1p(events)``.
    monthly : bool
        Whether everyone's events are scaled to a month, with `FLOOR`, so that half-lives compare; else they are
        decayed events, with `SMOOTHING`.
    """

    popular: tuple[float, ...]
    own: tuple[float, ...]
    monthly: bool = True

    def everyone(self, histories: Histories, cutoff: Int, size: int) -> Float:
        """OffsetTerms of drift [len(popular), P, N] before each cut-off (microseconds), once per distinct cut-off."""
        moments, index = np.unique(cutoff, return_inverse=True)
        terms = [self.log(counts.popularity(histories, moments, h, size), h)[index] for h in self.popular]
        return np.stack(terms) if terms else np.zeros((0, len(cutoff), size), np.float32)

    def habit(self, histories: Histories, user: Int, cutoff: Int, size: int) -> Float:
        """OffsetTerms of habit [len(own), P, N] of P (user, cut-off) points."""
        terms = [np.log1p(counts.own_points(histories, user, cutoff, h, size)) for h in self.own]
        return np.stack(terms) if terms else np.zeros((0, len(user), size), np.float32)

    def __call__(self, histories: Histories, user: Int, cutoff: Int, size: int) -> Float:
        """All terms [K, P, N]: drift, then habit."""
        return np.concatenate([self.everyone(histories, cutoff, size), self.habit(histories, user, cutoff, size)])

    def sparse(
        self, histories: Histories, user: Int, cutoff: Int, size: int, *, everyone_at: Int | None = None
    ) -> Terms:
        """The same without the zeros of habit, and drift once per distinct cut-off, or at other times [P] near them."""
        moments, row = np.unique(cutoff if everyone_at is None else everyone_at, return_inverse=True)
        shared = self.everyone(histories, moments, size)
        offsets, index, own = self.own_cells(histories, user, cutoff, size)
        value = np.concatenate([np.zeros((len(self.popular), len(index)), np.float32), own])
        return Terms(shared, row, offsets, index, value)

    def own_cells(self, histories: Histories, user: Int, cutoff: Int, size: int) -> tuple[Int, Int, Float]:
        """Habit where it is not zero: offsets [P + 1], advertisers of the cells, and its terms there [len(own), …]."""
        cells = counts.own_cells(histories, user, cutoff, self.own, size)
        return cells.offsets, cells.index, np.log1p(cells.counted)

    def log(self, decayed: Double, half_life: float) -> Float:
        """Drift of everyone's decayed events at a half-life."""
        # a steady rate r gives r · half_life / ln 2 decayed events
        amount = decayed * (MONTH * np.log(2) / half_life) + FLOOR if self.monthly else decayed + SMOOTHING
        logs: Float = np.log(amount).astype(np.float32)
        return logs


@dataclass(frozen=True)
class Offset:
    """``Σ w·log(events of everyone) + Σ v·log1p(own events)``, decayed at several half-lives.

    Parameters
    ----------
    terms : OffsetTerms
    weights : tuple of float
        One for each of ``terms.popular``, then one for each of ``terms.own``.
    """

    terms: OffsetTerms
    weights: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self.terms), "weights": self.weights}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Offset:
        """Read what `to_json` wrote, or what an earlier version wrote of habit and drift at one half-life."""
        if "popularity_half_life" in data:
            terms = OffsetTerms((float(data["popularity_half_life"]),), tuple(data["half_lives"]), monthly=False)
        else:
            terms = OffsetTerms(tuple(data["popular"]), tuple(data["own"]), data.get("monthly", True))
        return cls(terms, tuple(data["weights"]))

    def __call__(self, terms: Float) -> Float:
        """Logits [P, N] of terms [K, P, N]."""
        return weighed(terms, self.weights)

    def everyone(self, histories: Histories, cutoff: Int, size: int) -> Float:
        """Drift's share of the logits [P, N]: the same for all users."""
        return weighed(self.terms.everyone(histories, cutoff, size), self.weights[: len(self.terms.popular)])

    def logits(self, histories: Histories, user: Int, cutoff: Int, size: int, everyone: Float | None = None) -> Float:
        """Logits [P, N] of P (user, cut-off) points, from events strictly before each cut-off.

        ``everyone`` [P, N] is `everyone` at the cut-offs, where the caller has it for many users.
        """
        if everyone is None:
            everyone = self.everyone(histories, cutoff, size)
        habit = self.terms.habit(histories, user, cutoff, size)
        logits: Float = everyone + weighed(habit, self.weights[len(self.terms.popular) :])
        return logits

    def habit_cells(self, histories: Histories, user: Int, cutoff: Int, size: int) -> tuple[Int, Int, Float]:
        """Habit's share of the logits, where it is not zero: (point, advertiser, value), sorted by both.

        The same numbers as `logits` adds to everyone's, of the few advertisers that a user turned to.
        """
        point, row = counts.past_rows(histories, user, cutoff)
        cells, place = np.unique(point * size + histories.advertiser[row], return_inverse=True)
        days = (cutoff[point] - histories.time[row]) / counts.DAY
        value = np.zeros(len(cells))
        for half_life, weight in zip(self.terms.own, self.weights[len(self.terms.popular) :], strict=True):
            value += weight * np.log1p(np.bincount(place, weights=0.5 ** (days / half_life), minlength=len(cells)))
        return cells // size, cells % size, value.astype(np.float32)


def weighed(terms: Float, weights: tuple[float, ...] | Double) -> Float:
    """``Σ w·term`` [P, N] of terms [K, P, N]."""
    logits: Float = np.tensordot(np.asarray(weights, np.float32), terms, 1)
    return logits


def weigh(terms: Terms, target: Targets, deviation: Float | None = None) -> tuple[tuple[float, ...], float]:
    """Weights of the offset's K terms by likelihood, and the strength of a deviation [P, N] beside them.

    OffsetTerms are held to an equal share each and the deviation to nothing (`advprior.predictors.logit.RIDGE`).
    """
    centre = np.full(len(terms), 1.0 / len(terms))
    if deviation is not None:
        *weights, strength = map(float, fit_logit(terms.beside(deviation), target, centre=np.append(centre, 0.0)))
        if strength > 0:
            return tuple(weights), strength
    # a deviation that does not help is left out, not turned round
    return tuple(map(float, fit_logit(terms, target, centre=centre))), 0.0
