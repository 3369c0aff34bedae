"""What the sequence network reads: the same tokens whether or not the history goes on after the point."""

import numpy as np
import pytest

from advprior.history.counts import DAY
from advprior.history.histories import Histories
from advprior.predictors.sequence.tokens import GAPS, Tokens, Vocabulary, windows


def history(events: int, *, users: int = 2) -> Histories:
    rng = np.random.default_rng(0)
    time = np.concatenate([np.sort(rng.choice(900, events, replace=False)) for _ in range(users)]) * DAY
    return Histories(
        tuple(f"u{u}" for u in range(users)),
        ("",) * users,
        np.arange(users + 1) * events,
        time.astype(np.int64),
        rng.integers(0, 5, users * events),
        category=rng.integers(0, 2, users * events).astype(np.int32),
        value=rng.gamma(2.0, 20.0, users * events).astype(np.float32),
        categories=("food", "tools"),
        profile_fields=("age",),
        profile_levels=(("old", "young"),),
        profile_codes=np.array([[0], [-1]], np.int32),
    )


@pytest.mark.parametrize("events", [0, 1, 7, 8, 9, 40])
def test_a_point_reads_the_same_from_a_history_that_goes_on(events: int) -> None:
    whole = history(events)
    vocabulary = Vocabulary.of(whole)
    moments = np.arange(0, 950, 37, dtype=np.int64) * DAY
    user, moment = np.repeat([0, 1], len(moments)), np.tile(moments, 2)
    found = {}
    for name, some in (("whole", [whole] * len(moment)), ("cut", [whole.before(int(m)) for m in moment])):
        rows = []
        for i, histories in enumerate(some):
            (window,) = windows(histories, user[i : i + 1], moment[i : i + 1], 8)
            batch = Tokens(histories, vocabulary).batch([window], moment[i : i + 1])
            seen = int(batch["positions"][0, 0])
            tokens = {k: batch[k][0, :seen].tolist() for k in ("advertiser", "category", "price", "gap")}
            rows.append((tokens, seen, batch["since"][0, 0], batch["profile"][0].tolist()))
        found[name] = rows
    assert found["whole"] == found["cut"]


def test_one_window_serves_all_points_of_a_short_history() -> None:
    whole = history(8)
    moments = np.arange(0, 950, 37, dtype=np.int64) * DAY
    assert len(list(windows(whole, np.zeros(len(moments), np.int64), moments, 8))) == 1


def test_every_point_sees_half_a_context_at_least_and_its_last_purchase() -> None:
    whole = history(40)
    moments = np.arange(0, 950, 11, dtype=np.int64) * DAY
    for window in windows(whole, np.zeros(len(moments), np.int64), moments, 8):
        before = (whole.time[:40, None] < moments[window.points]).sum(0)
        assert (window.rows.start + window.positions == before).all()
        assert (window.positions >= np.minimum(before, 5)).all()
        assert (window.positions <= 8).all()


def test_nothing_before_is_said_as_such() -> None:
    whole = history(3)
    (window,) = windows(whole, np.array([0]), np.array([whole.time[0]]), 8)
    batch = Tokens(whole, Vocabulary.of(whole)).batch([window], np.array([whole.time[0]]))
    assert batch["since"].tolist() == [[GAPS - 1]]
    assert batch["positions"].tolist() == [[0]]


def test_values_first_seen_later_are_unknown() -> None:
    whole = history(6)
    early = whole.before(int(whole.time[0]) + 1)
    vocabulary = Vocabulary.of(early)
    assert len(vocabulary.categories) == 1
    codes = vocabulary.category_codes(whole)
    known = whole.categories.index(vocabulary.categories[0])
    assert ((codes == 0) == (whole.category != known)).all()
    assert Vocabulary.of(whole).profile_codes(whole).tolist() == [[1], [0]]
