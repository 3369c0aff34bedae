"""Intervals cover zero for equal arms and find a planted difference."""

from __future__ import annotations

import numpy as np

from advprior.evaluation.intervals import interval as bounds
from advprior.evaluation.intervals import resample


def paired(differences: np.ndarray, weights: np.ndarray, of: np.ndarray, replicates: int, seed: int) -> tuple:
    drawn, weight = resample([differences, weights], replicates=replicates, seed=seed)
    with np.errstate(invalid="ignore"):
        mean = differences.sum(0) / weights.sum(0)[of]
        values = np.vstack([mean, drawn / weight[:, of]])[None]
        return mean, *bounds(values, np.zeros_like(values), (differences != 0).sum(0))


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


def test_three_seeds_vary_as_another_three_would() -> None:
    """Of equal arms, luck alone: three seeds against three, against one run that has none, against two of their own."""
    rng = np.random.default_rng(2)
    covered = dict.fromkeys(((3, 3), (3, 1), (3, 2)), 0)
    for _ in range(300):
        of_users = rng.normal(0, 0.2, 101)
        of_users[1:] += of_users[0]  # replicates stand about what was measured
        for arm_seeds, baseline_seeds in covered:
            arm = of_users + rng.normal(size=(arm_seeds, 1))
            baseline = rng.normal(size=(baseline_seeds, 1)) * (baseline_seeds > 1) + np.zeros(101)
            low, high = bounds(arm[:, :, None], baseline[:, :, None], [200])
            covered[arm_seeds, baseline_seeds] += int(low[0] <= 0 <= high[0])
    # 285 expected, standard deviation 3.8; drawn again with replacement, three seeds covered 77 %
    assert all(270 <= count <= 300 for count in covered.values()), covered
