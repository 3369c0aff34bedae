"""Effects by hand, and as often wrong as they say, with few users and with many."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, ttest_ind

from ranking.experiment.effects import effect


def test_effects_by_hand() -> None:
    treated, control = np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0])
    result = effect(treated, control)
    assert result.difference.estimate == 2
    assert result.lift is not None
    assert result.lift.estimate == pytest.approx(1.0)
    # variances 4 and 1 of three users each; Satterthwaite: (5/3)² / ((4/3)² / 2 + (1/3)² / 2) = 2.941 degrees
    error, quantile = np.sqrt(5 / 3), 3.2187
    assert result.difference.high - 2 == pytest.approx(quantile * error, rel=1e-3)
    log_error = np.sqrt(4 / 3 / 16 + 1 / 3 / 4)  # equal parts: 4 degrees, 2.7764
    assert np.log1p(result.lift.high) - np.log(2) == pytest.approx(2.7764 * log_error, rel=1e-3)


def test_the_difference_is_welchs() -> None:
    rng = np.random.default_rng(0)
    treated, control = rng.gamma(2.0, size=30), rng.gamma(2.0, 1.5, size=50)
    welch = ttest_ind(treated, control, equal_var=False)
    result = effect(treated, control).difference
    assert result.p_value == pytest.approx(float(welch.pvalue), rel=1e-9)
    assert (result.low, result.high) == pytest.approx(tuple(welch.confidence_interval()), rel=1e-9)


@pytest.mark.parametrize("users", [2, 3, 10, 200])
def test_a_null_is_called_an_effect_as_often_as_said(users: int) -> None:
    """Normal quantiles announce 18 % at two users an arm."""
    rng = np.random.default_rng(users)
    pairs = rng.normal(10.0, 1.0, size=(1000, 2, users))
    results = [effect(treated, control) for treated, control in pairs]
    for p_values in (
        [r.difference.p_value for r in results],
        [r.lift.p_value for r in results if r.lift is not None],
    ):
        assert len(p_values) == 1000
        assert sum(p < 0.05 for p in p_values) <= binom.ppf(0.9999, 1000, 0.05)


def test_an_interval_and_its_p_value_are_of_one_quantity() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        result = effect(rng.exponential(1.3, size=40), rng.exponential(size=40), (60.0, 60.0))
        for of in (result.difference, result.lift):
            assert of is not None
            assert (of.low > 0 or of.high < 0) == (of.p_value < 0.05)
            assert (of.anytime_low > 0 or of.anytime_high < 0) == (of.anytime_p_value < 0.05)
            assert of.anytime_low <= of.low <= of.estimate <= of.high <= of.anytime_high


def test_no_lift_without_positive_means_and_no_spread_without_variance() -> None:
    zeros, ones = np.zeros(5), np.ones(5)
    assert effect(ones, zeros).lift is None
    assert "at any look" in effect(ones, zeros).text()
    sure = effect(ones, ones)
    assert sure.difference.p_value == sure.difference.anytime_p_value == 1.0
    assert effect(2 * ones, ones).difference.p_value == 0.0
