"""A conditional logit over terms: how the controls and the blends weigh what they know.

Fitted by Newton's method: with a few dozen weights the Hessian is one small matrix product, and a handful of steps
reach the optimum where a quasi-Newton method takes a hundred passes over the terms.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from advprior.predictors.base import Float, log_softmax

Array = npt.NDArray[np.float64]
STEPS = 30
ENOUGH = 1e-6  # nats a target


def fit_logit(
    terms: Float, truth: Float, *, ridge: npt.ArrayLike = 1.0, centre: npt.ArrayLike = 0.0, start: Array | None = None
) -> Array:
    """Weights [K] of ``softmax(Σ w·term)`` by penalised likelihood.

    Parameters
    ----------
    terms : float32 [K, P, N]
    truth : float32 [P, N]
        Credits; a row's sum is the row's weight.
    ridge : float or [K]
        Of ``Σ ridge / 2 · (w − centre)²``, in nats over all of ``truth``: enough labels outweigh it.
    centre : float or [K]
        Where weights stay that no label speaks for.
    start : float64 [K], optional
        Weights of a fit on other labels, to save steps; the optimum does not depend on it.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> truth = np.eye(3, dtype=np.float32)[rng.choice(3, 4000, p=[0.6, 0.3, 0.1])]
    >>> term = np.broadcast_to(np.log([0.6, 0.3, 0.1]).astype(np.float32), (1, 4000, 3))
    >>> round(float(fit_logit(term, truth)[0]), 1)
    1.0
    """
    count, points, size = terms.shape
    flat = np.ascontiguousarray(terms, np.float32).reshape(count, points * size)
    total, row = max(float(truth.sum()), 1.0), truth.sum(1, keepdims=True)
    middle, stiff = (np.broadcast_to(np.asarray(x, np.float64), (count,)) for x in (centre, ridge))

    def loss(weights: Array) -> tuple[float, Float]:
        logits = (weights.astype(np.float32) @ flat).reshape(points, size)
        log_probs = log_softmax(logits)
        penalty = float((stiff * (weights - middle) ** 2).sum()) / 2
        return (penalty - float((log_probs * truth).sum(dtype=np.float64))) / total, log_probs

    weights: Array = middle.copy() if start is None else start.copy()
    value, log_probs = loss(weights)
    for _ in range(STEPS):
        mass = np.exp(log_probs) * row
        slope = flat @ (mass - truth).ravel() + stiff * (weights - middle)
        # Σ over points of the terms' covariance under the probabilities
        mean = np.stack([(flat[k].reshape(points, size) * mass).sum(1) for k in range(count)])
        curve = (flat * mass.ravel()) @ flat.T - (mean / np.maximum(row[:, 0], 1e-12)) @ mean.T
        curve = curve.astype(np.float64) + np.diag(stiff + 1e-6 * total)
        step = np.linalg.solve(curve, slope.astype(np.float64))
        scale = 1.0
        while True:
            trial, trial_log_probs = loss(weights - scale * step)
            if trial <= value or scale < 1e-3:
                break
            scale /= 2
        if not trial < value:
            break
        gain, value = value - trial, trial
        weights, log_probs = weights - scale * step, trial_log_probs
        if gain < ENOUGH:
            break
    return weights


def logit(terms: Sequence[Float], weights: npt.ArrayLike) -> Float:
    """Log-probs [P, N] of terms weighed together."""
    total = np.zeros(terms[0].shape)
    for term, weight in zip(terms, np.asarray(weights, np.float64), strict=True):
        total += weight * term
    return log_softmax(total)
