"""Terms of alike texts: what is withheld says nothing, and a new advertiser takes what its texts' neighbours have."""

from __future__ import annotations

import numpy as np
import pytest

from advprior.history.histories import Histories
from advprior.predictors.text.alike import TERMS, WIDEST, Texts, alike_terms, lift_terms, require_narrow
from advprior.predictors.text.logit import TextPoints, TextTerms
from advprior.store.errors import AdvpriorError

P, N = 40, 8


@pytest.fixture(scope="module")
def texts() -> Texts:
    """Two groups of four advertisers that read alike."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.eye(2, dtype=np.float32), 4, axis=0) - 0.5
    return Texts.of(np.concatenate([group * 3, rng.normal(0, 0.5, (N, 4)).astype(np.float32)], axis=1))


@pytest.fixture(scope="module")
def histories() -> Histories:
    """Users of two kinds, each of one group."""
    rng = np.random.default_rng(1)
    advertiser = np.concatenate([rng.integers(0, 4, 5) + 4 * (user % 2) for user in range(P)])
    offsets = np.arange(P + 1) * 5
    return Histories(tuple(map(str, range(P))), ("",) * P, offsets, np.tile(np.arange(1, 6) * 10, P), advertiser)


def test_events_of_who_is_withheld_change_no_term(texts: Texts, histories: Histories) -> None:
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


def test_a_new_advertiser_is_as_popular_as_who_reads_alike(texts: Texts) -> None:
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


def test_a_wide_catalog_is_refused() -> None:
    require_narrow(WIDEST)
    with pytest.raises(AdvpriorError, match="CFG002"):
        require_narrow(WIDEST + 1)
