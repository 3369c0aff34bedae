"""The anytime-valid interval keeps its promise over many daily looks, where the fixed-horizon one does not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from ranking.experiment.anytime import half_width, mixture_variance, p_value

DAYS, REPLAYS = 60, 400


def looks(shift: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Daily estimates of a difference of means and their standard errors, [replays, days]; users join evenly."""
    rng = np.random.default_rng(seed)
    arms = rng.exponential(size=(2, REPLAYS, DAYS, 40))  # skewed, as spending is
    arms[1] += shift
    users = 40.0 * np.arange(1, DAYS + 1)
    mean = arms.sum(axis=3).cumsum(axis=2) / users
    square = (arms**2).sum(axis=3).cumsum(axis=2) / users
    variance = ((square - mean**2) / (users - 1)).sum(axis=0)
    return mean[1] - mean[0], np.sqrt(variance)


def widths(errors: np.ndarray, mixture: float) -> np.ndarray:
    return np.vectorize(lambda error: half_width(error, mixture))(errors)


def test_a_null_is_hardly_ever_announced_and_the_fixed_interval_often_is() -> None:
    estimates, errors = looks(0.0, seed=0)
    mixture = mixture_variance(math.sqrt(2 / (40 * DAYS)))
    announced = int((np.abs(estimates) > widths(errors, mixture)).any(axis=1).sum())
    assert announced <= binom.ppf(0.999, REPLAYS, 0.05)
    peeking = (np.abs(estimates) > 1.96 * errors).any(axis=1).mean()
    assert peeking > 0.2  # what the sequence is for


def test_an_effect_is_announced_and_covered() -> None:
    shift = 0.15
    estimates, errors = looks(shift, seed=1)
    width = widths(errors, mixture_variance(math.sqrt(2 / (40 * DAYS))))
    assert (np.abs(estimates) > width).any(axis=1).mean() > 0.8
    missed = int((np.abs(estimates - shift) > width).any(axis=1).sum())
    assert missed <= binom.ppf(0.999, REPLAYS, 0.05)


@pytest.mark.parametrize("estimate", [0.01, 0.2, -0.5])
def test_interval_and_p_value_agree(estimate: float) -> None:
    mixture = mixture_variance(0.1)
    for error in (0.3, 0.1, 0.02):
        assert (abs(estimate) > half_width(error, mixture)) == (p_value(estimate, error, mixture) < 0.05)


def test_nothing_can_be_said_without_an_error() -> None:
    assert half_width(math.inf, 1.0) == math.inf
    assert p_value(1.0, math.inf, 1.0) == 1.0
    assert half_width(0.0, 1.0) == 0.0
    assert p_value(0.0, 0.0, 1.0) == 1.0
