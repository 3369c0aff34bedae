"""The arithmetic of the text prior: a conditional logit whose view of an advertiser can be its text alone.

For a user with decayed events c [N] and an advertiser a with text features f_a [K] (principal components of
what the LLM makes of its name and catalog text), with f̄ = Σ c·f / (Σ c + ½) what the user's advertisers are like:

    known a:  Σ v_h·log(popularity_h(a) + ½) + v_own·log1p(c_a) + v_again·[c_a > 0] + v_known + w_known·f_a + f̄ᵀA f_a
    new a:    w_new·f_a + f̄ᵀA f_a

and for both, where the settings ask for them, the terms of `advprior.predictors.text.alike`.

Fitted with advertisers withheld at random: in each training point a share of the known ones is made new, so
that ``w_new`` learns how popular an advertiser like this turns out to be, and the two kinds compete on one scale.
Convex; penalties keep 2·K + K² weights honest where advertisers are few.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from advprior.history import counts
from advprior.history.histories import Histories
from advprior.predictors.logit import RIDGE, fit_logit
from advprior.predictors.offset import SMOOTHING
from advprior.predictors.sparse_links import WIDE
from advprior.store.arrays import Bool, Double, Float, Int

OWN_HALF_LIFE = 365.0  # days
OWN_BACK_OFF = 0.5  # events that 'nothing in particular' counts for in a user's mean
FAR = -1e9  # logit of who is no candidate
COLUMNS = 256  # of encodings that are averaged at once
ROWS = 8192  # advertisers whose encodings are standardised at once


@dataclass(frozen=True)
class Space:
    """From encodings to text features: standardise, then the leading principal directions.

    Attributes
    ----------
    mean, spread : float32 [H]
    directions : float32 [H, K]
        Scaled so that features have mean square 1 over the advertisers they were taken from.
    """

    mean: Float
    spread: Float
    directions: Float

    @classmethod
    def of(cls, encodings: Float, components: int) -> Space:
        """The space of these encodings [N, H], NaN where a part is not known; one component, or N - 1 at most."""
        size = encodings.shape[1]
        mean, spread = np.zeros(size, np.float32), np.ones(size, np.float32)
        for start in range(0, size, COLUMNS):  # a copy of some columns, not of all
            columns = encodings[:, start : start + COLUMNS]
            some = ~np.isnan(columns).all(0)
            seen, place = columns[:, some], start + np.flatnonzero(some)
            if len(place):
                mean[place], spread[place] = np.nanmean(seen, axis=0), np.nanstd(seen, axis=0) + 1e-6
        plain = cls(mean, spread, np.eye(0, dtype=np.float32))
        count = max(min(components, len(encodings) - 1, size), 1)
        strength, right = plain._leading(encodings)
        scale = np.sqrt(len(encodings)) / np.maximum(strength[:count], 1e-9)
        return cls(mean, spread, (right[:count].T * scale).astype(np.float32))

    def _leading(self, encodings: Float) -> tuple[Double, Double]:
        """Singular values of the standardised encodings, largest first, and their right vectors [., H].

        Of many advertisers by way of the matrix [H, H] of products, which loses none of the leading ones.
        """
        if len(encodings) <= WIDE:
            _, strength, right = np.linalg.svd(self.standard(encodings).astype(np.float64), full_matrices=False)
            return strength, right
        products = np.zeros((encodings.shape[1],) * 2)
        for start in range(0, len(encodings), ROWS):
            part = self.standard(encodings[start : start + ROWS]).astype(np.float64)
            products += part.T @ part
        squares, vectors = np.linalg.eigh(products)
        return np.sqrt(np.maximum(squares[::-1], 0.0)), vectors.T[::-1]

    def standard(self, encodings: Float) -> Float:
        """Standardised; what is not known is taken for the mean."""
        standard: Float = np.nan_to_num((encodings - self.mean) / self.spread)
        return standard

    def features(self, encodings: Float) -> Float:
        """Text features [N, K]."""
        parts = [encodings[start : start + ROWS] for start in range(0, max(len(encodings), 1), ROWS)]
        features: Float = np.concatenate([self.standard(part) @ self.directions for part in parts])
        return features


@dataclass(frozen=True)
class Weights:
    """What is fitted. ``known`` [T], ``popular_known`` and ``popular_new`` [K], ``personal`` [K, K], ``alike`` [S]."""

    known: Double
    popular_known: Double
    popular_new: Double
    personal: Double
    alike: Double = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def unpack(cls, flat: Double, terms: int, components: int) -> Weights:
        """From one vector."""
        a, b, c = terms, terms + components, terms + 2 * components
        d = c + components**2
        return cls(flat[:a], flat[a:b], flat[b:c], flat[c:d].reshape(components, components), flat[d:])

    def offset(self, terms: Float, features: Float, new: Bool) -> Float:
        """Everything but the personal part of the logits [P, N]; ``terms`` [T, P, N] are zero where ``new``."""
        by_text = [(features @ weights).astype(np.float32) for weights in (self.popular_new, self.popular_known)]
        total: Float = np.tensordot(self.known.astype(np.float32), terms, 1)
        total += np.where(new, *by_text)
        return total


@dataclass(frozen=True)
class TextPoints:
    """P (user, moment) points to fit on.

    Attributes
    ----------
    terms : float32 [T, P, N]
    taste : float32 [P, K]
        What the user's advertisers are like.
    new, truth : bool [P, N], float32 [P, N]
        Truth sums to one over all points, which weigh the same.
    candidate : bool [N]
        Has an event at all: a label on another is impossible, which says nothing of it.
    alike : float32 [S, P, N], optional
        Terms of known and new advertisers alike.
    """

    terms: Float
    taste: Float
    new: Bool
    truth: Float
    candidate: Bool
    alike: Float | None = None

    @property
    def shared_terms(self) -> int:
        """S."""
        return 0 if self.alike is None else len(self.alike)


def taste(own: Float, features: Float) -> Float:
    """Mean text features [P, K] of decayed events [P, N]."""
    mean: Float = (own @ features) / (own.sum(1, keepdims=True) + OWN_BACK_OFF)
    return mean


def known_terms(popular: Float, own: Float, new: Bool) -> Float:
    """Terms [H + 3, P, N] of known advertisers from decayed events of all [H, P, N] and of the user [P, N]."""
    terms = [np.log(p + SMOOTHING) for p in popular]
    terms += [np.log1p(own), (own > 0).astype(np.float32), np.ones_like(own)]
    of_known: Float = (np.stack(terms) * ~new).astype(np.float32)
    return of_known


def popularity_at(histories: Histories, moments: Int, half_lives: tuple[float, ...], size: int) -> Float:
    """Decayed events of everyone [H, P, N], as of the start of each moment's week."""
    weeks, index = np.unique(moments // (7 * counts.DAY) * (7 * counts.DAY), return_inverse=True)
    return np.stack([counts.popularity(histories, weeks, h, size).astype(np.float32)[index] for h in half_lives])


class TextTerms:
    """The terms of the formula above at some points, never held as one array of T + 2·K + K² matrices [P, N].

    Parameters
    ----------
    points : TextPoints
    features : float32 [N, K]
    """

    def __init__(self, points: TextPoints, features: Float) -> None:
        self._points, self._features = points, features
        self._barred = np.where(points.candidate, 0.0, FAR)
        self._new = points.new.astype(np.float32)

    def __len__(self) -> int:
        components = int(self._features.shape[1])
        return len(self._points.terms) + 2 * components + components**2 + self._points.shared_terms

    def logits(self, weights: Double) -> Double:
        """See `advprior.predictors.logit.Design`."""
        points, unpacked = self._points, self.unpack(weights)
        logits: Double = self._barred + unpacked.offset(points.terms, self._features, points.new)
        logits += (points.taste @ unpacked.personal.astype(np.float32)) @ self._features.T
        if points.alike is not None:
            logits += np.tensordot(unpacked.alike.astype(np.float32), points.alike, 1)
        return logits

    def slope(self, residual: Float) -> Double:
        """See `advprior.predictors.logit.Design`."""
        points, features = self._points, self._features
        by_new, by_all = (residual * self._new).sum(0), residual.sum(0)
        known = [float((residual * term).sum(dtype=np.float64)) for term in points.terms]
        personal = points.taste.T @ (residual @ features)
        alike = [] if points.alike is None else [float((residual * x).sum(dtype=np.float64)) for x in points.alike]
        return np.concatenate([known, (by_all - by_new) @ features, by_new @ features, personal.ravel(), alike])

    def unpack(self, weights: Double) -> Weights:
        """The weights by name."""
        return Weights.unpack(weights, len(self._points.terms), self._features.shape[1])


def fit(points: TextPoints, features: Float, penalty: float, personal_penalty: float) -> Weights:
    """Weights by penalised likelihood; a penalty of 1 weighs a squared weight by 1/2000 nat a point.

    Terms of known advertisers are held by `advprior.predictors.logit.RIDGE` nats over all points, as everywhere.
    """
    design, components = TextTerms(points, features), features.shape[1]
    ridge = np.concatenate(
        [
            np.full(len(points.terms), RIDGE / max(len(points.taste), 1)),
            np.full(2 * components, penalty / 1000),
            np.full(components**2, personal_penalty / 1000),
            np.full(points.shared_terms, RIDGE / max(len(points.taste), 1)),
        ]
    )
    return design.unpack(fit_logit(design, points.truth, ridge=ridge))
