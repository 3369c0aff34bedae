"""Weights fitted on some alternatives of each label: those of a fit on all, within what drawing some adds."""

from __future__ import annotations

import numpy as np
import pytest

from advprior.evaluation import controls
from advprior.evaluation.alternatives import FAR, Alternatives, EarlierLabels
from advprior.evaluation.controls import fit_controls
from advprior.evaluation.protocol import first_labels
from advprior.evaluation.terms import ARMS, Terms
from advprior.history.counts import DAY
from advprior.predictors.logit import Dense, fit_logit
from benchmarks.scale.wide_tables import wide_tables
from tests.advprior.history.test_histories import histories_of

USERS, SIZE = 400, 150


@pytest.fixture(scope="module")
def windows() -> list[EarlierLabels]:
    """Labels of two earlier cut-offs, and terms as of then."""
    events = wide_tables(USERS, SIZE)["events"]
    time = (events.timestamp - events.timestamp.min()).dt.days * DAY
    rows: list[list[tuple[int, int]]] = [[] for _ in range(USERS)]
    for user, when, advertiser in zip(events.user_id, time, events.advertiser_id, strict=True):
        rows[int(user[1:])].append((int(when), int(advertiser[1:])))
    histories, last = histories_of(rows), int(time.max())
    moments = (last - 30 * DAY, last - 50 * DAY)
    past = [Terms(histories.before(moment), moment, SIZE, 0) for moment in moments]
    return [
        EarlierLabels(terms, first_labels(histories, moment, 30 * DAY))
        for terms, moment in zip(past, moments, strict=True)
    ]


def test_with_every_advertiser_drawn_the_fit_is_that_on_all(
    windows: list[EarlierLabels], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, first = fit_controls(windows, SIZE, seed=0)
    monkeypatch.setattr(controls, "EVERYONE_UP_TO", SIZE - 1)
    monkeypatch.setattr(Alternatives.draw.__func__, "__kwdefaults__", {"count": 10**9})
    some = windows[0].labels.sample(20, 0)
    wide, answers = fit_controls(windows, SIZE, seed=0, early=some)
    chosen = np.isin(windows[0].labels.user, some.user)
    for name, weights in plain.weights.items():
        np.testing.assert_allclose(
            list(wide.weights[name].values()), list(weights.values()), rtol=1e-2, atol=2e-3, err_msg=name
        )
        np.testing.assert_allclose(answers[name], first[name][chosen], rtol=1e-3, atol=2e-3, err_msg=name)


def test_few_alternatives_fit_what_all_fit_and_without_their_chances_do_not(windows: list[EarlierLabels]) -> None:
    """Nats a label by weights of a tenth of the catalog, beside those of all: the offset is what makes them agree."""
    names = ARMS["recency"]
    terms = np.stack([np.concatenate([w.terms(w.labels.user)[name] for w in windows]) for name in names])
    truth = np.concatenate([w.labels.truth(SIZE) for w in windows])

    def nats(weights: np.ndarray) -> float:
        logits = np.tensordot(weights, terms, 1)
        return float((truth * (np.log(np.exp(logits).sum(1, keepdims=True)) - logits)).sum() / truth.sum())

    best = nats(fit_logit(terms, truth))
    some = Alternatives.draw(windows, SIZE, seed=0, count=15)
    assert (some.offset > FAR).mean(1).mean() * some.offset.shape[1] < 30
    sampled = nats(fit_logit(some.design(names), some.truth()))
    own = [some.names.index(name) for name in names]
    without = nats(fit_logit(Dense(some.terms[own], np.where(some.offset > FAR, 0, FAR)), some.truth()))
    assert best - 1e-6 < sampled < best + 0.02
    assert without > best + 0.05


def test_a_label_stands_first_once_and_what_a_user_turned_to_is_certain(windows: list[EarlierLabels]) -> None:
    labels = windows[0].labels
    some = Alternatives.draw(windows[:1], SIZE, seed=1, count=10)
    ever, popular = (some.terms[some.names.index(name)] for name in ("ever", "popularity, short"))
    assert (some.user == labels.user[labels.row]).all()
    np.testing.assert_allclose(some.credit, labels.credit)
    values = windows[0].terms(labels.user)
    np.testing.assert_array_equal(popular[:, 0], values["popularity, short"][labels.row, labels.advertiser])
    assert (some.offset[ever > 0] == 0).all()
    turned = ((values["ever"] > 0).sum(1))[labels.row]
    np.testing.assert_array_equal(((ever > 0) & (some.offset > FAR)).sum(1), turned)


def test_a_long_history_takes_no_more_places_than_others(
    windows: list[EarlierLabels], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a history is longer than what is certain, some of it is drawn, and each counts for those that are not."""
    monkeypatch.setattr("advprior.evaluation.alternatives.HISTORY", 2)
    some = Alternatives.draw(windows, SIZE, seed=2, count=3)
    ever = (some.terms[some.names.index("ever")] > 0) & (some.offset > FAR)
    turned = np.concatenate([(w.terms(w.labels.user)["ever"] > 0).sum(1)[w.labels.row] for w in windows])
    long, counted = turned > 5, (np.exp(some.offset) * ever)[:, 1:].sum(1)
    assert ever.sum(1)[long].mean() < 4
    assert counted[long].mean() == pytest.approx((turned[long] - ever[long, 0]).mean(), rel=0.2)
