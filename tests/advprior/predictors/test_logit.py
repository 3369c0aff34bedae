"""The conditional logit: by hand arithmetic, against a general optimiser, and held by its ridge."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize

from advprior.predictors.logit import RIDGE, Dense, fit_logit, log_softmax, logit


def drawn(weights: list[float], points: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Terms at random, and choices of a conditional logit with ``weights``."""
    rng = np.random.default_rng(seed)
    terms = rng.normal(size=(len(weights), points, size)).astype(np.float32)
    choice = (np.tensordot(np.asarray(weights), terms, 1) + rng.gumbel(size=(points, size))).argmax(1)
    return terms, np.eye(size, dtype=np.float32)[choice]


def loss(weights: np.ndarray, terms: np.ndarray, truth: np.ndarray, ridge: float, centre: float) -> float:
    """The docstring's formula, written out in double precision."""
    logits = np.einsum("k,kpn->pn", weights, terms.astype(np.float64))
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return float(-(truth * log_probs).sum() + ridge / 2 * ((weights - centre) ** 2).sum())


def test_one_term_and_two_advertisers_by_hand() -> None:
    """The term marks one of two advertisers, which three of four points chose: the weight is log 3 without a ridge."""
    term = np.asarray([[[0, 1]] * 4], np.float32)
    truth = np.asarray([[0, 1], [0, 1], [0, 1], [1, 0]], np.float32)
    (free,) = fit_logit(term, truth, ridge=0)
    assert free == pytest.approx(np.log(3), rel=1e-3)
    # with one, the derivative 4 σ(w) - 3 + ridge (w - centre) is zero
    (held,) = fit_logit(term, truth, ridge=2.0, centre=0.5)
    assert 4 / (1 + np.exp(-held)) - 3 + 2.0 * (held - 0.5) == pytest.approx(0, abs=1e-3)
    assert 0.5 < held < free


def test_it_finds_what_a_general_optimiser_finds() -> None:
    terms, truth = drawn([1.5, -0.5, 0.0], 400, 7)
    truth[:50] *= 0.5  # a row's sum is the point's weight
    for ridge, centre in ((1e-6, 0.0), (RIDGE, 0.0), (20.0, 0.3)):
        expected = minimize(loss, np.zeros(3), (terms, truth, ridge, centre), method="BFGS").x
        np.testing.assert_allclose(fit_logit(terms, truth, ridge=ridge, centre=centre), expected, atol=2e-3)
    assert np.abs(fit_logit(terms, truth, ridge=1e6, centre=0.25) - 0.25).max() < 0.01


def test_it_finds_the_weights_that_made_the_choices() -> None:
    terms, truth = drawn([1.5, -0.7], 4000, 6)
    np.testing.assert_allclose(fit_logit(terms, truth), [1.5, -0.7], atol=0.1)


def test_slope_and_curvature_are_those_of_the_loss() -> None:
    terms, truth = drawn([0.5, -1.0, 0.2], 60, 5)
    design, weights, total = Dense(terms), np.asarray([0.3, 0.1, -0.4]), truth.sum(1)

    def slope(at: np.ndarray) -> np.ndarray:
        return design.slope(np.exp(log_softmax(design.logits(at))) - truth)

    numeric = approx_fprime(weights, loss, 1e-6, terms, truth, 0.0, 0.0)
    np.testing.assert_allclose(slope(weights), numeric, rtol=1e-3)
    curvature = design.curvature(np.exp(log_softmax(design.logits(weights))), total)
    steps = [(slope(weights + 0.01 * e) - slope(weights - 0.01 * e)) / 0.02 for e in np.eye(3)]
    np.testing.assert_allclose(curvature, np.stack(steps), rtol=1e-2, atol=1e-2 * np.abs(curvature).max())


def test_the_hessian_is_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    terms, truth = drawn([0.5, -1.0], 100, 5)
    mass = np.full((100, 5), 0.2, np.float32)
    whole = Dense(terms).curvature(mass, truth.sum(1))
    monkeypatch.setattr("advprior.predictors.logit.CELLS", 7 * 2 * 5)
    np.testing.assert_allclose(Dense(terms).curvature(mass, truth.sum(1)), whole, rtol=1e-5)


def test_the_ridge_keeps_terms_that_say_the_same_from_cancelling() -> None:
    """Three terms of one signal: without a ridge their weights fight over noise, with one they share."""
    rng = np.random.default_rng(1)
    signal = rng.normal(size=(300, 20))
    terms = np.stack([signal + 0.005 * rng.normal(size=signal.shape) for _ in range(3)]).astype(np.float32)
    truth = np.eye(20, dtype=np.float32)[(signal + rng.gumbel(size=signal.shape)).argmax(1)]
    free, held = fit_logit(terms, truth, ridge=0), fit_logit(terms, truth)
    assert np.abs(free).max() > 3
    assert np.abs(held).max() < 1
    for weights in (free, held):
        assert weights.sum() == pytest.approx(1.0, abs=0.15)


def test_nothing_to_fit_on_leaves_the_centre() -> None:
    empty = np.zeros((2, 0, 3), np.float32)
    assert fit_logit(empty, empty[0], centre=0.5).tolist() == [0.5, 0.5]


def test_terms_are_weighed_together() -> None:
    one, two = np.asarray([[1.0, 0.0]], np.float32), np.asarray([[0.0, 2.0]], np.float32)
    np.testing.assert_allclose(np.exp(logit([one, two], [2.0, 1.0])), [[0.5, 0.5]], rtol=1e-6)
