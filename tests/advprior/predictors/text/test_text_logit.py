"""The text prior's terms: what is never held as one array says the same as if it were."""

from __future__ import annotations

import numpy as np
import pytest

from advprior.predictors.logit import Dense, fit_logit
from advprior.predictors.text.logit import Space, TextPoints, TextTerms, fit, known_terms, taste

P, N, K = 60, 9, 2


@pytest.fixture(scope="module")
def case() -> tuple[TextPoints, np.ndarray, np.ndarray]:
    """Points, features, and every term of the formula written out [T + 2·K + K², P, N]."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(N, K)).astype(np.float32)
    own = (rng.gamma(1.0, 2.0, (P, N)) * (rng.random((P, N)) < 0.3)).astype(np.float32)
    new = rng.random((P, N)) < 0.3
    popular = rng.gamma(2.0, 3.0, (2, P, N)).astype(np.float32)
    truth = rng.dirichlet(np.ones(N), P).astype(np.float32) / P
    points = TextPoints(known_terms(popular, own * ~new, new), taste(own, features), new, truth, np.ones(N, np.bool_))
    by_text = [np.where(mask, features[:, k], 0) for mask in (~new, new) for k in range(K)]
    personal = [np.outer(points.taste[:, i], features[:, j]) for i in range(K) for j in range(K)]
    return points, features, np.concatenate([points.terms, np.stack(by_text + personal)]).astype(np.float32)


def test_terms_are_those_of_the_formula(case: tuple) -> None:
    points, features, written_out = case
    design, dense = TextTerms(points, features), Dense(written_out)
    assert len(design) == len(dense) == 5 + 2 * K + K * K
    rng = np.random.default_rng(1)
    weights, residual = rng.normal(size=len(design)), rng.normal(size=(P, N)).astype(np.float32)
    for ours, theirs in (
        (design.logits(weights), dense.logits(weights)),
        (design.slope(residual), dense.slope(residual)),
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_both_ways_to_fit_end_at_the_same_optimum(case: tuple) -> None:
    points, features, written_out = case
    fitted = fit(points, features, penalty=3.0, personal_penalty=1.0)
    ridge = np.concatenate([np.full(5, 1 / P), np.full(2 * K, 3e-3), np.full(K * K, 1e-3)])
    expected = fit_logit(written_out, points.truth, ridge=ridge)
    flat = np.concatenate([fitted.known, fitted.popular_known, fitted.popular_new, fitted.personal.ravel()])
    np.testing.assert_allclose(flat, expected, atol=0.02 * np.abs(expected).max())


def test_an_advertiser_without_an_event_takes_no_part(case: tuple) -> None:
    points, features, _ = case
    candidate = np.arange(N) > 0
    barred = TextTerms(TextPoints(points.terms, points.taste, points.new, points.truth, candidate), features)
    logits = barred.logits(np.zeros(len(barred)))
    assert (logits[:, 0] < -1e8).all()
    assert (logits[:, 1:] == 0).all()


def test_features_have_mean_square_one_and_the_unknown_is_the_mean() -> None:
    rng = np.random.default_rng(0)
    encodings = rng.normal(size=(30, 6)).astype(np.float32)
    encodings[:5, 3:] = np.nan
    space = Space.of(encodings, 4)
    np.testing.assert_allclose((space.features(encodings) ** 2).mean(0), 1.0, rtol=1e-4)
    assert (space.standard(encodings)[:5, 3:] == 0).all()


def test_the_space_of_many_advertisers_is_that_of_few_up_to_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    encodings = (rng.normal(size=(60, 12)) * rng.uniform(1, 5, 12)).astype(np.float32)
    encodings[::3, 6:] = np.nan  # advertisers without a text
    whole = Space.of(encodings, 4)
    for name, value in (("WIDE", 0), ("ROWS", 7), ("COLUMNS", 5)):
        monkeypatch.setattr(f"advprior.predictors.text.logit.{name}", value)
    parts = Space.of(encodings, 4)
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(parts.spread, whole.spread, rtol=1e-5)
    ours, theirs = parts.features(encodings), whole.features(encodings)
    signs = np.sign((ours * theirs).sum(0))
    np.testing.assert_allclose(ours * signs, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())
