"""Terms by hand arithmetic, and whose labels a control and a blend saw."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from advprior.evaluation.controls import EarlierLabels, fit_controls
from advprior.evaluation.protocol import first_labels
from advprior.evaluation.seeds import group_runs
from advprior.evaluation.terms import (
    ARMS,
    DEPARTMENT_TERMS,
    OWN,
    PROFILE_PRIOR,
    Terms,
    category_term,
    last_advertisers,
    price_term,
    profile_term,
    sequence_odds,
)
from advprior.history.counts import DAY
from advprior.history.histories import Histories
from advprior.store.runs import new_run
from tests.advprior.history.test_histories import histories_of

ROWS = [[(0, 0), (5, 1), (5, 2)], [(2, 1)], []]
EVERYONE = np.arange(3)


def detailed() -> Histories:
    return replace(
        histories_of(ROWS),
        category=np.asarray([0, 1, 1, 0], np.int32),
        categories=("Tea", "Soap"),
        value=np.asarray([1.0, 3.0, 3.0, 7.0], np.float32),
        profile_fields=("age",),
        profile_levels=(("old", "young"),),
        profile_codes=np.asarray([[0], [1], [-1]], np.int32),
    )


def test_the_last_occasion_by_hand() -> None:
    assert last_advertisers(histories_of(ROWS), EVERYONE, 3).tolist() == [[0, 0.5, 0.5], [0, 1, 0], [0, 0, 0]]


def test_what_follows_is_counted_within_a_user() -> None:
    """0 is followed by 1 and by 2, once each; nothing follows anything else."""
    odds = sequence_odds(histories_of(ROWS), 3).of(np.eye(3, dtype=np.float32))
    share = np.asarray([0.5, 1.5, 1.5]) / 3.5
    np.testing.assert_allclose(odds[0], np.log((np.asarray([0, 1, 1]) + 20 * share) / 22 / share), rtol=1e-5)
    np.testing.assert_allclose(odds[1:], 0.0, atol=1e-12)


def test_category_price_and_profile_by_hand() -> None:
    histories = detailed()
    # advertiser 0 sells Tea, 1 both, 2 Soap; user 0 bought one of Tea and two of Soap, user 1 Tea
    shares = [[1 / 3, 1 / 2, 2 / 3], [1, 1 / 2, 0], [0, 0, 0]]
    np.testing.assert_allclose(np.exp(category_term(histories, EVERYONE, 3)), np.asarray(shares) + 0.02, rtol=1e-5)
    value = np.log1p([1.0, 3.0, 3.0, 7.0])
    theirs = np.asarray([value[0], value[1] + value[3], value[2]]) + value.mean()
    theirs /= [2, 3, 2]
    expected = [-np.abs(value[:3].mean() - theirs), -np.abs(value[3] - theirs), np.zeros(3)]
    np.testing.assert_allclose(price_term(histories, EVERYONE, 3), expected, rtol=1e-5)
    share = np.asarray([1.5, 2.5, 1.5]) / 5.5
    old = np.log((1 + PROFILE_PRIOR * share) / (3 + PROFILE_PRIOR) / share)
    term = profile_term(histories, EVERYONE, 3)
    np.testing.assert_allclose(term[0], old, rtol=1e-4)
    assert (term[2] == 0).all()  # told nothing of themselves


def test_terms_follow_what_the_tables_hold() -> None:
    plain = Terms(histories_of(ROWS), 10 * DAY, 3, 0)(EVERYONE)
    full = Terms(detailed(), 10 * DAY, 3, 0)(EVERYONE)
    assert set(full) - set(plain) == {"profile", "category", "price"}
    for term in full.values():
        assert term.shape == (3, 3)
        assert np.isfinite(term).all()
    assert set(full) <= {term for terms in ARMS.values() for term in terms}


def test_the_same_department_by_hand() -> None:
    """Advertisers 0 and 2 are of one department, 1 of none: user 0 bought one of each."""
    placed = replace(detailed(), departments=np.asarray([0, -1, 0], np.int32))
    terms = Terms(placed, 10 * DAY, 3, 0)
    values, amount = terms(EVERYONE), np.log1p(terms.own(EVERYONE, OWN[1]))
    both = amount[:, 0] + amount[:, 2]
    expected = np.stack([both, np.zeros(3), both], axis=1)
    log_number, share = (values[name] for name in DEPARTMENT_TERMS)
    np.testing.assert_allclose(log_number, np.log(expected + 0.1), rtol=1e-5)
    total = amount.sum(1, keepdims=True)
    np.testing.assert_allclose(share, np.divide(expected, total, where=total > 0, out=np.zeros((3, 3))), rtol=1e-5)
    assert set(values) - set(Terms(detailed(), 10 * DAY, 3, 0)(EVERYONE)) == set(DEPARTMENT_TERMS)
    assert set(DEPARTMENT_TERMS) <= set(ARMS["logit"]) & set(ARMS["neighbours"])


def test_what_a_blend_is_fitted_on_did_not_see_the_users_own_label() -> None:
    """Another label of one user changes what is said of users of the other half only, never of that user's half."""
    rng = np.random.default_rng(0)
    histories = histories_of([[(0, int(rng.integers(4))), (5 * DAY, int(rng.integers(4)))] for _ in range(40)])
    terms = Terms(histories.before(3 * DAY), 3 * DAY, 4, 0)
    labels = first_labels(histories, 3 * DAY, 9 * DAY)
    changed = labels.advertiser.copy()
    changed[7] = (changed[7] + 1) % 4
    _, first = fit_controls([EarlierLabels(terms, labels)], 4, seed=0)
    _, other = fit_controls([EarlierLabels(terms, replace(labels, advertiser=changed))], 4, seed=0)
    moved = np.abs(first["recency"] - other["recency"]).max(axis=1)
    half = moved < 1e-4  # the fit starts from one on all users, and ends at the same optimum within its tolerance
    assert half[7]
    assert 10 < half.sum() < 30
    assert moved[~half].min() > 1e-3
    assert (first["popularity"] == other["popularity"]).all()


@pytest.mark.parametrize("together", [True, False])
def test_grouping(tmp_path, together: bool) -> None:
    """Seeds of one method are one arm; another setting, another input or the very same fit is none of it."""
    runs = []
    for name, seed, layers, tables in (
        ("a-0", 0, 3, "x"),
        ("a-1", 1, 3, "x"),
        ("b", 2, 4, "x"),
        ("c", 2, 3, "y"),
        ("a-0-again", 0, 3, "x"),
    ):
        config = {"predictor": "llm", "settings": {"layers": layers, "training": {"seed": seed}}}
        with new_run(tmp_path / name, "finetune", config=config, inputs={"tables": tables}, key=name):
            pass
        runs.append(tmp_path / name)
    found = {group.name: group.members for group in group_runs(runs, ["b"], together=together)}
    if together:
        assert found == {"a": (0, 1), "b (2)": (2,), "c": (3,), "a-0-again": (4,)}
    else:
        assert found == {"a-0": (0,), "a-1": (1,), "b (2)": (2,), "c": (3,), "a-0-again": (4,)}


def test_categories_and_profile_values_may_be_as_many_as_events() -> None:
    """What a term holds grows with users and advertisers, and not with a hundred thousand categories or values."""
    many, users, size = 100_000, 400, 50
    rng = np.random.default_rng(0)
    whole = replace(
        histories_of([[(int(t), int(a)) for t, a in enumerate(rng.integers(0, size, 20))] for _ in range(users)]),
        categories=tuple(map(str, range(many))),
        profile_fields=("code",),
        profile_levels=(tuple(map(str, range(many))),),
        profile_codes=rng.choice(many, (users, 1), replace=False).astype(np.int32),
    )
    whole = replace(whole, category=rng.integers(0, many, len(whole.time)).astype(np.int32))
    tracemalloc.start()
    terms = [term(whole, np.arange(users), size) for term in (category_term, profile_term)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert all(np.isfinite(term).all() for term in terms)
    assert peak < 50e6  # users × categories alone would be 320 MB
