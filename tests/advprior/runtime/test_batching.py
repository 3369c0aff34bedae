"""Batches of like length: every row once, within the budget, none closed with room left."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from advprior.runtime.batching import length_batches, token_budget_batches


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 400))
def test_batches_hold_every_row_once_within_the_budget(lengths, budget):
    for longest_first in (True, False):
        check(lengths, budget, length_batches(lengths, budget, longest_first=longest_first), longest_first)


def check(lengths, budget, batches, longest_first):
    assert sorted(int(i) for batch in batches for i in batch) == list(range(len(lengths)))
    padded = [max(lengths[i] for i in batch) * len(batch) for batch in batches]
    assert all(size <= budget or len(batch) == 1 for size, batch in zip(padded, batches, strict=True))
    # like lengths together: no batch holds a row longer (shorter) than any of an earlier batch
    for earlier, later in pairwise(batches):
        longer, shorter = (earlier, later) if longest_first else (later, earlier)
        assert min(lengths[i] for i in longer) >= max(lengths[i] for i in shorter)
        # and none was closed with room for the next row
        longest = max(lengths[earlier[0]], lengths[later[0]])
        assert longest * (len(earlier) + 1) > budget


def test_budget_by_hand():
    assert [batch.tolist() for batch in token_budget_batches([3, 9, 4, 4, 20], 12)] == [[4], [1], [2, 3, 0]]


def test_few_batches_keep_every_lane_at_work():
    lengths = [190] * 6
    assert [len(batch) for batch in token_budget_batches(lengths, 512)] == [2, 2, 2]
    shared = token_budget_batches(lengths, 512, lanes=2)
    assert [len(batch) for batch in shared] == [1] * 6
    assert sorted(np.concatenate(shared)) == list(range(6))
    many = [190] * 600
    assert len(token_budget_batches(many, 512, lanes=2)) == len(token_budget_batches(many, 512))


def test_a_budget_of_nothing():
    with pytest.raises(ValueError, match="budget"):
        token_budget_batches([1], 0)


def test_ties_are_put_in_the_order_asked_for():
    assert [batch.tolist() for batch in length_batches([5, 5, 5, 2], 10, ties=[0.9, 0.1, 0.5, 0.0])] == [[3, 1], [2, 0]]
