"""A wide catalog's sparse and blockwise ways say what the dense arrays say, whatever the histories are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import advprior.history.counts as counts
import advprior.history.popular as popular
import advprior.predictors.around as around_module
import advprior.predictors.terms as terms_module
from advprior.history.counts import DAY
from advprior.history.popular import PopularityTable
from advprior.history.targets import Targets, quality, quality_by_row, quality_of_blocks
from advprior.predictors.around import Around
from advprior.predictors.logit import fit_logit, log_softmax
from advprior.predictors.offset import Offset, OffsetTerms, weigh, weighed
from advprior.predictors.starts import AroundLabel, AsOf, SoFar
from advprior.predictors.terms import TermSums
from tests.advprior.history.test_histories import histories_of

SIZE = 7
SEEDS = st.integers(0, 10_000)


def close(ours, theirs, relative: float = 2e-5) -> None:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=relative, atol=relative * max(np.abs(theirs).max(initial=0), 1.0))


def world(seed: int):
    """Some users with uneven histories, and points of theirs with a label behind each."""
    rng = np.random.default_rng(seed)
    users = [
        sorted({(int(t) * DAY + int(rng.integers(DAY)), int(rng.integers(SIZE))) for t in rng.integers(0, 90, n)})
        for n in rng.integers(2, 30, 12)
    ]
    histories = histories_of(users)
    user = rng.integers(0, 12, 25)
    first = histories.time[histories.offsets[user]]
    moment = first + rng.integers(1, 60 * DAY, 25)
    return rng, histories, user, moment, moment + rng.integers(0, 7 * DAY, 25)


def truth_of(rng, points: int = 25) -> Targets:
    return Targets.from_dense((rng.random((points, SIZE)) < 0.25) * rng.random((points, 1)).astype(np.float32))


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.booleans())
def test_terms_are_their_array_and_so_is_the_fit(seed: int, with_deviation: bool) -> None:
    rng, histories, user, moment, _ = world(seed)
    shape = OffsetTerms((30.0, 365.0), (14.0, 120.0))
    terms = shape.sparse(histories, user, moment, SIZE)
    dense = shape(histories, user, moment, SIZE)
    if with_deviation:
        away = rng.normal(size=dense.shape[1:]).astype(np.float32)
        terms, dense = terms.beside(away), np.concatenate([dense, away[None]])
    close(terms.dense(), dense)
    truth, weights = truth_of(rng), rng.normal(size=len(terms))
    close(terms.logits(weights), weighed(dense, weights))
    some = np.array([4, 0, 6])
    close(terms.at(weights, some), weighed(dense, weights)[:, some])
    # moments of the terms, and through them the optimum
    sums = TermSums(terms, truth)(weights)
    mass = np.exp(log_softmax(weighed(dense, weights)).astype(np.float64))
    close(sums.first, np.einsum("pn,kpn->pk", mass, dense))
    close(sums.second, np.einsum("pn,kpn,lpn->pkl", mass, dense, dense))
    close(fit_logit(terms, truth), fit_logit(dense, truth.dense()), 1e-3)


@pytest.mark.parametrize("cells", [1, 30])
def test_blocks_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    rng, histories, user, moment, end = world(3)
    shape = OffsetTerms((30.0,), (14.0,))
    away, truth = rng.normal(size=(25, SIZE)).astype(np.float32), truth_of(rng)

    def everything():
        terms = shape.sparse(histories, user, moment, SIZE).beside(away)
        logits = list(terms.blocks([0.5, 1.0, 0.3]))
        figures = quality_of_blocks(map(log_softmax, logits), truth)
        return np.concatenate(logits), figures, fit_logit(terms, truth), Around(histories, 9.0, SIZE)(user, moment, end)

    whole = everything()
    monkeypatch.setattr(terms_module, "BLOCK", cells)
    monkeypatch.setattr(counts, "CELLS", cells)
    monkeypatch.setattr(around_module, "POINTS", cells)
    parts = everything()
    for ours, theirs in zip(parts, whole, strict=True):
        if isinstance(ours, dict):
            ours, theirs = list(ours.values()), list(theirs.values())
        close(ours, theirs)


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_a_start_is_the_offset_of_a_scorer_or_drift_around_the_label(seed: int) -> None:
    rng, histories, user, moment, end = world(seed)
    shape, columns = OffsetTerms((30.0, 365.0), (14.0, 120.0)), rng.permutation(SIZE)[:4]
    offset = Offset(shape, tuple(rng.normal(size=4)))
    around = Around(histories, 9.0, SIZE)
    habit = shape.habit(histories, user, moment, SIZE)
    weights = tuple(rng.normal(size=3))
    for start, expected in (
        (AsOf(offset, histories, SIZE), offset.logits(histories, user, moment, SIZE)),
        (
            SoFar(offset, histories, SIZE),
            offset.logits(histories, user, moment, SIZE, offset.everyone(histories, moment // DAY * DAY, SIZE)),
        ),
        (
            AroundLabel(around, shape, weights),
            weighed(np.concatenate([around(user, moment, end)[None], habit]), weights),
        ),
    ):
        close(start(user, moment, end), expected)
        close(start(user, moment, end, columns), expected[:, columns])


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_drift_around_a_day_is_the_sum_over_days(seed: int) -> None:
    """The formula itself: everyone's events that are not their first, but the user's own ones from the moment on."""
    _, histories, user, moment, end = world(seed)
    later = histories.time > counts.first_times(histories)[histories.user_of_row]
    day = histories.time // DAY
    place = np.clip(end // DAY, day[later].min(), day[later].max())
    expected = np.zeros((25, SIZE))
    for point in range(25):
        counted = later & ~((histories.user_of_row == user[point]) & (histories.time >= moment[point]))
        near = 0.5 ** (np.abs(day[counted] - place[point]) / 9.0)
        expected[point] = np.bincount(histories.advertiser[counted], weights=near, minlength=SIZE)
    close(Around(histories, 9.0, SIZE)(user, moment, end), np.log(expected + 0.05))


@pytest.mark.parametrize("table", [10**9, 40])
def test_popularity_by_table_is_popularity(monkeypatch: pytest.MonkeyPatch, table: int) -> None:
    monkeypatch.setattr(popular, "TABLE", table)
    _, histories, _, moment, _ = world(5)
    made = PopularityTable(histories, 20.0, SIZE)
    moments = np.concatenate([moment, [0, histories.time.min(), histories.time.max() + 400 * DAY], histories.time[:9]])
    expected = counts.popularity(histories, moments, 20.0, SIZE)
    close(made(moments), expected)
    close(made(moments, np.array([5, 2])), expected[:, [5, 2]])


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_quality_of_equals_goes_by_index(seed: int) -> None:
    """Against a stable sort, row by row; many log-probs are equal, as those of advertisers without events are."""
    rng = np.random.default_rng(seed)
    rows = log_softmax(rng.integers(0, 3, (4, 30)))
    row, truth = rng.integers(0, 4, 20), Targets.from_dense((rng.random((20, 30)) < 0.1).astype(np.float32))
    order = np.argsort(-rows[row], axis=1, kind="stable")
    hits, counted = np.take_along_axis(truth.dense(), order, axis=1), truth.counts > 0
    figures = quality(rows[row], truth)
    assert figures["points"] == counted.sum()
    for k in (5, 20):
        expected = hits[counted, :k].sum(1) / np.minimum(truth.counts[counted], k)
        assert figures[f"recall@{k}"] == pytest.approx(expected.mean() if counted.any() else np.nan, nan_ok=True)
    for other in (quality_by_row(rows, row, truth), quality_of_blocks(np.split(rows[row], [3, 4]), truth)):
        assert other == pytest.approx(figures, nan_ok=True)


def test_targets_join_and_share_as_their_matrices_do() -> None:
    rng = np.random.default_rng(0)
    parts = [truth_of(rng, points) for points in (3, 0, 5)]
    whole = np.concatenate([part.dense() for part in parts])
    joined = Targets.joined(parts)
    np.testing.assert_array_equal(joined.dense(), whole)
    np.testing.assert_array_equal(joined.take(np.array([7, 2, 2])).dense(), whole[[7, 2, 2]])
    close(joined.shares().dense(), whole / np.maximum(whole.sum(1, keepdims=True), 1.0))


def test_weights_beside_a_network_are_those_of_the_array() -> None:
    rng, histories, user, moment, _ = world(8)
    shape = OffsetTerms((30.0,), (14.0,))
    terms, truth = shape.sparse(histories, user, moment, SIZE), truth_of(rng)
    away = np.log(0.1 + truth.dense())
    dense = np.concatenate([shape(histories, user, moment, SIZE), away[None]])
    weights, strength = weigh(terms, truth, away)
    close([*weights, strength], fit_logit(dense, truth, centre=[0.5, 0.5, 0.0]), 1e-3)
    assert strength > 0
    assert weigh(terms, truth, -away)[1] == 0.0
