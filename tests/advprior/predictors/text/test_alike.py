"""Terms of alike texts: what is withheld says nothing, and a new advertiser takes what its texts' neighbours have."""

from __future__ import annotations

import numpy as np
import pytest

from advprior.history.histories import Histories
from advprior.predictors.text.alike import TERMS, AlikeTexts, Texts, alike_terms, lift_terms
from advprior.predictors.text.closest import Closest
from advprior.predictors.text.logit import TextPoints, TextTerms
from advprior.predictors.text.similar import smoothed_lift
from advprior.predictors.text.wide_alike import WideTexts

P, N = 40, 8


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module", params=["arrays", "links"])
def texts(request: pytest.FixtureRequest) -> AlikeTexts:
    """Two groups of four advertisers that read alike."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.eye(2, dtype=np.float32), 4, axis=0) - 0.5
    vectors = unit(np.concatenate([group * 3, rng.normal(0, 0.5, (N, 4)).astype(np.float32)], axis=1))
    everyone = np.arange(N)
    return Texts.of(vectors, everyone) if request.param == "arrays" else WideTexts(Closest.of(vectors, everyone, 6))


@pytest.fixture(scope="module")
def histories() -> Histories:
    """Users of two kinds, each of one group."""
    rng = np.random.default_rng(1)
    advertiser = np.concatenate([rng.integers(0, 4, 5) + 4 * (user % 2) for user in range(P)])
    offsets = np.arange(P + 1) * 5
    return Histories(tuple(map(str, range(P))), ("",) * P, offsets, np.tile(np.arange(1, 6) * 10, P), advertiser)


def test_events_of_who_is_withheld_change_no_term(texts: AlikeTexts, histories: Histories) -> None:
    rng = np.random.default_rng(2)
    moments = rng.integers(15, 60, P)
    withheld = np.zeros((P, N), np.bool_)
    withheld[: P // 2, 1] = withheld[P // 2 :, 6] = True
    own = np.where(withheld, 0.0, rng.gamma(1.0, 1.0, (P, N))).astype(np.float32)
    lift = lift_terms(texts, histories, moments, own, withheld)
    row = np.flatnonzero(np.isin(histories.advertiser, (1,)))
    fewer = Histories(
        histories.users,
        histories.profiles,
        np.r_[0, np.cumsum(np.bincount(np.delete(histories.user_of_row, row), minlength=P))],
        np.delete(histories.time, row),
        np.delete(histories.advertiser, row),
    )
    without = lift_terms(texts, fewer, moments, own, withheld)
    # a user of one event fewer has the same moments: windows and folds are as they were
    np.testing.assert_allclose(lift[: P // 2], without[: P // 2], rtol=1e-4, atol=1e-5 * np.abs(lift).max())
    assert np.abs(lift[P // 2 :] - without[P // 2 :]).max() > 1e-3  # not withheld there: they count


def test_a_new_advertiser_is_as_popular_as_who_reads_alike(texts: AlikeTexts) -> None:
    popular = np.tile(np.r_[np.full(4, 100.0), np.full(4, 1.0)].astype(np.float32), (1, 1))
    new = np.zeros((1, N), np.bool_)
    new[0, [0, 7]] = True
    terms = alike_terms(texts, np.zeros((1, N), np.float32), popular * ~new, new, np.zeros((1, N), np.float32))
    assert terms.shape == (TERMS, 1, N)
    assert terms[0, 0, 0] > terms[0, 0, 7] + 1  # by some nats
    assert (terms[0][~new] == 0).all()
    assert (terms[1][new] == 0).all()
    assert (terms[2:] == 0).all()  # no history


def test_the_slope_of_alike_terms_is_the_derivative() -> None:
    rng = np.random.default_rng(3)
    points = TextPoints(
        rng.normal(size=(2, P, N)).astype(np.float32),
        rng.normal(size=(P, 2)).astype(np.float32),
        rng.random((P, N)) < 0.3,
        np.zeros((P, N), np.float32),
        np.ones(N, np.bool_),
        rng.normal(size=(TERMS, P, N)).astype(np.float32),
    )
    design = TextTerms(points, rng.normal(size=(N, 2)).astype(np.float32))
    residual, zero = rng.normal(size=(P, N)).astype(np.float32), np.zeros(len(design))
    base = design.logits(zero)
    numeric = [float((residual * (design.logits(row) - base)).sum()) for row in np.eye(len(design))]
    slope = design.slope(residual)
    np.testing.assert_allclose(slope, numeric, atol=1e-4 * np.abs(slope).max())


@pytest.mark.parametrize("fitted", [60, 45])
def test_links_to_all_are_the_arrays(fitted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tile by tile, with advertisers that came later among the fitted ones: every term is what the arrays say."""
    monkeypatch.setattr("advprior.predictors.text.closest.TILE", 13)
    monkeypatch.setattr("advprior.predictors.text.wide_alike.ROWS", 4)
    rng, size, points = np.random.default_rng(4), 60, 12
    vectors, places = unit(rng.normal(size=(size, 7)) + 0.3), rng.permutation(size)[:fitted]
    advertiser = rng.integers(0, fitted, 5 * P)
    histories = Histories(
        tuple(map(str, range(P))), ("",) * P, np.arange(P + 1) * 5, np.tile(np.arange(1, 6) * 10, P), advertiser
    )
    arrays, links = Texts.of(vectors, places), WideTexts(Closest.of(vectors, places, size))
    own = (rng.gamma(1.0, 1.0, (points, size)) * (rng.random((points, size)) < 0.1)).astype(np.float32)
    own[0] = 0
    new = rng.random((points, size)) < 0.2
    popular = rng.gamma(1.0, 5.0, (points, size)).astype(np.float32)
    together = [Texts.of(vectors[:fitted], np.arange(fitted)).together(histories)]
    together.append(WideTexts(Closest.of(vectors[:fitted], np.arange(fitted))).together(histories))
    terms = []
    for each, counted in zip((arrays, links), together, strict=True):
        lift = each.lift(counted).whole()
        terms.append(alike_terms(each, own, popular, new, lift.term(own)))
        np.testing.assert_allclose(each.lift(counted).term(own), lift.term(own), rtol=1e-4, atol=1e-5)
    for name, one, other in zip(("popular", "known", "mean", "top", "lift"), *terms, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(one).max(), err_msg=name)


def test_what_is_no_link_counts_by_its_mean() -> None:
    """Rows of the kernel sum to one however few the links are, and terms of links are what they are."""
    rng, size = np.random.default_rng(5), 50
    vectors = unit(rng.normal(size=(size, 6)))
    everyone = np.arange(size)
    closest = Closest.of(vectors, everyone, 8)
    links, arrays = WideTexts(closest), Texts.of(vectors, everyone)
    largest = np.sort(arrays.cosine, axis=1)[:, -8:]
    np.testing.assert_allclose(np.sort(closest.cosine, axis=1), largest, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(links.spread(np.ones((1, size), np.float32)), 1.0, rtol=1e-5)
    own = np.eye(size, dtype=np.float32)
    (mean, top), (exact, best) = links.mean_and_top(own), arrays.mean_and_top(own)
    index, row = closest.index, np.arange(size)[:, None]
    np.testing.assert_allclose(mean[row, index], exact[row, index], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(top[row, index], best[row, index], rtol=1e-4, atol=1e-6)


def test_rows_of_a_lift_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(6)
    kernel = rng.dirichlet(np.ones(9), 12).astype(np.float32)
    both = (lambda x: x.T @ x)((rng.random((30, 9)) < 0.3).astype(float))
    speaking, rows = np.arange(9) + 1, np.array([0, 5, 11])
    whole = smoothed_lift(kernel, both, speaking)
    np.testing.assert_allclose(smoothed_lift(kernel, both, speaking, rows), whole[rows], rtol=1e-4, atol=1e-6)
    users, pairs = np.diag(both), both - np.diag(np.diag(both))
    expected = np.outer(kernel @ users, kernel @ users) * pairs.sum() / users.sum() ** 2
    floor = 0.01 * expected[np.ix_(speaking, speaking)].mean()
    plain = np.log((kernel @ pairs @ kernel.T + floor) / (expected + floor))
    np.testing.assert_allclose(whole, plain, rtol=1e-4, atol=1e-5)
