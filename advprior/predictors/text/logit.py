"""The arithmetic of the text prior: a conditional logit whose view of an advertiser can be its text alone.

For a user with decayed purchases c [N] and an advertiser a with text features f_a [K] (principal components of
what the LLM makes of its name and catalog text), with f̄ = Σ c·f / (Σ c + ½) what the user's advertisers are like:

    known a:  Σ v_h·log(popularity_h(a) + ½) + v_own·log1p(c_a) + v_again·[c_a > 0] + v_known + w_known·f_a + f̄ᵀA f_a
    new a:    w_new·f_a + f̄ᵀA f_a

Fitted with advertisers withheld at random: in each training point a share of the known ones is made new, so
that ``w_new`` learns how popular an advertiser like this turns out to be, and the two kinds compete on one scale.
Convex; penalties keep 2·K + K² weights honest where advertisers are few.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from advprior.history import counts
from advprior.history.histories import Histories
from advprior.predictors.offset import SMOOTHING
from advprior.store.arrays import Bool, Double, Float, Int

OWN_HALF_LIFE = 365.0  # days
OWN_BACK_OFF = 0.5  # purchases that 'nothing in particular' counts for in a user's mean
FAR = -1e9  # logit of who is no candidate


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
        """The space of these encodings [N, H], NaN where a part is not known; no more than N - 1 components."""
        seen = encodings[:, ~np.isnan(encodings).all(0)]
        mean, spread = np.zeros(encodings.shape[1], np.float32), np.ones(encodings.shape[1], np.float32)
        some = ~np.isnan(encodings).all(0)
        mean[some], spread[some] = np.nanmean(seen, axis=0), np.nanstd(seen, axis=0) + 1e-6
        plain = cls(mean, spread, np.eye(0, dtype=np.float32))
        kept = min(components, len(encodings) - 1, encodings.shape[1])
        _, size, right = np.linalg.svd(plain.standard(encodings).astype(np.float64), full_matrices=False)
        scale = np.sqrt(len(encodings)) / np.maximum(size[:kept], 1e-9)
        return cls(mean, spread, (right[:kept].T * scale).astype(np.float32))

    def standard(self, encodings: Float) -> Float:
        """Standardised; what is not known is taken for the mean."""
        found: Float = np.nan_to_num((encodings - self.mean) / self.spread)
        return found

    def features(self, encodings: Float) -> Float:
        """Text features [N, K]."""
        found: Float = self.standard(encodings) @ self.directions
        return found


@dataclass(frozen=True)
class Weights:
    """What is fitted. ``known`` [terms], ``popular_known`` and ``popular_new`` [K], ``personal`` [K, K]."""

    known: Double
    popular_known: Double
    popular_new: Double
    personal: Double

    @classmethod
    def unpack(cls, flat: Double, terms: int, components: int) -> Weights:
        """From one vector."""
        a, b, c = terms, terms + components, terms + 2 * components
        return cls(flat[:a], flat[a:b], flat[b:c], flat[c:].reshape(components, components))

    def offset(self, terms: Float, features: Float, new: Bool) -> Float:
        """Everything but the personal part of the logits [P, N]; ``terms`` [T, P, N] are zero where ``new``."""
        known = np.tensordot(self.known.astype(np.float32), terms, 1)
        by_text = np.where(new, features @ self.popular_new, features @ self.popular_known)
        total: Float = (known + by_text).astype(np.float32)
        return total


@dataclass(frozen=True)
class Points:
    """P (user, moment) points to fit on.

    Attributes
    ----------
    terms : float32 [T, P, N]
    taste : float32 [P, K]
        What the user's advertisers are like.
    new, truth : bool [P, N], float32 [P, N]
        Truth rows sum to one.
    weight : float64 [P]
        Sums to one.
    candidate : bool [N]
        Has an event at all: a label on another is impossible, which says nothing of it.
    """

    terms: Float
    taste: Float
    new: Bool
    truth: Float
    weight: Double
    candidate: Bool


def taste(own: Float, features: Float) -> Float:
    """Mean text features [P, K] of decayed purchases [P, N]."""
    found: Float = (own @ features) / (own.sum(1, keepdims=True) + OWN_BACK_OFF)
    return found


def known_terms(popular: Float, own: Float, new: Bool) -> Float:
    """Terms [H + 3, P, N] of known advertisers from decayed purchases of all [H, P, N] and of the user [P, N]."""
    terms = [np.log(p + SMOOTHING) for p in popular]
    terms += [np.log1p(own), (own > 0).astype(np.float32), np.ones_like(own)]
    found: Float = (np.stack(terms) * ~new).astype(np.float32)
    return found


def popularity_at(histories: Histories, moments: Int, half_lives: tuple[float, ...], size: int) -> Float:
    """Decayed purchases of everyone [H, P, N], as of the start of each moment's week."""
    weeks, index = np.unique(moments // (7 * counts.DAY) * (7 * counts.DAY), return_inverse=True)
    return np.stack([counts.popularity(histories, weeks, h, size).astype(np.float32)[index] for h in half_lives])


def fit(points: Points, features: Float, penalty: float, personal_penalty: float, iterations: int = 60) -> Weights:
    """Weights by penalised likelihood; a penalty of 1 weighs a squared weight by 1/2000 nat a point."""
    from scipy.optimize import minimize

    terms, components = len(points.terms), features.shape[1]
    out = np.where(points.candidate, 0.0, FAR)
    weight = points.weight[:, None]
    fresh = points.new.astype(np.float32)

    def loss(flat: Double) -> tuple[float, Double]:
        w = Weights.unpack(flat, terms, components)
        # double from here on: a line search gives up on the noise of single precision
        logits = w.offset(points.terms, features, points.new) + out
        logits += (points.taste @ w.personal.astype(np.float32)) @ features.T
        logits -= logits.max(1, keepdims=True)
        probs = np.exp(logits)
        norm = probs.sum(1, keepdims=True)
        nll = -float(((logits - np.log(norm)) * points.truth * weight).sum(dtype=np.float64))
        residual = ((probs / norm - points.truth) * weight).astype(np.float32)
        by_new, by_all = (residual * fresh).sum(0), residual.sum(0)
        gradient = np.concatenate(
            [
                [float((residual * t).sum(dtype=np.float64)) for t in points.terms],
                (by_all - by_new) @ features + penalty * w.popular_known / 1000,
                by_new @ features + penalty * w.popular_new / 1000,
                (points.taste.T @ (residual @ features)).ravel() + personal_penalty * w.personal.ravel() / 1000,
            ]
        ).astype(np.float64)
        nll += 0.5 * penalty / 1000 * float((w.popular_known**2).sum() + (w.popular_new**2).sum())
        nll += 0.5 * personal_penalty / 1000 * float((w.personal**2).sum())
        return nll, gradient

    start = np.zeros(terms + 2 * components + components**2)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": iterations})
    return Weights.unpack(found.x, terms, components)
