"""What an arm costs for each user that it answers, and what a map will cost, before it is measured.

Seconds are CPU time of this process, by a sample of the users of the first cut-off. Encodings are made once a catalog
and kept: they are told by themselves, and no answer waits for one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from advprior.evaluation.learning_curve.arms import (
    CurveArm,
    arms_of,
    everyones_text_terms,
    lift_text_terms,
    linear_text_terms,
    own_text_terms,
)
from advprior.evaluation.learning_curve.cells import FIT_CELLS, FIT_USERS, CutOff
from advprior.evaluation.population import EARLIER
from advprior.evaluation.protocol import first_labels
from advprior.predictors.logit import fit_logit, logit
from advprior.store.arrays import Float

SAMPLE = 200  # users
REPEATS = 3.0  # fits of an arm, in units of one to all its labels: the second holds out each half in turn
MILLION = 1_000_000

Value = TypeVar("Value")


@dataclass(frozen=True)
class Costs:
    """CPU-seconds, by a sample.

    Attributes
    ----------
    by_arm : dict of str to float
        Of a million users' answers: terms and weights, all counted anew.
    answer : float
        Of one user's answers by every arm, terms that cells share left out.
    shared : float
        Of those terms, for one user.
    fit : float
        Of every arm's fits, for one label to fit on.
    cell : float
        Of what is counted once at a cut-off, an earlier one included.
    """

    by_arm: dict[str, float]
    answer: float
    shared: float
    fit: float
    cell: float


def measure_costs(case: CutOff) -> Costs:
    """Time the arms on some of those tested, with everyone counted."""
    users = case.labels.user[:SAMPLE]
    terms = case.terms(case.histories, case.moment)
    cell = _timed(partial(terms, users[:1]))[0]  # what is counted once a cut-off
    counts, values = _timed(lambda: terms(users))
    of_source: dict[str, float] = {}
    shared, counts_shape = 0.0, (len(users), case.size)
    for name, cosine in case.cosines.items():
        own_s, own = _timed(partial(own_text_terms, terms, users, {name: cosine}, case.sources))
        linear = {name: case.semantic[name]} if name in case.semantic else {}
        cell += _timed(partial(linear_text_terms, terms, users[:1], linear))[0]  # weights are solved for, likewise
        rest_s, rest = _timed(partial(linear_text_terms, terms, users, linear))
        kernels = {name: case.kernels[name]} if name in case.kernels else {}
        cell += _timed(partial(lift_text_terms, terms, users[:1], kernels))[0]
        lift_s, lifts = _timed(partial(lift_text_terms, terms, users, kernels))
        wide = {
            k: np.broadcast_to(v, counts_shape)
            for k, v in everyones_text_terms(terms, {name: cosine}, case.sources).items()
        }
        values |= own | rest | lifts | wide
        of_source[name] = own_s + rest_s + lift_s
        shared += own_s
    arms = arms_of(case.sources, set(values))
    weighing = {
        name: _timed(partial(logit, [values[t] for t in arm.terms], np.zeros(len(arm.terms))))[0]
        for name, arm in arms.items()
    }
    by_arm = {
        name: (counts + weighing[name] + sum(of_source[s] for s in _sources(arm, of_source))) * MILLION / len(users)
        for name, arm in arms.items()
    }
    answer = (counts + sum(weighing.values()) + sum(of_source.values()) - shared) / len(users)
    truth = np.zeros(values[arms["logit"].terms[0]].shape, np.float32)
    own_labels = case.labels.keep(np.isin(case.labels.user, users))
    truth[: len(own_labels)] = own_labels.truth(case.size)
    fit = sum(_timed(partial(fit_logit, _stacked(values, arm), truth))[0] for arm in arms.values())
    fit = (REPEATS * fit + counts + sum(of_source.values())) / len(users)
    return Costs(by_arm, answer, shared / len(users), fit, cell)


def forecast(costs: Costs, case: CutOff, sizes: Sequence[tuple[int | None, int]], cutoffs: int) -> float:
    """CPU-seconds of every cell, (size, draw) at each of so many cut-offs like this one."""
    most = max(FIT_CELLS // case.size, FIT_USERS)
    pool = max(int((np.diff(case.histories.offsets) > 0).sum()), 1)
    seconds = costs.shared * len(case.labels)
    for size, _ in sizes:
        share = min((size or pool) / pool, 1.0)
        labels = 0.0
        for part in EARLIER:
            then = case.moment - int(part * case.back)
            labels += min(share * len(first_labels(case.histories, then, case.moment - then)), most)
        seconds += costs.answer * len(case.labels) + costs.fit * labels + costs.cell * (len(EARLIER) + 1)
    return seconds * cutoffs


def _sources(arm: CurveArm, names: dict[str, float]) -> set[str]:
    """Those that an arm has a term of."""
    return {source for source in names if any(term.startswith(f"{source}: ") for term in arm.terms)}


def _stacked(values: dict[str, Float], arm: CurveArm) -> Float:
    return np.stack([values[term] for term in arm.terms])


def _timed(work: Callable[[], Value]) -> tuple[float, Value]:
    started = time.process_time()
    value = work()
    return time.process_time() - started, value
