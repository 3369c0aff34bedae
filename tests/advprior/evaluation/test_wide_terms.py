"""Terms over a wide catalog: without an array of advertisers × advertisers they say what it says."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advprior.evaluation.room import require_room
from advprior.evaluation.terms import SEQUENCE_PRIOR, Terms, sequence_odds
from advprior.history.counts import DAY
from advprior.history.histories import Histories
from advprior.predictors import neighbours
from advprior.predictors.autoencoders import gram
from advprior.predictors.neighbours import similarity
from advprior.predictors.offset import SMOOTHING
from advprior.store.errors import AdvpriorError
from tests.advprior.history.test_histories import histories_of

SIZE = 5
PAST = st.lists(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, SIZE - 1)), max_size=6, unique=True).map(sorted),
    min_size=1,
    max_size=6,
).filter(lambda users: any(users))


def plain_odds(past: Histories) -> np.ndarray:
    """Occasion by occasion, as an array."""
    pairs = np.zeros((SIZE, SIZE))
    for user in range(len(past)):
        rows = past.rows(user)
        time, advertiser = past.time[rows], past.advertiser[rows]
        moments = np.unique(time)
        for earlier, later in pairwise(moments):
            for first in advertiser[time == earlier]:
                for second in advertiser[time == later]:
                    pairs[first, second] += 1
    share = (pairs.sum(0) + SMOOTHING) / (pairs.sum() + SMOOTHING * SIZE)
    return np.log((pairs + SEQUENCE_PRIOR * share) / (pairs.sum(1, keepdims=True) + SEQUENCE_PRIOR) / share)


@settings(max_examples=30, deadline=None)
@given(users=PAST)
def test_sequence_and_cosines_are_those_of_the_arrays(users: list[list[tuple[int, int]]]) -> None:
    past = histories_of(users)
    shares = np.random.default_rng(0).dirichlet(np.ones(SIZE), 4).astype(np.float32)
    shares[0] = 0  # nobody came before
    expected = shares.astype(np.float64) @ plain_odds(past)
    np.testing.assert_allclose(sequence_odds(past, SIZE).of(shares), expected, rtol=1e-4, atol=1e-6)
    both = gram(past, SIZE)
    norm = np.sqrt(np.maximum(np.diag(both), 1))
    cosine = both / norm / norm[:, None]
    np.fill_diagonal(cosine, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours.counts, "CELLS", 2 * SIZE)  # two users at a time
        np.testing.assert_allclose(similarity(past, SIZE), cosine, rtol=1e-6)


def test_terms_of_a_wide_catalog_are_those_of_a_narrow_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    past = histories_of([[(int(t), int(rng.integers(SIZE))) for t in range(6)] for _ in range(12)])
    some = np.arange(12)
    narrow = Terms(past, 9 * DAY, SIZE, 0)(some)
    monkeypatch.setattr("advprior.evaluation.terms.WIDE", 0)
    monkeypatch.setattr("advprior.predictors.autoencoders.WIDEST", 0)
    terms = Terms(past, 9 * DAY, SIZE, 0)
    for wide in (terms(some), terms.of(past)(some)):
        assert set(narrow) - set(wide) == {"ease"}
        for name, term in wide.items():
            np.testing.assert_allclose(term, narrow[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_what_does_not_fit_is_refused_beforehand() -> None:
    with pytest.raises(AdvpriorError, match="PRI084") as refused:
        require_room("answers of everyone", 1e9, "--users 10", where="tables")
    assert "1,000,000,000 GB" in str(refused.value)
