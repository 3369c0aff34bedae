"""One cell of the map: everything fitted on some users' events before a cut-off, and how each arm answers after it.

Weights come from the chosen users' labels at earlier cut-offs; counts, similarities and factors from all of their
events before the cut-off. Whom the arms are tested on does not depend on whom they were fitted on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from advprior.evaluation.learning_curve.arms import (
    CurveArm,
    Kin,
    Source,
    arms_of,
    everyones_text_terms,
    is_whole,
    lift_text_terms,
    linear_text_terms,
    own_text_terms,
)
from advprior.evaluation.population import EARLIER
from advprior.evaluation.protocol import Labels, first_labels, marks
from advprior.evaluation.terms import Terms
from advprior.history.histories import Histories
from advprior.predictors.autoencoders import SEMANTIC_RIDGE, WIDEST, ease_weights
from advprior.predictors.logit import fit_logit, log_softmax, logit
from advprior.predictors.text.similar import text_kernel
from advprior.store.arrays import Bool, Double, Float, Int
from advprior.store.contract import POPULARITY

METRICS = ("recall@5", "nll")
#: (least, most) events of a user before the cut-off, and of an advertiser among those that were counted
HISTORY_RANGES = ((1, 1), (2, 4), (5, 20), (21, 100), (101, None))
ADVERTISER_RANGES = ((0, 0), (1, 10), (11, 100), (101, None))


def _ranges(kind: str, ranges: tuple[tuple[int, int | None], ...]) -> tuple[str, ...]:
    def called(least: int, most: int | None) -> str:
        return f"over {least - 1}" if most is None else f"{least}" if least == most else f"{least}-{most}"

    return tuple(f"{kind} {called(least, most)}" for least, most in ranges)


HISTORY, ADVERTISER = "history", "advertiser"
SEGMENTS = ("overall", *_ranges(HISTORY, HISTORY_RANGES), *_ranges(ADVERTISER, ADVERTISER_RANGES))
CHUNK_CELLS = 400_000  # of one term of those tested, at once
FIT_CELLS = 500_000  # of one term of the labels of one earlier cut-off, at most
FIT_USERS = 300  # whatever the number of advertisers
ENOUGH_LABELS = 300  # to fit on: with fewer, older windows are read
OLDEST = 6  # of them, in horizons before the cut-off
MEMORY_CELLS = 200_000_000  # of all terms of those tested that cells share: 0.8 GB


@dataclass(frozen=True)
class CutOff:
    """What all cells of one cut-off share.

    Attributes
    ----------
    histories : Histories
        Events before the cut-off.
    labels : Labels
        Of those tested.
    moment, back : int
        The cut-off, and how far before it labels to fit on start, in microseconds.
    cosines : dict of str to float32 [N, N]
        By source, the lexical one among them.
    sources : dict of str to Source
        What is behind each, without the lexical one.
    size, seed : int
        N; of ALS.
    pace : float
        What half-lives are multiplied by: the data's past may be short.
    shared : dict
        Terms of those tested that no cell changes, by chunk: filled by the first cell.
    """

    histories: Histories
    labels: Labels
    moment: int
    back: int
    cosines: Mapping[str, Float]
    sources: Mapping[str, Source]
    size: int
    seed: int
    pace: float = 1.0
    shared: dict[int, dict[str, Float]] = field(default_factory=dict)

    def terms(self, counted: Histories, moment: int) -> Terms:
        """Of those who were counted, from events before a moment."""
        return Terms(counted, moment, self.size, self.seed, pace=self.pace)

    @cached_property
    def semantic(self) -> dict[str, Float]:
        """Semantic matrix [N, N] by source; none where the advertisers are too many for linear autoencoders."""
        few = {name: cosine for name, cosine in self.cosines.items() if len(cosine) <= WIDEST}
        return {name: ease_weights(cosine, SEMANTIC_RIDGE).astype(np.float32) for name, cosine in few.items()}

    @cached_property
    def kernels(self) -> dict[str, Float]:
        """Kernel [N, N] of each source that has an arm of all its terms; none where the advertisers are too many."""
        whole = {name: cosine for name, cosine in self.cosines.items() if is_whole(name, self.sources)}
        return {name: text_kernel(cosine) for name, cosine in whole.items() if len(cosine) <= WIDEST}


@dataclass(frozen=True)
class CellResult:
    """How every arm did.

    Attributes
    ----------
    names : tuple of str
        A arms.
    kin : dict of str to Kin
        What is behind each of them, and which others differ from it in one thing alone.
    sums : float32 [A, metrics, segments, P]
        Credit-weighted marks of each tested user.
    weights : float32 [segments, P]
        Credit of each user's labels in each segment.
    valid_nll : float64 [A]
        Nats a label of an earlier cut-off, by weights fitted on the other half of the users; popularity has none.
    fitted_users, fitted_labels : int
    fitted_from : int
        When the oldest of those labels are looked for from, in microseconds.
    """

    names: tuple[str, ...]
    kin: Mapping[str, Kin]
    sums: Float
    weights: Float
    valid_nll: Double
    fitted_users: int
    fitted_labels: int
    fitted_from: int


def measure(case: CutOff, chosen: Int) -> CellResult | None:
    """Fit every arm on the ``chosen`` users' events and mark its answers; None where these have no label to fit on."""
    inside = np.zeros(len(case.histories), np.bool_)
    inside[chosen] = True
    counted = case.histories.with_rows(inside[case.histories.user_of_row])
    windows = _windows(case, counted)
    values, truth, user = _fit_points(case, counted, windows)
    if not len(truth):
        return None
    arms = arms_of(case.sources, set(values))
    half = np.random.default_rng(case.seed).permutation(len(case.histories))[user] % 2 == 0
    weights, valid = {}, [_nats(log_softmax(values[POPULARITY]), truth)]
    for name, arm in arms.items():
        terms = np.stack([values[term] for term in arm.terms])
        weights[name] = fit_logit(terms, truth)
        valid.append(_held_out(terms, truth, half, weights[name]))
    names = (POPULARITY, *arms)
    terms_now = case.terms(counted, case.moment).of(case.histories)
    sums, shares = _marked(case, terms_now, arms, weights, counted)
    kin = {name: arm.kin for name, arm in arms.items()}
    first = min(then for then, _ in windows)
    return CellResult(names, kin, sums, shares, np.asarray(valid), len(chosen), len(truth), first)


def _fit_points(
    case: CutOff, counted: Histories, windows: Sequence[tuple[int, int]]
) -> tuple[dict[str, Float], Float, Int]:
    """Terms by name [P, N], truth [P, N] and user [P] of the labels at all earlier cut-offs."""
    most = max(FIT_CELLS // case.size, FIT_USERS)
    parts: list[dict[str, Float]] = []
    truths: list[Float] = [np.zeros((0, case.size), np.float32)]
    users: list[Int] = [np.zeros(0, np.int64)]
    for then, horizon in windows:
        labels = first_labels(counted, then, horizon).sample(most, case.seed)
        terms = case.terms(counted.before(then), then)
        everyones = everyones_text_terms(terms, case.cosines, case.sources)
        parts.append(_all_terms(terms, labels.user, case, everyones))
        parts[-1][POPULARITY] = terms.popularity(labels.user)
        truths.append(labels.truth(case.size))
        users.append(labels.user)
    everywhere = set.intersection(*(set(part) for part in parts)) if parts else set()
    values = {name: np.concatenate([part[name] for part in parts]) for name in everywhere}
    return values, np.concatenate(truths), np.concatenate(users)


def _windows(case: CutOff, counted: Histories) -> list[tuple[int, int]]:
    """(earlier cut-off, how far labels are looked for) of each window with labels to fit on.

    A few hundred users may have a handful of labels in the newest: then older ones are read too, one after the other.
    """
    windows = [(case.moment - int(share * case.back), int(share * case.back)) for share in EARLIER]
    windows = [window for window in windows if len(first_labels(counted, *window))]
    labels = sum(len(first_labels(counted, *window)) for window in windows)
    first = int(counted.time.min(initial=case.moment))
    for older in range(2, OLDEST + 1):
        then = case.moment - older * case.back
        if labels >= ENOUGH_LABELS or then <= first:
            break
        more = len(first_labels(counted, then, case.back))
        windows += [(then, case.back)] if more else []
        labels += more
    return windows


def _all_terms(
    terms: Terms, users: Int, case: CutOff, everyones: Mapping[str, Float], chunk: int | None = None
) -> dict[str, Float]:
    """Every term [P, N] by name; what the cells of a cut-off share is kept with the chunk.

    ``everyones`` are the terms that are the same for every user.
    """
    shared = case.shared.get(chunk) if chunk is not None else None
    if shared is None:
        shared = own_text_terms(terms, users, case.cosines, case.sources)
        cells = len(shared) * len(case.labels) * case.size
        if chunk is not None and cells <= MEMORY_CELLS:
            case.shared[chunk] = shared
    wide = {name: np.broadcast_to(term, (len(users), case.size)) for name, term in everyones.items()}
    linear = linear_text_terms(terms, users, case.semantic) | lift_text_terms(terms, users, case.kernels)
    return terms(users) | shared | wide | linear


def _held_out(terms: Float, truth: Float, half: Bool, fitted: Double) -> float:
    """Nats a label by weights that did not see its user."""
    nats = 0.0
    for side in (True, False):
        if not (half == side).any():
            continue
        other = fit_logit(terms[:, half != side], truth[half != side], start=fitted) if (half != side).any() else fitted
        answers = logit(list(terms[:, half == side]), other)
        nats += _nats(answers, truth[half == side]) * float(truth[half == side].sum(dtype=np.float64))
    return nats / float(truth.sum(dtype=np.float64))


def _nats(log_probs: Float, truth: Float) -> float:
    """Nats a label."""
    return -float((truth * log_probs).sum(dtype=np.float64)) / float(truth.sum(dtype=np.float64))


def _marked(
    case: CutOff, terms: Terms, arms: Mapping[str, CurveArm], weights: Mapping[str, Double], counted: Histories
) -> tuple[Float, Float]:
    """Sums [A, metrics, segments, P] and credits [segments, P] of those tested, some users at a time."""
    people = len(case.labels)
    masks, everyones = _segments(case, counted), everyones_text_terms(terms, case.cosines, case.sources)
    shares = np.zeros((len(SEGMENTS), people), np.float32)
    sums = np.zeros((len(arms) + 1, len(METRICS), len(SEGMENTS), people), np.float32)
    step = max(CHUNK_CELLS // case.size, 1)
    for start in range(0, people, step):
        part = np.zeros(people, np.bool_)
        part[start : start + step] = True
        labels, inside = case.labels.keep(part), masks[:, part[case.labels.row]]
        for s, mask in enumerate(inside):
            shares[s, part] = np.bincount(labels.row, labels.credit * mask, minlength=len(labels))
        values = _all_terms(terms, labels.user, case, everyones, start)
        answers = {POPULARITY: log_softmax(terms.popularity(labels.user))}
        answers |= {name: logit([values[term] for term in arm.terms], weights[name]) for name, arm in arms.items()}
        for a, log_probs in enumerate(answers.values()):
            by_metric = marks(log_probs, labels)
            for m, metric in enumerate(METRICS):
                for s, mask in enumerate(inside):
                    credited = by_metric[metric] * labels.credit * mask
                    sums[a, m, s, part] = np.bincount(labels.row, credited, minlength=len(labels))
    return sums, shares


def _segments(case: CutOff, counted: Histories) -> Bool:
    """Which labels count in each of `SEGMENTS` [segments, L]; an advertiser's events are those that were counted."""
    length = np.diff(case.histories.offsets)[case.labels.user][case.labels.row]
    events = np.bincount(counted.advertiser, minlength=case.size)[case.labels.advertiser]
    by_length = [_within(length, *ends) for ends in HISTORY_RANGES]
    by_events = [_within(events, *ends) for ends in ADVERTISER_RANGES]
    return np.stack([np.ones(len(length), np.bool_), *by_length, *by_events])


def _within(counted: Int, least: int, most: int | None) -> Bool:
    inside: Bool = (counted >= least) & (counted <= (counted.max(initial=0) if most is None else most))
    return inside
