"""Places kept for new advertisers: they get them, and nothing else about a prior changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advprior.pipeline.fit import read_settings
from advprior.predictors.logit import log_softmax
from advprior.predictors.text.places import FIRST, with_places
from advprior.store.errors import AdvpriorError


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(0, 9), st.integers(0, FIRST))
def test_the_likeliest_new_ones_get_their_places_and_the_rest_stays(seed, size, count, places) -> None:
    rng = np.random.default_rng(seed)
    prior = log_softmax(rng.normal(0, 3, (4, size)))
    new = np.zeros(size, np.bool_)
    new[rng.permutation(size)[: min(count, size)]] = True
    moved = with_places(prior, new, places)
    np.testing.assert_allclose(np.exp(moved.astype(np.float64)).sum(1), 1, rtol=1e-5)
    for before, after in zip(prior, moved, strict=True):
        first = np.argsort(-after, kind="stable")[:FIRST]
        assert new[first].sum() >= min(places, new.sum())
        for group in (new, ~new):  # the order within each is what it was
            assert (np.argsort(-before[group], kind="stable") == np.argsort(-after[group], kind="stable")).all()
        known = before[~new] - after[~new]
        np.testing.assert_allclose(known, known[:1].repeat(len(known)), atol=1e-5)  # one shift for all of them


def test_who_stands_there_already_stays_where_it_is() -> None:
    prior = np.log(np.array([[0.3, 0.25, 0.2, 0.1, 0.08, 0.07]], np.float32))
    new = np.array([True, False, False, False, False, False])
    np.testing.assert_allclose(with_places(prior, new, 1), prior, rtol=1e-6)


def test_every_user_has_places_of_their_own() -> None:
    prior = log_softmax(np.array([[9.0, 8, 7, 6, 5, 1, 0], [9.0, 8, 7, 6, 5, 0, 1]]))
    moved = with_places(prior, np.array([False] * 5 + [True] * 2), 1)
    assert np.argsort(-moved)[:, 4].tolist() == [5, 6]


@pytest.mark.parametrize("change", [["new_places=6"], ["new_places=-1"], ["new_places=1", "known=false"]])
def test_places_that_cannot_be_kept_are_refused(change) -> None:
    with pytest.raises(AdvpriorError, match="CFG002"):
        read_settings("text", None, change)
