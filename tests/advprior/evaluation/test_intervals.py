"""Intervals cover zero for equal arms and find a planted difference."""

from __future__ import annotations

import numpy as np

from advprior.evaluation.intervals import interval as bounds
from advprior.evaluation.intervals import resample, seed_shares


def paired(differences: np.ndarray, weights: np.ndarray, of: np.ndarray, replicates: int, seed: int) -> tuple:
    drawn, weight = resample([differences, weights], replicates=replicates, seed=seed)
    with np.errstate(invalid="ignore"):
        return differences.sum(0) / weights.sum(0)[of], *bounds(drawn / weight[:, of])


def interval(differences: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    weights = np.ones((len(differences), 1))
    found = paired(differences[:, None], weights, np.asarray([0]), replicates=300, seed=seed)
    return tuple(float(x[0]) for x in found)


def test_equal_arms_cover_zero_at_their_rate() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        _, low, high = interval(rng.normal(size=150), seed=trial)
        covered += low <= 0 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_a_planted_difference_is_found() -> None:
    noise = np.random.default_rng(1).normal(size=1000)
    differences = noise - noise.mean() + 0.3
    mean, low, high = interval(differences)
    np.testing.assert_allclose(mean, 0.3)
    assert 0 < low < 0.3 < high
    np.testing.assert_allclose(high - low, 2 * 1.96 / np.sqrt(1000), rtol=0.2)
    assert interval(differences) == (mean, low, high)


def test_segments_are_ratios_and_an_empty_one_is_nothing() -> None:
    weights = np.asarray([[1.0, 0.0, 0.0], [1.0, 0.5, 0.0], [1.0, 1.0, 0.0]])
    differences = np.stack([[3.0, 0.0, 0.0], [0.0, 0.5, 2.0], [0.0, 0.0, 0.0]], axis=1)
    mean, low, high = paired(differences, weights, np.arange(3), replicates=200, seed=0)
    np.testing.assert_allclose(mean[:2], [1.0, 2.5 / 1.5])
    assert np.isnan([mean[2], low[2], high[2]]).all()
    assert (low[:2] <= mean[:2]).all()
    assert (mean[:2] <= high[:2]).all()


def test_the_same_users_are_drawn_for_all() -> None:
    one = np.random.default_rng(0).normal(size=(50, 2))
    first, second = resample([one, 3 * one], replicates=40, seed=1)
    np.testing.assert_allclose(second, 3 * first)
    (alone,) = resample([one], replicates=40, seed=1)
    np.testing.assert_array_equal(alone, first)


def test_seeds_are_drawn_in_their_shares() -> None:
    shares = seed_shares(3, replicates=3000, seed=0)
    np.testing.assert_allclose(shares.sum(1), 1.0)
    np.testing.assert_allclose(shares.mean(0), 1 / 3, atol=0.02)
    # the share of one of three has the variance of a mean of three draws: 1/3 · 2/3 / 3
    np.testing.assert_allclose(shares.var(0), 2 / 27, rtol=0.1)
    assert (seed_shares(1, replicates=5, seed=0) == 1).all()
