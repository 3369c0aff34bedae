"""Training points lie in waits between events, and know nothing of their label."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from advprior.history.counts import DAY
from advprior.history.histories import Histories
from advprior.predictors.around import Around
from advprior.predictors.offset import FLOOR, OffsetTerms
from advprior.predictors.sequence.points import Target, WaitRules, Waits, waits
from tests.advprior.history.test_histories import histories_of

H = Histories(
    ("u", "v"), ("", ""), np.array([0, 4, 5]), np.array([1, 11, 11, 400, 5], np.int64) * DAY, np.array([0, 1, 2, 1, 0])
)


def waits_of(**options: object) -> Waits:
    rules = {"half_life_days": None, "gap_power": 1.0, "most": 9, "seed": 0, **options}
    return waits(H, 500 * DAY, WaitRules(horizon=30 * DAY, **rules))


def test_waits_end_at_an_occasion_and_start_after_the_one_before() -> None:
    w = waits_of()
    assert w.user.tolist() == [0, 0]
    assert (w.begin // DAY).tolist() == [1, 370]
    assert w.end.tolist() == [11 * DAY, 400 * DAY]
    # ten of thirty days, and all of them
    np.testing.assert_allclose(w.weight, [10 / 30, 1.0], rtol=1e-6)


def test_old_waits_weigh_less_and_a_busy_user_gives_a_sample() -> None:
    np.testing.assert_allclose(
        waits_of(gap_power=0.0, half_life_days=389.0).weight[1]
        / waits_of(gap_power=0.0, half_life_days=389.0).weight[0],
        2.0,
        rtol=1e-6,
    )
    assert len(waits_of(most=1)) == 1


def test_a_drawn_moment_is_after_what_is_known_and_not_after_the_label() -> None:
    w = waits_of()
    for seed in range(200):
        moment = w.draw(np.random.default_rng(seed))
        assert (moment >= w.begin).all()
        assert (moment <= w.end).all()


def test_targets_of_the_first_occasion_share_and_all_reach_the_horizon() -> None:
    user, moment, end = np.array([0, 0]), np.array([2, 380]) * DAY, np.array([11, 400]) * DAY
    assert Target(400 * DAY, 3, first=True).shares(H, user, moment, end).dense().tolist() == [[0, 0.5, 0.5], [0, 1, 0]]
    assert Target(400 * DAY, 3, first=False).shares(H, user, moment, end).dense().tolist() == [[0, 0.5, 0.5], [0, 1, 0]]
    assert Target(5 * DAY, 3, first=False).shares(H, user[:1], np.array([0]), end[:1]).dense().tolist() == [[1, 0, 0]]


def test_drift_around_a_day_knows_both_sides_and_drift_so_far_only_one() -> None:
    around = Around(H, 10.0, 3)
    # purchases that are no user's first: 1 and 2 on day 11, 1 on day 400
    expected = np.array([[0, 1, 1], [0, 0.5, 0.5]]) + FLOOR
    bystander, late = np.array([1, 1]), np.array([500, 500]) * DAY
    np.testing.assert_allclose(np.exp(around(bystander, late, np.array([1, 21]) * DAY)), expected, rtol=1e-5)
    steady = OffsetTerms((30.0,), ()).everyone(H, np.array([11, 12]) * DAY, 3)[0]
    assert np.allclose(np.exp(steady[0])[1:], FLOOR)
    assert (np.exp(steady[1])[1:] > 0.5).all()


DAYS = st.lists(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), min_size=2, max_size=8), min_size=2, max_size=4
)


@given(DAYS, st.integers(0, 3))
def test_drift_around_a_label_knows_nothing_of_it_or_of_what_its_user_does_later(days, other: int) -> None:
    """Whatever the label is, the term that a fit starts from is the same; what others do counts."""
    events = [[(day * DAY, a) for day, a in user] for user in days]
    w = waits(histories_of(events), 100 * DAY, WaitRules(30 * DAY, None, 0.0, 99, 0))
    for user, begin, end in zip(w.user, w.begin, w.end, strict=True):
        point = (np.array([user]), np.array([begin]), np.array([end]))
        changed = [[(t, other if u == user and t >= begin else a) for t, a in e] for u, e in enumerate(events)]
        ours, theirs = (np.exp(Around(histories_of(each), 7.0, 4)(*point)) for each in (events, changed))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
        alone = np.exp(Around(histories_of([events[user]]), 7.0, 4)(np.array([0]), *point[1:]))
        assert (ours >= alone * (1 - 1e-5)).all()
