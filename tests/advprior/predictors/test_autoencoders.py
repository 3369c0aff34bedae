"""Linear autoencoders: each closed form is the least of what it says that it minimises; counts by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advprior.predictors.autoencoders import FLOOR, ease_weights, gram, l3ae_weights, linear_term, scaled
from tests.advprior.history.test_histories import histories_of


def off_diagonal(matrix):
    return matrix - np.diag(np.diag(matrix))


@given(st.integers(0, 10**6), st.integers(2, 8), st.floats(0.1, 50), st.floats(0, 500))
@settings(max_examples=25, deadline=None)
def test_no_other_matrix_with_a_zero_diagonal_does_better(seed: int, size: int, ridge: float, pull: float) -> None:
    """The slope of ‖X − XB‖² + l·‖B‖² + e·‖B − C‖² is zero off the diagonal; without a pull it is EASE."""
    rng = np.random.default_rng(seed)
    events = (rng.random((12, size)) < 0.4).astype(np.float64)
    both, semantic = events.T @ events, off_diagonal(rng.normal(size=(size, size)))
    weights = l3ae_weights(both, semantic, ridge, pull)
    slope = both @ (weights - np.eye(size)) + ridge * weights + pull * (weights - semantic)
    scale = both.max() + ridge + pull
    np.testing.assert_allclose(off_diagonal(slope), 0.0, atol=1e-9 * scale)
    assert (np.diag(weights) == 0).all()
    np.testing.assert_allclose(l3ae_weights(both, semantic, ridge, 0.0), ease_weights(both, ridge), atol=1e-9)


def test_a_strong_pull_leaves_the_texts_and_no_text_leaves_the_events() -> None:
    both = np.asarray([[3.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 4.0]])
    semantic = ease_weights(np.asarray([[1.0, 0.5, 0.1], [0.5, 1.0, 0.2], [0.1, 0.2, 1.0]]), 1.0)
    np.testing.assert_allclose(l3ae_weights(both, semantic, 1.0, 1e9), semantic, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(l3ae_weights(both, 0 * semantic, 3.0, 7.0), ease_weights(both, 10.0), atol=1e-12)


def test_users_are_counted_once_whatever_their_events() -> None:
    histories = histories_of([[(0, 0), (1, 0), (2, 1)], [(0, 1)], []])
    assert gram(histories, 3).tolist() == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]


def test_the_term_by_hand() -> None:
    weights = scaled(np.asarray([[0.0, 0.5], [-1.5, 0.0]]))
    np.testing.assert_allclose(weights, [[0.0, 0.5], [-1.5, 0.0]])  # largest entries .5 and 1.5: 1 on average
    own = np.asarray([[np.e - 1, 0.0], [0.0, np.e - 1]], np.float32)
    np.testing.assert_allclose(np.exp(linear_term(own, weights)), [[FLOOR, 0.5 + FLOOR], [FLOOR, FLOOR]], rtol=1e-5)
    assert not scaled(np.zeros((2, 2))).any()
    assert scaled(np.zeros((0, 0))).shape == (0, 0)


@pytest.mark.parametrize("size", [1, 3])
def test_advertisers_without_any_event(size: int) -> None:
    weights = ease_weights(gram(histories_of([[]]), size))
    assert np.isfinite(weights).all()
    assert not weights.any()
