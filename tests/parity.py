"""Two computations of the same log-probabilities compared as the code compares them: relative to their size.

Every processor, thread count and batch shape adds up in another order, so nothing here is compared bit by bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from advprior.runtime.parity import allowed_difference, largest_difference


def assert_same_log_probs(actual: Any, expected: Any, message: str = "") -> None:
    """Equal to the rounding that `advprior.runtime.parity` allows."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, message
    difference, allowed = largest_difference(actual, expected), allowed_difference(expected)
    assert difference <= allowed, f"{message} {difference:.2e} apart, {allowed:.1e} allowed".strip()


def assert_other_log_probs(actual: Any, expected: Any, message: str = "") -> None:
    """Different by more than rounding: at least ten times what it may be."""
    difference, allowed = largest_difference(actual, expected), allowed_difference(expected)
    assert difference > 10 * allowed, f"{message} {difference:.2e} apart, which may be rounding".strip()


def assert_distributions(log_probs: Any, axis: int = -1) -> None:
    """Probabilities sum to one over ``axis``: what each term rounds by, relative to itself, adds up to no more."""
    sums = np.exp(np.asarray(log_probs, np.float64)).sum(axis)
    np.testing.assert_allclose(sums, 1.0, rtol=allowed_difference(log_probs))
