"""Metrics against hand arithmetic, against scikit-learn, and under weights against repeated rows."""

from itertools import permutations
from math import log, log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from ranking.evidence.metrics import (
    Auc,
    Conversions,
    Ece,
    LogLoss,
    Mrr,
    Ndcg,
    NormalisedEntropy,
    PrAuc,
    Rows,
    calibration_curve,
)
from ranking.evidence.ordering import Sorted
from ranking.evidence.value import value_at_loads

ALL = [Auc(), PrAuc(), LogLoss(), NormalisedEntropy(), Ece(4), Ndcg(3), Mrr()]


def test_auc_by_hand():
    # pairs (positive, negative): .9>.8, .9>.3, .4<.8, .4>.3 -> 3 of 4
    assert Auc()(Rows.of([1, 0, 1, 0], [0.9, 0.8, 0.4, 0.3])) == pytest.approx(3 / 4)
    # one tie counts half: .5=.5, .5>.1 -> 1.5 of 2
    assert Auc()(Rows.of([1, 0, 0], [0.5, 0.5, 0.1])) == pytest.approx(1.5 / 2)


def test_pr_auc_by_hand():
    # positives at places 1 and 3: precision 1/1 and 2/3
    assert PrAuc()(Rows.of([1, 0, 1, 0], [0.9, 0.8, 0.4, 0.3])) == pytest.approx((1 + 2 / 3) / 2)


def test_log_loss_and_normalised_entropy_by_hand():
    rows = Rows.of([1, 0], [0.8, 0.4])
    loss = -(log(0.8) + log(0.6)) / 2
    assert LogLoss()(rows) == pytest.approx(loss)
    assert NormalisedEntropy()(rows) == pytest.approx(loss / log(2))  # base rate 1/2


def test_ece_by_hand():
    # two bins of two: |0.15 - 0.5| and |0.8 - 1|, each half of the rows
    assert Ece(2)(Rows.of([0, 1, 1, 1], [0.1, 0.2, 0.7, 0.9])) == pytest.approx((0.35 + 0.2) / 2)
    assert [b["observed"] for b in calibration_curve([0, 1, 1, 1], [0.1, 0.2, 0.7, 0.9], 2)] == [0.5, 1.0]


def test_ndcg_and_mrr_by_hand():
    # slate 7: hit at place 2; slate 9: hits at places 1 and 3; slate 8: no positive, left out
    label = [0, 1, 0, 1, 0, 1, 0, 0]
    score = [0.9, 0.5, 0.1, 0.9, 0.5, 0.1, 0.3, 0.2]
    slate = [7, 7, 7, 9, 9, 9, 8, 8]
    rows = Rows.of(label, score, slate=slate)
    two = (1 + 1 / log2(4)) / (1 + 1 / log2(3))
    assert Ndcg(10)(rows) == pytest.approx((1 / log2(3) + two) / 2)
    assert Ndcg(1)(rows) == pytest.approx((0 + 1) / 2)
    assert Mrr()(rows) == pytest.approx((1 / 2 + 1) / 2)


def test_ties_within_a_slate_do_not_depend_on_row_order():
    first = Rows.of([1, 0, 0], [0.5, 0.5, 0.5], slate=[1, 1, 1])
    last = Rows.of([0, 0, 1], [0.5, 0.5, 0.5], slate=[1, 1, 1])
    assert Ndcg(10)(first) == Ndcg(10)(last) == pytest.approx((1 + 1 / log2(3) + 1 / 2) / 3)
    assert Mrr()(first) == Mrr()(last) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    # .9 without a hit, then three tied with two hits: first hit at place 2 in two of three orders, at 3 in one
    two = Rows.of([0, 1, 1, 0], [0.9, 0.5, 0.5, 0.5], slate=[1, 1, 1, 1])
    assert Mrr()(two) == pytest.approx((2 / 3) / 2 + (1 / 3) / 3)
    assert Conversions(2)(two) == pytest.approx(2 / 3)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0, 1]), st.sampled_from([0.1, 0.4, 0.9]), st.sampled_from([0, 1])),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 4),
)
def test_a_value_under_ties_is_the_mean_over_all_orders_of_the_tied(impressions, k):
    """Every metric of an order; the orders are all those that agree with the scores."""
    label, score, slate = (np.array(column) for column in zip(*impressions, strict=True))
    advertiser = np.arange(len(label))
    metrics = [Auc(), Ndcg(k), Mrr(), Conversions(k)]
    orders = [np.array(order) for order in permutations(range(len(label)))]
    broken = [score + 1e-6 * order for order in orders]  # no ties left: each order of the tied rows equally often
    tied = Rows.of(label, score, slate=slate)
    for metric in metrics:
        mean = np.mean([metric(Rows.of(label, one, slate=slate)) for one in broken])
        assert metric(tied) == pytest.approx(mean, nan_ok=True), metric
    by_order = [value_at_loads(slate, label, advertiser, {"a": [one]}, [k])[0]["conversions"] for one in broken]
    value = value_at_loads(slate, label, advertiser, {"a": [score]}, [k])[0]
    assert value["conversions"] == pytest.approx(np.mean(by_order))


def test_large_ties_keep_their_digits():
    rows = 4000
    label = np.zeros(rows, dtype=int)
    label[:3] = 1
    chance, left = [], 1.0  # of the first hit at each place, by drawing without replacement
    for place in range(rows - 2):
        chance.append(left * 3 / (rows - place))
        left *= 1 - 3 / (rows - place)
    expected = sum(c / (place + 1) for place, c in enumerate(chance))
    assert Mrr()(Rows.of(label, np.full(rows, 0.5), slate=np.zeros(rows))) == pytest.approx(expected, rel=1e-9)


def test_ties_of_equal_scores_are_not_broken_by_the_order_of_rows():
    """Positives logged first: the mean place of a positive among tied rows is the middle."""
    slates, size = 500, 8
    request, label = np.repeat(np.arange(slates), size), np.tile(np.arange(size) == 0, slates)
    rows = Sorted.of(request, np.full(slates * size, 0.5))
    assert rows.place[label[rows.order]].mean() == pytest.approx((size - 1) / 2, abs=0.5)  # standard error 0.1
    assert (Sorted.of(request, np.full(slates * size, 0.5)).order == rows.order).all()


def test_equal_to_scikit_learn_with_ties():
    rng = np.random.default_rng(1)
    label = rng.random(3000) < 0.1
    score = np.round(np.clip(rng.normal(0.3 + 0.1 * label, 0.1), 0.01, 0.99), 2)  # two decimals: many ties
    rows = Rows.of(label, score, user=rng.integers(0, 50, 3000))
    assert Auc()(rows) == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    assert PrAuc()(rows) == pytest.approx(average_precision_score(label, score), abs=1e-12)
    assert LogLoss()(rows) == pytest.approx(log_loss(label, score), abs=1e-12)


@pytest.mark.parametrize("metric", ALL, ids=lambda m: m.name)
def test_weighting_a_user_is_repeating_their_rows(metric):
    rng = np.random.default_rng(2)
    n, users = 400, 12
    user = np.sort(rng.integers(0, users, n))
    slate = user * 10 + rng.integers(0, 4, n)
    label = rng.random(n) < 0.2
    score = np.round(np.clip(rng.normal(0.3 + 0.1 * label, 0.1), 0.01, 0.99), 2)
    rows = Rows.of(label, score, user=user, slate=slate, users=users)
    weights = rng.multinomial(users, np.full(users, 1 / users), size=5).T.astype(float)
    if isinstance(metric, Ece):  # bins stay where the unweighted scores put them: repeat by hand
        edges = np.quantile(score, [0.25, 0.5, 0.75])
        bins = np.searchsorted(edges, score, side="right")

        def value(copy):
            return sum(abs((label[copy] - score[copy])[bins[copy] == b].sum()) for b in range(4)) / len(copy)
    else:

        def value(copy):
            copies = np.concatenate([np.arange((user == u).sum() * int(w)) for u, w in enumerate(weights[:, r])])
            repeat = np.concatenate(
                [np.repeat(np.arange(int(w)), (user == u).sum()) for u, w in enumerate(weights[:, r])]
            )
            assert len(copies) == len(repeat) == len(copy)
            return metric(Rows.of(label[copy], score[copy], slate=slate[copy] * 100 + repeat))

    got = metric.weighted(rows, weights)
    for r in range(5):
        copy = np.concatenate([np.tile(np.flatnonzero(user == u), int(w)) for u, w in enumerate(weights[:, r])])
        assert got[r] == pytest.approx(value(copy), abs=1e-10)


def test_undefined_is_nan_not_an_error():
    rows = Rows.of([0, 0], [0.2, 0.3], slate=[1, 1])
    assert np.isnan(Auc()(rows))
    assert np.isnan(PrAuc()(rows))
    assert np.isnan(Ndcg(10)(rows))
    assert np.isnan(Mrr()(rows))
    assert LogLoss()(rows) > 0


def test_metrics_are_equal_by_value():
    assert Ndcg(10) == Ndcg(10)
    assert len({Ndcg(10), Ndcg(10), Ndcg(5)}) == 2
    assert (Ndcg(5).name, Ndcg(5).label) == ("ndcg_5", "NDCG@5")
