"""Nearest ads: exact search, and an index that is held to it."""

from __future__ import annotations

import numpy as np
import pytest

from ranking.candidates.nearest import RECALL, Nearest, best

# faiss' wrapper is SWIG's
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")


def test_the_best_are_the_best() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 5, 60):
        score = rng.integers(0, 9, size).astype(np.float32)  # many ties
        for k in (0, 1, 4, size, size + 3):
            assert best(score, k).tolist() == np.argsort(-score, kind="stable")[:k].tolist()


def test_an_index_finds_what_exact_search_finds() -> None:
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(20, 9))[rng.integers(0, 20, 6000)] + 0.5 * rng.normal(size=(6000, 9))).astype(
        np.float32
    )
    users = rng.normal(size=(80, 9)).astype(np.float32)
    index = Nearest(vectors, exact_up_to=100, probes=users[:40], k=50)
    assert index.kind == "index"
    assert index.recall >= RECALL
    assert 0 < index.looked_into < index.lists
    found = []
    for user in users[40:]:
        at, score = index.top(user, 50)
        np.testing.assert_allclose(score, vectors[at] @ user, rtol=1e-4, atol=1e-4)
        found.append(len(set(at.tolist()) & set(best(vectors @ user, 50).tolist())) / 50)
    assert np.mean(found) > RECALL - 0.03
    assert Nearest(vectors, exact_up_to=6000).kind == "exact"
