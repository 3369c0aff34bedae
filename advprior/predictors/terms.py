"""Terms of a conditional logit over a wide catalog: what all points share once, and of each point only what is its own.

Drift is the same for every user at a time, and habit is zero but for the few advertisers of a history. So K terms at P
points over N advertisers are a few rows of N numbers and some cells, where an array of them would have K·P·N. Sums over
the catalog are taken of the rows, and corrected at the cells: the result is that of the array, to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from advprior.history.targets import Targets, rows_of
from advprior.store.arrays import Bool, Double, Float, Int

BLOCK = 2_000_000  # cells of points × advertisers that are made at once


@dataclass(frozen=True)
class Terms:
    """K terms of P points over N advertisers: D that start from shared rows, H that start from zero, a deviation.

    Attributes
    ----------
    shared : float32 [D, R, N]
        Drift at R times.
    row : int64 [P]
        The row of each point.
    offsets : int64 [P + 1]
        Cells of point p are ``offsets[p]:offsets[p + 1]``.
    index : int64 [offsets[-1]]
        Advertiser of each cell, ascending within a point.
    value : float32 [D + H, offsets[-1]]
        What each cell adds to each term.
    deviation : float32 [P, N], optional
        One term more, which has no cells: what a network says.
    """

    shared: Float
    row: Int
    offsets: Int
    index: Int
    value: Float
    deviation: Float | None = None

    def __len__(self) -> int:
        return len(self.value) + (self.deviation is not None)

    @property
    def points(self) -> int:
        """P."""
        return len(self.row)

    @property
    def size(self) -> int:
        """N."""
        return int(self.shared.shape[2])

    @property
    def point(self) -> Int:
        """The point of each cell."""
        return np.repeat(np.arange(self.points, dtype=np.int64), np.diff(self.offsets))

    def cells_at(self, point: Int, index: Int) -> tuple[Bool, Int]:
        """Which of n places [n] have a cell, and the cells of those."""
        cells, keys = self.point * self.size + self.index, point * self.size + index
        if not len(cells):
            return np.zeros(len(keys), np.bool_), np.zeros(0, np.int64)
        place = np.minimum(np.searchsorted(cells, keys), len(cells) - 1)
        own: Bool = cells[place] == keys
        return own, place[own]

    def beside(self, deviation: Float) -> Terms:
        """The same with a deviation [P, N] as the last term."""
        return replace(self, deviation=deviation)

    def take(self, points: slice | Bool | Int) -> Terms:
        """Some of the points; the rows stay what they are."""
        chosen = np.arange(self.points)[points]
        offsets, at = rows_of(self.offsets, chosen)
        deviation = None if self.deviation is None else self.deviation[points]
        return Terms(self.shared, self.row[chosen], offsets, self.index[at], self.value[:, at], deviation)

    def dense(self) -> Float:
        """As an array [K, P, N]."""
        out = np.zeros((len(self), self.points, self.size), np.float32)
        for k, rows in enumerate(self.shared):
            out[k] = rows[self.row]
        out[: len(self.value), self.point, self.index] += self.value
        if self.deviation is not None:
            out[-1] = self.deviation
        return out

    def logits(self, weights: npt.ArrayLike) -> Float:
        """``Σ w·term`` [P, N] of all points at once: see `blocks` where they are many."""
        single = np.asarray(weights, np.float32)
        if self.shared.shape[1] <= self.points:
            out: Float = np.tensordot(single[: len(self.shared)], self.shared, 1)[self.row]
        else:  # of a long table the rows of these points alone
            out = np.tensordot(single[: len(self.shared)], self.shared[:, self.row], 1)
        if self.deviation is not None:
            out += single[-1] * self.deviation
        out[self.point, self.index] += single[: len(self.value)] @ self.value
        return out

    def at(self, weights: npt.ArrayLike, columns: Int) -> Float:
        """`logits` [P, C] of some advertisers, all different."""
        single = np.asarray(weights, np.float32)
        out = np.zeros((self.points, len(columns)), np.float32)
        for weight, rows in zip(single, self.shared, strict=False):
            out += weight * rows[self.row[:, None], columns]
        if self.deviation is not None:
            out += single[-1] * self.deviation[:, columns]
        place, among = places(columns, self.index, self.size)
        out[self.point[among], place] += single[: len(self.value)] @ self.value[:, among]
        return out

    def blocks(self, weights: npt.ArrayLike) -> Iterator[Float]:
        """`logits` of all points, a block of them at a time."""
        step = max(BLOCK // max(self.size, 1), 1)
        for start in range(0, self.points, step):
            yield self.take(slice(start, start + step)).logits(weights)


def places(columns: Int, index: Int, size: int) -> tuple[Int, Bool]:
    """Which of ``index`` are among ``columns`` (a mask), and where there each of them stands.

    >>> [x.tolist() for x in places(np.array([4, 1]), np.array([1, 2, 4, 1]), 6)]
    [[1, 0, 1], [True, False, True, True]]
    """
    where = np.full(size, -1, np.int64)
    where[columns] = np.arange(len(columns))
    place = where[index]
    among: Bool = place >= 0
    return place[among], among


@dataclass(frozen=True)
class Moments:
    """The first two moments of the terms over the catalog under ``exp(logits)``, point by point.

    Attributes
    ----------
    log_norm : float64 [P]
    first : float64 [P, K]
    second : float64 [P, K, K]
    """

    log_norm: Double
    first: Double
    second: Double


class TermSums:
    """Sums over the catalog that the likelihood of some targets needs, for any weights of the terms.

    Parameters
    ----------
    terms : Terms
    truth : Targets
    """

    def __init__(self, terms: Terms, truth: Targets) -> None:
        self._terms = terms
        self._plain = [*range(len(terms.shared)), *([len(terms) - 1] if terms.deviation is not None else [])]
        self._before = self._at(terms.point, terms.index)
        self._after = self._before.copy()
        self._after[: len(terms.value)] += terms.value
        self._order = np.argsort(terms.row, kind="stable")
        self._stops = np.searchsorted(terms.row[self._order], np.arange(terms.shared.shape[1] + 1))
        self.chosen: Double = self._chosen(truth)

    def _at(self, point: Int, index: Int) -> Double:
        """Terms [K, n] at some cells as if no cell added to them."""
        terms = self._terms
        out = np.zeros((len(terms), len(point)))
        for k, rows in enumerate(terms.shared):
            out[k] = rows[terms.row[point], index]
        if terms.deviation is not None:
            out[-1] = terms.deviation[point, index]
        return out

    def _chosen(self, truth: Targets) -> Double:
        """``Σ truth·term`` [K]."""
        terms, point = self._terms, truth.point
        at = self._at(point, truth.index)
        own, place = terms.cells_at(point, truth.index)
        at[: len(terms.value), own] += terms.value[:, place]
        return at @ truth.value.astype(np.float64)

    def __call__(self, weights: Double) -> Moments:
        """Moments under these weights [K]."""
        terms = self._terms
        count, points = len(terms), terms.points
        shift, norm = np.zeros(points), np.zeros(points)
        first, second = np.zeros((points, count)), np.zeros((points, count, count))
        for row in np.flatnonzero(np.diff(self._stops)):
            chosen = self._order[self._stops[row] : self._stops[row + 1]]
            rows = terms.shared[:, row].astype(np.float64)
            if terms.deviation is None:
                whole = _sums(weights[: len(rows)] @ rows, rows)
                shift[chosen], norm[chosen] = whole[:2]
                first[np.ix_(chosen, self._plain)] = whole[2]
                second[np.ix_(chosen, self._plain, self._plain)] = whole[3]
                continue
            step = max(BLOCK // terms.size, 1)
            for part in np.split(chosen, range(step, len(chosen), step)):
                away = terms.deviation[part].astype(np.float64)
                logits = weights[-1] * away + weights[: len(rows)] @ rows
                shift[part], norm[part], ones, twos = _sums_beside(logits, rows, away)
                first[np.ix_(part, self._plain)] = ones
                second[np.ix_(part, self._plain, self._plain)] = twos
        return self._corrected(weights, shift, norm, first, second)

    def _corrected(self, weights: Double, shift: Double, norm: Double, first: Double, second: Double) -> Moments:
        """Sums with what the cells add: each cell's share taken out as it was, and put in as it is."""
        point, points = self._terms.point, self._terms.points
        before, after = weights @ self._before, weights @ self._after
        highest = shift.copy()
        np.maximum.at(highest, point, after)
        scale = np.exp(shift - highest)
        was, now = np.exp(before - highest[point]), np.exp(after - highest[point])

        def added(amount: Double) -> Double:
            total: Double = np.bincount(point, weights=amount, minlength=points).astype(np.float64)
            return total

        norm = norm * scale + added(now - was)
        first, second = first * scale[:, None], second * scale[:, None, None]
        for k in range(len(self._terms)):
            first[:, k] += added(now * self._after[k] - was * self._before[k])
            for other in range(k + 1):
                more = now * self._after[k] * self._after[other] - was * self._before[k] * self._before[other]
                second[:, k, other] += added(more)
                second[:, other, k] = second[:, k, other]
        norm = np.maximum(norm, np.finfo(np.float64).tiny)
        return Moments(highest + np.log(norm), first / norm[:, None], second / norm[:, None, None])


def _sums(logits: Double, rows: Double) -> tuple[float, float, Double, Double]:
    """Shift, norm, first and second moments (not divided by the norm) of rows [D, N] under ``exp(logits)`` [N]."""
    shift = float(logits.max())
    mass = np.exp(logits - shift)
    weighed = rows * mass
    return shift, float(mass.sum()), weighed.sum(1), weighed @ rows.T


def _sums_beside(logits: Double, rows: Double, away: Double) -> tuple[Double, Double, Double, Double]:
    """As `_sums` of P points, ``away`` [P, N] being one term more behind the rows."""
    count = len(rows)
    shift = logits.max(axis=1)
    mass = np.exp(logits - shift[:, None])
    ones, twos = np.empty((len(mass), count + 1)), np.empty((len(mass), count + 1, count + 1))
    ones[:, :count] = mass @ rows.T
    for k in range(count):
        twos[:, k, :count] = mass @ (rows[k] * rows).T
    norm = mass.sum(1)
    mass *= away
    ones[:, count] = mass.sum(1)
    twos[:, :count, count] = twos[:, count, :count] = mass @ rows.T
    twos[:, count, count] = np.einsum("pn,pn->p", mass, away)
    return shift, norm, ones, twos
