"""Labels equal a brute-force loop; metrics and segments equal hand arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advprior.evaluation.protocol import SEGMENTS, YEAR, Labels, first_labels, head, marks, segments
from tests.advprior.history.test_histories import EVENTS, histories_of


@settings(max_examples=150, deadline=None)
@given(EVENTS, st.integers(-2, 45), st.integers(1, 20))
def test_labels_equal_a_loop(events: list, cutoff: int, horizon: int) -> None:
    expected = {}
    for user, rows in enumerate(events):
        later = [t for t, _ in rows if cutoff <= t < cutoff + horizon]
        if later and any(t < cutoff for t, _ in rows):
            expected[user] = sorted({a for t, a in rows if t == min(later)})
    labels = first_labels(histories_of(events), cutoff, horizon)
    found = {
        int(user): labels.advertiser[labels.offsets[p] : labels.offsets[p + 1]].tolist()
        for p, user in enumerate(labels.user)
    }
    assert found == expected
    np.testing.assert_allclose(labels.truth(5).sum(1), np.ones(len(expected)))
    np.testing.assert_allclose(np.bincount(labels.row, labels.credit, len(labels)), np.ones(len(expected)))


def test_the_cutoff_is_future_and_the_horizon_is_open() -> None:
    histories = histories_of([[(9, 0), (10, 1)], [(9, 0), (19, 2)], [(9, 0), (20, 3)], [(10, 0), (11, 1)]])
    labels = first_labels(histories, 10, 10)
    assert labels.user.tolist() == [0, 1]
    assert labels.advertiser.tolist() == [1, 2]


def test_marks_by_hand() -> None:
    log_probs = np.log(np.asarray([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [0.2, 0.3, 0.5]], np.float32))
    labels = Labels(np.arange(3), np.asarray([0, 1, 2, 4]), np.asarray([1, 0, 2, 0]))
    found = marks(log_probs, labels)
    # second user: tied for the first place; third: two labels, places 1 and 3
    assert found["recall@1"].tolist() == [0.0, 0.5, 1.0, 0.0]
    assert found["recall@5"].tolist() == [1.0] * 4
    np.testing.assert_allclose(found["mrr"], [1 / 2, (1 + 1 / 2) / 2, 1, 1 / 3])
    np.testing.assert_allclose(found["nll"], -np.log([0.3, 0.4, 0.5, 0.2]), rtol=1e-5)
    assert float((found["recall@1"] * labels.credit).sum() / 3) == pytest.approx((0 + 0.5 + 0.5) / 3)


def test_an_arm_that_knows_nothing_is_marked_as_chance() -> None:
    labels = Labels(np.arange(2), np.asarray([0, 1, 2]), np.asarray([0, 29]))
    found = marks(np.full((2, 30), -np.log(30), np.float32), labels)
    np.testing.assert_allclose(found["recall@5"], 5 / 30)
    np.testing.assert_allclose(found["recall@20"], 20 / 30)


def test_segments_by_hand() -> None:
    events = [
        [(1, 0), (10, 1)],  # one event before; a new tail advertiser
        [(1, 0), (2, 0), (10, 0)],  # two events; known, head
        [(t, 0) for t in range(1, 6)] + [(6, 2), (10, 0), (10, 2)],  # six; two labels, both known
    ]
    histories = histories_of(events)
    labels = first_labels(histories, 10, 5)
    found = segments(labels, histories, 10, 4)
    assert list(found) == list(SEGMENTS)
    expected = [[1, 1, 1, 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0], [1, 0, 0, 1], [1, 0, 0, 0]]
    assert [found[name].astype(int).tolist() for name in SEGMENTS] == expected


def test_the_head_looks_at_the_last_year_only() -> None:
    histories = histories_of([[(0, 0), (1, 0), (2, 0), (YEAR, 1)]])
    assert head(histories, YEAR + 3, 2).tolist() == [False, True]


def test_a_sample_keeps_whole_users() -> None:
    labels = first_labels(histories_of([[(0, 0), (5, u % 3), (5, 3)] for u in range(30)]), 5, 5)
    part = labels.sample(7, seed=1)
    assert len(part) == 7
    for p, user in enumerate(part.user):
        assert part.advertiser[part.offsets[p] : part.offsets[p + 1]].tolist() == sorted({int(user) % 3, 3})
