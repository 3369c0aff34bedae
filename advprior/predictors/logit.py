"""The conditional logit: how much each term of a user and an advertiser counts, fitted on what users chose.

One fit serves habit and drift, the text prior, and the controls and blends of an evaluation. For a point p (a user at a
time) and N advertisers, with terms x and weights w::

    P(a | p) = exp(w · x[p, a]) / Σ_b exp(w · x[p, b])
    loss(w)  = -Σ_p Σ_a truth[p, a] · log P(a | p)  +  Σ_k ridge[k] / 2 · (w[k] - centre[k])²

(McFadden 1974, "Conditional logit analysis of qualitative choice behavior".) The ridge is a normal prior on the
weights. It is needed: terms such as popularity at three half-lives are nearly the same numbers, and without it the fit
returns weights like 12, -57 and 46, which cancel on the labels of the fit and not on later ones.

The loss is convex. With a few dozen weights its Hessian is one small matrix product: Newton's method reaches the
optimum in a handful of passes over the terms, where a quasi-Newton method takes a hundred; terms of a wide catalog come
as `Terms`, which need no array. For terms that are held in neither way (the text prior's, whose Hessian costs more than
the passes it saves) it is scipy's L-BFGS-B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from advprior.history.targets import Targets
from advprior.predictors.terms import Moments, Terms, TermSums
from advprior.store.arrays import Double, Float
from advprior.store.progress import Progress

RIDGE = 1.0  # nats by which a weight that is off its centre by √2 is held back: a normal prior of variance 1
STEPS = 30  # of Newton's method
PASSES = 60  # of L-BFGS-B
ENOUGH = 1e-6  # nats a target: a step that promises less is the last one of Newton's method
CELLS = 8_000_000  # of all terms at once, for the Hessian


class Design(Protocol):
    """Terms that are linear in K weights, however they are stored: [P, N] logits, and how they move with a weight."""

    def __len__(self) -> int:
        """K."""

    def logits(self, weights: Double) -> npt.NDArray[Any]:
        """``Σ w·x`` [P, N]."""

    def slope(self, residual: Float) -> Double:
        """``Σ_p Σ_a residual·x`` [K] of a residual [P, N]: the gradient of the loss."""


class Dense:
    """Terms held as one array.

    Parameters
    ----------
    terms : float32 [K, P, N]
    offset : float32 [P, N], optional
        Added to the logits, by no weight.
    """

    def __init__(self, terms: Float, offset: Float | None = None) -> None:
        shape: tuple[int, int, int] = terms.shape  # type: ignore[assignment]
        self._count, self._points, self._size = shape
        self._flat = np.ascontiguousarray(terms, np.float32).reshape(self._count, -1)
        self._offset = offset

    def __len__(self) -> int:
        return self._count

    def logits(self, weights: Double) -> Float:
        """See `Design`."""
        logits: Float = (weights.astype(np.float32) @ self._flat).reshape(self._points, self._size)
        return logits if self._offset is None else logits + self._offset

    def slope(self, residual: Float) -> Double:
        """See `Design`."""
        return (self._flat @ residual.ravel()).astype(np.float64)

    def curvature(self, mass: Float, total: Float) -> Double:
        """Hessian of the loss [K, K]: the terms' covariance under ``mass`` [P, N], whose rows sum to ``total`` [P]."""
        out = np.zeros((self._count, self._count))
        step = max(CELLS // max(self._count * self._size, 1), 1)
        for start in range(0, self._points, step):
            part = mass[start : start + step]
            flat = self._flat[:, start * self._size : (start + len(part)) * self._size]
            weighed = flat * part.ravel()
            mean = weighed.reshape(self._count, *part.shape).sum(2)
            out += weighed @ flat.T - (mean / np.maximum(total[start : start + step], 1e-12)) @ mean.T
        return out


def fit_logit(
    terms: Float | Terms | Design,
    truth: Float | Targets,
    *,
    ridge: npt.ArrayLike = RIDGE,
    centre: npt.ArrayLike = 0.0,
    start: Double | None = None,
) -> Double:
    """Weights [K] by penalised likelihood.

    Parameters
    ----------
    terms : float32 [K, P, N], Terms, or Design
    truth : float32 [P, N], or Targets
        What was chosen; a point's sum is the weight of the point, so one without a target says nothing.
    ridge : float or [K]
        In nats over all of ``truth``: enough labels outweigh it. 0 leaves a weight free.
    centre : float or [K]
        Where weights stay that no label speaks for.
    start : float64 [K], optional
        Where the search starts, to save steps; the optimum does not depend on it.

    Returns
    -------
    float64 [K]

    Examples
    --------
    Two of three users took the second of two advertisers, which is the only one that the term marks; without a ridge
    the weight is the log-odds, and with one it is pulled to the centre:

    >>> term = np.array([[[0, 1], [0, 1], [0, 1]]], np.float32)
    >>> truth = np.array([[0, 1], [0, 1], [1, 0]], np.float32)
    >>> fit_logit(term, truth, ridge=0).round(3).tolist(), round(float(np.log(2)), 3)
    ([0.693], 0.693)
    >>> fit_logit(term, truth).round(2).tolist()
    [0.29]
    """
    middle, stiff = (np.broadcast_to(np.asarray(x, np.float64), (len(terms),)).copy() for x in (centre, ridge))
    targets = truth if isinstance(truth, Targets) else Targets.from_dense(truth)
    first = middle if start is None else np.asarray(start, np.float64)
    if isinstance(terms, Terms):
        return _newton(_SparseLoss(TermSums(terms, targets), targets, stiff, middle), first)
    design: Design = Dense(terms) if isinstance(terms, np.ndarray) else terms
    loss = _Loss(design, targets, stiff, middle)
    if isinstance(design, Dense):
        return _newton(loss, first)
    from scipy.optimize import minimize

    with Progress(PASSES, "fit weights", "pass at most") as progress:
        result = minimize(
            loss.with_slope,
            first,
            jac=True,
            method="L-BFGS-B",
            callback=lambda _: progress.update(),
            options={"maxiter": PASSES},
        )
    weights: Double = result.x
    return weights


@dataclass(frozen=True)
class _Loss:
    """The penalised loss in nats a target."""

    design: Design
    truth: Targets
    ridge: Double
    centre: Double

    @cached_property
    def row(self) -> Double:
        """Weight of every point [P, 1]."""
        return self.truth.totals[:, None]

    @cached_property
    def total(self) -> float:
        """Weight of all points."""
        return float(self.truth.value.sum(dtype=np.float64)) or 1.0

    def __call__(self, weights: Double) -> tuple[float, Float]:
        """The loss, and what each point expects of each advertiser [P, N].

        In double precision inside: a line search gives up on the noise of single precision.
        """
        logits = self.design.logits(weights)
        logits = logits.astype(np.float64, copy=False) - logits.max(axis=1, keepdims=True)
        chosen = float(self.truth.value @ logits[self.truth.point, self.truth.index])
        np.exp(logits, out=logits)
        norm = logits.sum(1, keepdims=True)
        loss = float((self.row * np.log(norm)).sum()) - chosen
        loss += float((self.ridge * (weights - self.centre) ** 2).sum()) / 2
        logits *= self.row / norm
        return loss / self.total, logits.astype(np.float32)

    def slope(self, weights: Double, mass: Any) -> Double:
        """Gradient [K] of the loss, not divided by the total; ``mass`` [P, N] is what a call told."""
        residual = mass.copy()
        residual[self.truth.point, self.truth.index] -= self.truth.value
        return self.design.slope(residual) + self.ridge * (weights - self.centre)

    def curvature(self, mass: Any) -> Double:
        """Hessian [K, K] of the loss without the ridge, not divided by the total."""
        assert isinstance(self.design, Dense)
        return self.design.curvature(mass, self.row[:, 0].astype(np.float32))

    def with_slope(self, weights: Double) -> tuple[float, Double]:
        """The loss and its gradient [K]."""
        value, mass = self(weights)
        return value, self.slope(weights, mass) / self.total


@dataclass(frozen=True)
class _SparseLoss:
    """As `_Loss`, of terms that are never held as one array."""

    sums: TermSums
    truth: Targets
    ridge: Double
    centre: Double

    @cached_property
    def total(self) -> float:
        """Weight of all points."""
        return float(self.truth.value.sum(dtype=np.float64)) or 1.0

    def __call__(self, weights: Double) -> tuple[float, Moments]:
        """The loss, and moments of the terms under the weights."""
        moments = self.sums(weights)
        loss = float(self.truth.totals @ moments.log_norm) - float(weights @ self.sums.chosen)
        loss += float((self.ridge * (weights - self.centre) ** 2).sum()) / 2
        return loss / self.total, moments

    def slope(self, weights: Double, moments: Any) -> Double:
        """Gradient [K] of the loss, not divided by the total."""
        slope: Double = self.truth.totals @ moments.first - self.sums.chosen + self.ridge * (weights - self.centre)
        return slope

    def curvature(self, moments: Any) -> Double:
        """Hessian [K, K] of the loss without the ridge, not divided by the total."""
        totals = self.truth.totals
        weighed = moments.first * totals[:, None]
        curvature: Double = np.tensordot(totals, moments.second, 1) - weighed.T @ moments.first
        return curvature


def _newton(loss: _Loss | _SparseLoss, weights: Double) -> Double:
    """The optimum by Newton's method, halving steps that lead uphill."""
    value, mass = loss(weights)
    for _ in range(STEPS):
        # what no label moves is left where it is: the least curvature is not zero
        curvature = loss.curvature(mass) + np.diag(loss.ridge + 1e-6 * loss.total)
        slope = loss.slope(weights, mass)
        step, scale = np.linalg.solve(curvature, slope), 1.0
        if float(slope @ step) / (2 * loss.total) < ENOUGH:
            # taken unseen: the slope is exact where differences of the loss drown in rounding
            return weights - step
        trial, mass = loss(weights - step)
        while trial > value and scale >= 1e-3:
            scale /= 2
            trial, mass = loss(weights - scale * step)
        if not trial < value:
            break
        value, weights = trial, weights - scale * step
    return weights


def logit(terms: Sequence[Float], weights: npt.ArrayLike) -> Float:
    """Log-probs [P, N] of terms [P, N] weighed together."""
    total = np.zeros(terms[0].shape)
    for term, weight in zip(terms, np.asarray(weights, np.float64), strict=True):
        total += weight * term
    return log_softmax(total)


def log_softmax(logits: npt.NDArray[Any]) -> Float:
    """Numerically safe log-softmax over the last axis, float32.

    >>> np.exp(log_softmax(np.log([[1.0, 3.0]]))).round(2).tolist()
    [[0.25, 0.75]]
    """
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    log_probs: Float = shifted.astype(np.float32)
    return log_probs


def add_offset(network: Float, offset: Float) -> Float:
    """``log_softmax(network + offset)`` over the last axis, in place where it can: the arrays are large."""
    logits = network + offset
    logits -= logits.max(axis=-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True, dtype=np.float64)).astype(np.float32)
    return logits
