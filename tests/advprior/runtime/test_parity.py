"""The same log-probabilities by two ways: rounding passes at any size, a real error at none."""

from __future__ import annotations

import numpy as np
import pytest

from advprior.runtime.parity import allowed_difference, largest_difference, require_parity, worst
from advprior.store.errors import AdvpriorError


def log_probs(smallest: float, rows: int = 40, size: int = 300) -> np.ndarray:
    """Rows of log-probabilities of which the least is about ``smallest``."""
    logits = np.random.default_rng(0).normal(0.0, 1.0, (rows, size)).astype(np.float32)
    logits *= -smallest / np.abs(logits).max()
    return logits - np.log(np.exp(logits.astype(np.float64)).sum(1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("smallest", [-3.0, -10.0, -20.0, -60.0])
def test_rounding_passes_and_a_real_error_does_not(smallest: float) -> None:
    expected = log_probs(smallest)
    # 1.07e-4 at log-probs of 10 to 20 is what a SASRec export was off by on a processor without AVX-512
    rounded = expected * np.float32(1 + 7e-6)
    assert require_parity(rounded, expected, "here")["parity"] > 0
    wrong = expected.copy()
    wrong[3, 7] += 0.01
    with pytest.raises(AdvpriorError, match="PRI004"):
        require_parity(wrong, expected, "here")


def test_the_difference_that_another_processor_gave_passes() -> None:
    expected = np.asarray([[-0.5, -3.0, -12.0]])
    facts = require_parity(np.add(expected, [[0, 0, 1.07e-4]]), expected, "here")
    assert facts["parity"] == pytest.approx(1.07e-4)
    assert facts["parity_allowed"] == pytest.approx(2.4e-4)


def test_what_is_not_finite_on_one_side_alone_is_refused() -> None:
    expected = np.asarray([-1.0, -np.inf])
    assert require_parity(expected, expected, "here")["parity"] == 0
    assert allowed_difference(expected) == allowed_difference([-1.0]), "infinity is no size"
    for broken in ([np.nan, -np.inf], [-1.0, -2.0], [-np.inf, -np.inf], [-1.0]):
        assert largest_difference(broken, expected) == np.inf
        with pytest.raises(AdvpriorError, match="PRI004"):
            require_parity(broken, expected, "here")


def test_the_worst_is_the_nearest_to_its_limit() -> None:
    near, far = {"parity": 9e-5, "parity_allowed": 1e-4}, {"parity": 2e-4, "parity_allowed": 1e-3}
    assert worst([far, near]) == {**near, "cases": 2}
