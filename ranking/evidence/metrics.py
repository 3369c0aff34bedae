"""What an arm is judged by: metrics as value objects that take many weightings of users at once.

Users are the unit of resampling, so every metric is written as a function of one weight per user:
``metric.weighted(rows, weights)`` maps ``weights [users, replicates]`` to ``[replicates]``. Sums over rows become one
sum per user, taken once; the curves behind AUC and PR-AUC keep, for every distinct score of a positive, how many
negatives of each user lie above it (a sparse matrix). Both are exact: nothing is binned, ties count as they should.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from advprior.store.arrays import Double, Int
from ranking.evidence.ordering import expected_reciprocal

_EPS = 1e-7  # probabilities are clipped there before a logarithm


def ratio(top: Double, bottom: Double) -> Double:
    """``top / bottom``, not a number where there is nothing to divide by."""
    out: Double = np.full(np.broadcast(top, bottom).shape, np.nan)
    np.divide(top, bottom, out=out, where=bottom > 0)
    return out


def _sums(index: Int, values: ArrayLike, size: int = 0) -> Double:
    """Sum of values per index."""
    sums = np.bincount(index, weights=np.asarray(values, dtype=np.float64), minlength=size)
    return np.asarray(sums, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Rows:
    """Scored impressions of one arm.

    Parameters
    ----------
    label : array [n] of 0/1
    score : array [n]
        Probability of label 1.
    user : array [n] of int, optional
        Index of the user of each row, ``0 … users − 1``. All one user when left out.
    slate : array [n] of int, optional
        Slate of each row; needed by NDCG and MRR. A slate belongs to one user.
    users : int, optional
        Number of users, when some of them have no row here.
    """

    label: NDArray[np.int8]
    score: Double
    user: Int
    slate: Int | None
    users: int
    _memo: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        label: ArrayLike,
        score: ArrayLike,
        *,
        user: ArrayLike | None = None,
        slate: ArrayLike | None = None,
        users: int | None = None,
    ) -> Rows:
        """Rows from anything array-like."""
        y = np.asarray(label, dtype=np.int8)
        who = np.zeros(len(y), dtype=np.int64) if user is None else np.asarray(user, dtype=np.int64)
        if users is None:
            users = int(who.max()) + 1 if len(who) else 1
        return cls(y, np.asarray(score, dtype=np.float64), who, None if slate is None else np.asarray(slate), users)

    def per_user(self, values: ArrayLike) -> Double:
        """Sum of a value per row over each user's rows, [users]."""
        return _sums(self.user, values, self.users)

    @cached_property
    def positives(self) -> Double:
        """Positives per user."""
        return self.per_user(self.label)

    @cached_property
    def counts(self) -> Double:
        """Rows per user."""
        return np.bincount(self.user, minlength=self.users).astype(np.float64)

    @cached_property
    def loss(self) -> Double:
        """Sum of the log-loss over each user's rows."""
        p = np.clip(self.score, _EPS, 1 - _EPS)
        return self.per_user(-np.where(self.label == 1, np.log(p), np.log1p(-p)))

    @cached_property
    def _curve(self) -> tuple[Any, Any, Any]:
        """Sparse [distinct scores of positives, users], best score first: positives there; negatives tied with it;
        negatives strictly between it and the next better one.
        """
        positive = self.label == 1
        steps = np.unique(self.score[positive])  # rising
        at = np.searchsorted(steps, self.score, side="left")  # first step >= score
        tied = (at < len(steps)) & (steps[np.minimum(at, len(steps) - 1)] == self.score) if len(steps) else positive

        def matrix(rows: NDArray[np.bool_], slot: Int) -> Any:
            place, shape = (len(steps) - 1 - slot[rows], self.user[rows]), (len(steps), self.users)
            return sparse.coo_matrix((np.ones(int(rows.sum())), place), shape=shape).tocsr()

        # a negative strictly between two steps lies above the lower one; below the lowest it ranks above no positive
        return matrix(positive, at), matrix(~positive & tied, at), matrix(~positive & ~tied & (at > 0), at - 1)

    def part(self, mask: NDArray[np.bool_]) -> Rows:
        """Some of the rows, in their order; users keep their index. The order within slates is taken over."""
        part = Rows(
            self.label[mask],
            self.score[mask],
            self.user[mask],
            None if self.slate is None else self.slate[mask],
            self.users,
        )
        if self.slate is not None:
            order = self._slate_order
            part.__dict__["_slate_order"] = (np.cumsum(mask) - 1)[order[mask[order]]]
        return part

    def memo(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` gave for ``key`` the first time: work that does not depend on the weights."""
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]

    def curve(self, weights: Double) -> tuple[Double, Double, Double, Double]:
        """Positives at each step, positives and negatives down to it, negatives tied with it: [steps, replicates].

        Kept for the last weights asked for: AUC and PR-AUC share it.
        """
        if self._memo.get("weights") is not weights:
            positive, tied, above = self._curve
            here = positive @ weights
            ties = tied @ weights if tied.nnz else np.zeros((1, 1))
            down_to = np.cumsum(above @ weights + ties, axis=0)
            self._memo.update(weights=weights, curve=(here, np.cumsum(here, axis=0), down_to, ties))
        curve: tuple[Double, Double, Double, Double] = self._memo["curve"]
        return curve

    @cached_property
    def _slate_order(self) -> Int:
        """Rows by slate and falling score; equal scores keep their order."""
        if self.slate is None:
            raise ValueError("NDCG and MRR need the slate of every row")
        order: Int = np.lexsort((-self.score, self.slate))
        return order

    @cached_property
    def slates(self) -> Slates:
        """The rows sorted by slate and falling score."""
        order = self._slate_order
        assert self.slate is not None
        own, score, label = self.slate[order], self.score[order], self.label[order].astype(np.float64)
        new_slate = np.ones(len(order), dtype=bool)
        new_slate[1:] = own[1:] != own[:-1]
        slate = np.cumsum(new_slate) - 1
        new_tie = new_slate | (np.diff(score, prepend=np.nan) != 0)
        starts, tie = np.flatnonzero(new_slate), np.cumsum(new_tie) - 1
        return Slates(
            slate=slate,
            place=np.arange(len(slate)) - starts[slate],
            tied=np.bincount(tie)[tie],
            hits=_sums(tie, label)[tie],
            tie_place=(np.flatnonzero(new_tie)[tie] - starts[slate]).astype(np.int64),
            user=self.user[order][starts],
            positives=_sums(slate, label).astype(np.int64),
        )


@dataclass(frozen=True, eq=False)
class Slates:
    """Rows by slate and falling score: the first five per row, the last two per slate."""

    slate: Int
    place: Int  # 0 = shown first
    tied: Int  # rows of the same slate and score
    hits: Double  # positives among them
    tie_place: Int  # place of the first of them
    user: Int
    positives: Int

    def to_users(self, values: Double, users: int) -> tuple[Double, Double]:
        """Sum over each user's slates with a positive, and how many they are."""
        counted = self.positives > 0
        total = _sums(self.user[counted], values[counted], users)
        return total, np.bincount(self.user[counted], minlength=users).astype(np.float64)


@dataclass(frozen=True)
class Metric:
    """A number that says how good scores are. Equal by value, so that it can be a key."""

    name: ClassVar[str] = ""
    label: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = True

    def weighted(self, rows: Rows, weights: Double) -> Double:
        """Value under each column of ``weights [users, replicates]``; not a number where it is undefined."""
        raise NotImplementedError

    def __call__(self, rows: Rows) -> float:
        """Value with every user counted once."""
        return float(self.weighted(rows, np.ones((rows.users, 1)))[0])


@dataclass(frozen=True)
class Auc(Metric):
    """Probability that a positive scores above a negative; ties count half.

    >>> Auc()(Rows.of([1, 0, 1, 0], [0.9, 0.5, 0.5, 0.1]))
    0.875
    """

    name = "auc"
    label = "AUC"

    def weighted(self, rows: Rows, weights: Double) -> Double:
        positives = rows.positives @ weights
        negatives = (rows.counts - rows.positives) @ weights
        here, _, down_to, ties = rows.curve(weights)
        inverted = (here * (down_to - ties / 2)).sum(axis=0)  # negatives above a positive, ties half
        return 1 - ratio(inverted, positives * negatives)


@dataclass(frozen=True)
class PrAuc(Metric):
    """Area under precision-recall as average precision: precision at each positive, averaged.

    Tied scores are one step of the curve, as in scikit-learn: no order of rows decides; it is no mean over orders.
    """

    name = "pr_auc"
    label = "PR-AUC"

    def weighted(self, rows: Rows, weights: Double) -> Double:
        here, hits, down_to, _ = rows.curve(weights)
        return ratio((here * np.nan_to_num(ratio(hits, hits + down_to))).sum(axis=0), rows.positives @ weights)


@dataclass(frozen=True)
class LogLoss(Metric):
    """Mean negative log-likelihood, nats per impression."""

    name = "log_loss"
    label = "Log-loss"
    higher_is_better = False

    def weighted(self, rows: Rows, weights: Double) -> Double:
        return ratio(rows.loss @ weights, rows.counts @ weights)


@dataclass(frozen=True)
class NormalisedEntropy(Metric):
    """Log-loss over that of always predicting the base rate: 1 is worth nothing, lower is better."""

    name = "normalised_entropy"
    label = "Normalised entropy"
    higher_is_better = False

    def weighted(self, rows: Rows, weights: Double) -> Double:
        counts = rows.counts @ weights
        rate = ratio(rows.positives @ weights, counts)
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
        return ratio(ratio(rows.loss @ weights, counts), np.nan_to_num(entropy))


@dataclass(frozen=True)
class Ece(Metric):
    """Expected calibration error: mean distance of predicted and observed rate over bins of equal size.

    The bins' edges are quantiles of the scores as they are, the same under every weighting.
    """

    bins: int = 15
    name = "ece"
    label = "ECE"
    higher_is_better = False

    def per_user(self, rows: Rows) -> Double:
        """Sum of label minus score per bin and user, [bins, users]."""
        edges = np.quantile(rows.score, np.linspace(0, 1, self.bins + 1)[1:-1]) if len(rows.score) else np.array([])
        cell = np.searchsorted(edges, rows.score, side="right") * rows.users + rows.user
        gap = _sums(cell, rows.label - rows.score, self.bins * rows.users)
        return gap.reshape(self.bins, rows.users)

    def weighted(self, rows: Rows, weights: Double) -> Double:
        gap = rows.memo(self, lambda: self.per_user(rows))
        return ratio(np.abs(gap @ weights).sum(axis=0), rows.counts @ weights)


class SlateMetric(Metric):
    """A mean over slates with a positive, kept as one sum and one count per user."""

    def per_user(self, rows: Rows) -> tuple[Double, Double]:
        """Sum over a user's slates, and number of those slates, [users] each."""
        raise NotImplementedError

    def weighted(self, rows: Rows, weights: Double) -> Double:
        sums: tuple[Double, Double] = rows.memo(self, lambda: self.per_user(rows))
        return ratio(sums[0] @ weights, sums[1] @ weights)


@dataclass(frozen=True)
class Ndcg(SlateMetric):
    """Normalised discounted gain of each slate's first ``k``, over slates with a positive.

    Tied scores share their mean gain: the value expected when ties are broken at random.
    """

    k: int = 10

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"ndcg_{self.k}"

    @property
    def label(self) -> str:  # type: ignore[override]
        return f"NDCG@{self.k}"

    def per_user(self, rows: Rows) -> tuple[Double, Double]:
        slates = rows.slates
        discount = np.where(slates.place < self.k, 1 / np.log2(slates.place + 2.0), 0.0)
        gain = _sums(slates.slate, slates.hits / slates.tied * discount)
        best = np.r_[0.0, np.cumsum(1 / np.log2(np.arange(self.k) + 2.0))][np.minimum(slates.positives, self.k)]
        return slates.to_users(ratio(gain, best), rows.users)


@dataclass(frozen=True)
class Mrr(SlateMetric):
    """Reciprocal place of the first positive of each slate, over slates with a positive.

    Tied scores give the mean over all their orders: 0.611 for one positive of three, where 1 / mean place is 0.5.

    >>> round(Mrr()(Rows.of([1, 0, 0], [0.5, 0.5, 0.5], slate=[1, 1, 1])), 3)
    0.611
    """

    name = "mrr"
    label = "MRR"

    def per_user(self, rows: Rows) -> tuple[Double, Double]:
        slates = rows.slates
        hit = np.flatnonzero(slates.hits > 0)
        slate, first = np.unique(slates.slate[hit], return_index=True)
        at, value = hit[first], np.zeros(len(slates.user))
        value[slate] = expected_reciprocal(slates.tie_place[at], slates.tied[at], slates.hits[at])
        return slates.to_users(value, rows.users)


@dataclass(frozen=True)
class Conversions(SlateMetric):
    """Positives among the first ``k`` ads of each slate: what an ad load of ``k`` converts, per slate.

    Slates without a positive count. Tied scores share their mean. Unbiased only for ads shown: no other has a label.
    """

    k: int = 5

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"conversions_{self.k}"

    @property
    def label(self) -> str:  # type: ignore[override]
        return f"Conversions@{self.k}"

    def per_user(self, rows: Rows) -> tuple[Double, Double]:
        slates = rows.slates
        shown = np.where(slates.place < self.k, slates.hits / slates.tied, 0.0)
        total = _sums(slates.user[slates.slate], shown, rows.users)
        return total, np.bincount(slates.user, minlength=rows.users).astype(np.float64)


#: What an ablation reports, the metric that its verdict is about first.
DEFAULT_METRICS: tuple[Metric, ...] = (Auc(), PrAuc(), LogLoss(), Ndcg(10), Conversions(5))
#: Reported per arm without an interval.
MORE_METRICS: tuple[Metric, ...] = (NormalisedEntropy(), Ece(), Mrr())


def calibration_curve(label: ArrayLike, score: ArrayLike, bins: int = 15) -> list[dict[str, float]]:
    """Mean score, observed rate and rows in bins of equal size, lowest scores first.

    >>> calibration_curve([0, 1, 1, 1], [0.1, 0.2, 0.7, 0.9], bins=2)[1]
    {'predicted': 0.8, 'observed': 1.0, 'rows': 2}
    """
    y, p = np.asarray(label, dtype=np.float64), np.asarray(score, dtype=np.float64)
    parts = [part for part in np.array_split(np.argsort(p, kind="stable"), bins) if len(part)]
    return [{"predicted": float(p[i].mean()), "observed": float(y[i].mean()), "rows": len(i)} for i in parts]
