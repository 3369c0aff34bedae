"""A few alternatives of each label in the place of a whole catalog, to fit a logit's weights on more users.

Terms of all advertisers take N numbers a user and term: of 100,000 advertisers a gigabyte holds those of a hundred
users. McFadden ("Modelling the choice of residential location", 1978) shows that a conditional logit may be fitted on
the label and a sample of the others. Where advertiser a is drawn by itself with probability π(a), which may depend on
the user but not on the label, and ``-log π(a)`` is added to its logit, the label's own included, the weights are
consistent: no matter how few are drawn, what is fitted tends to what a fit on all would give.

Those likely to compete are drawn more often, so that few suffice: a third of the draws by popularity, a third by who is
near the user's history, a third by none of it. What a user has turned to before is always among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from advprior.evaluation.protocol import Labels
from advprior.evaluation.terms import NEAR_TERMS, POPULAR_TERMS, Terms
from advprior.history.targets import Targets
from advprior.predictors.logit import Dense
from advprior.store.arrays import Bool, Double, Float, Int

DRAWN = 500  # of each user, on average; their history is beside them
HISTORY = 1000  # advertisers of a history that are certain to be; of a longer one as many on average
EVERYONE_UP_TO = 5000  # advertisers: terms of a thousand users at three cut-offs are some 2 GB then
CHUNK_CELLS = 4_000_000  # of one term held at once
FAR = -1e9  # logit of an empty place


@dataclass
class EarlierLabels:
    """Labels of one earlier cut-off, and the terms as of then."""

    terms: Terms
    labels: Labels


@dataclass(frozen=True)
class Alternatives:
    """L labels, each with the advertisers it was chosen from: it stands first, C in all; some places are empty.

    Attributes
    ----------
    names : tuple of str
    terms : float32 [K, L, C]
    offset : float32 [L, C]
        ``-log π``, and `FAR` of an empty place.
    user : int64 [L]
    credit : float32 [L]
        What each label counts for.
    """

    names: tuple[str, ...]
    terms: Float
    offset: Float
    user: Int
    credit: Float

    @classmethod
    def draw(cls, windows: Sequence[EarlierLabels], size: int, *, seed: int, count: int = DRAWN) -> Alternatives:
        """Of the labels of all windows, ``count`` alternatives each on average."""
        rng = np.random.default_rng(seed)
        parts = [part for window in windows for part in _parts(window, size, rng, count)]
        names = tuple(name for name in parts[0].values if all(name in part.values for part in parts))
        counts = np.concatenate([part.counts for part in parts])
        filled = np.arange(counts.max(initial=1)) < counts[:, None]
        offset, terms = np.full(filled.shape, FAR, np.float32), np.zeros((len(names), *filled.shape), np.float32)
        offset[filled] = np.concatenate([part.offset for part in parts])
        for k, name in enumerate(names):
            terms[k][filled] = np.concatenate([part.values[name] for part in parts])
        user, credit = (np.concatenate([getattr(part, name) for part in parts]) for name in ("user", "credit"))
        return cls(names, terms, offset, user, credit)

    def design(self, names: Sequence[str], rows: Bool | slice = slice(None)) -> Dense:
        """Some of the terms of some labels, for `advprior.predictors.logit.fit_logit`."""
        chosen = [self.names.index(name) for name in names]
        return Dense(np.stack([self.terms[k][rows] for k in chosen]), self.offset[rows])

    def truth(self, rows: Bool | slice = slice(None)) -> Targets:
        """The first place of each of some labels."""
        credit = self.credit[rows]
        places = np.zeros(len(credit), np.int64)
        return Targets(np.arange(len(credit) + 1, dtype=np.int64), places, credit, self.offset.shape[1])


@dataclass(frozen=True)
class _Part:
    """Labels of some users; the cells of all of them lie one after another, the label's own before its others."""

    values: Mapping[str, Float]
    offset: Float
    counts: Int
    user: Int
    credit: Float


def _parts(window: EarlierLabels, size: int, rng: np.random.Generator, count: int) -> Iterator[_Part]:
    labels = window.labels
    for users in chunks(len(labels), size):
        inside = np.zeros(len(labels), np.bool_)
        inside[users] = True
        some = labels.keep(inside)
        values = window.terms(some.user)
        chance = _chances(values, count)
        drawn = rng.random(chance.shape) < chance
        columns = []
        for row, label in zip(some.row.tolist(), some.advertiser.tolist(), strict=True):
            others = np.flatnonzero(drawn[row])
            columns.append(np.r_[label, others[others != label]])
        counts = np.asarray([len(each) for each in columns], np.int64)
        point, column = np.repeat(some.row, counts), np.concatenate(columns)
        yield _Part(
            {name: value[point, column] for name, value in values.items()},
            -np.log(chance[point, column]).astype(np.float32),
            counts,
            some.user[some.row],
            some.credit.astype(np.float32),
        )


def _chances(values: Mapping[str, Float], count: int) -> Double:
    """The probability [P, N] that each user's advertisers are drawn; one of those in a history that is not too long."""
    popular = np.exp(values[POPULAR_TERMS[1]].astype(np.float64))
    near = np.exp(values[NEAR_TERMS[-1]].astype(np.float64))
    near -= near.min(axis=1, keepdims=True)
    total = near.sum(axis=1, keepdims=True)
    near = np.where(total > 0, near / np.maximum(total, 1e-12), popular)
    chance: Double = np.minimum((popular + near + 1.0 / popular.shape[1]) * (count / 3), 1.0)
    ever = values["ever"] > 0
    certain = np.minimum(HISTORY / np.maximum(ever.sum(axis=1, keepdims=True), 1), 1.0)
    return np.where(ever, np.maximum(chance, certain), chance)


def chunks(users: int, size: int) -> Iterator[slice]:
    """Users at a time, so many that one term of them has `CHUNK_CELLS` cells."""
    step = max(CHUNK_CELLS // max(size, 1), 1)
    for start in range(0, users, step):
        yield slice(start, start + step)
