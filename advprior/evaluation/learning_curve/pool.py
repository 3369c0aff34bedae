"""From cells to rows: differences of two arms with their intervals, by cut-off and pooled.

A difference is a ratio of sums over users. Its variance has two parts: who was tested (users, the same ones at every
cut-off where they come again) and whom the arms were fitted on (the draws). The first is that of the linearised ratio
summed by user (Cochran 1977, "Sampling techniques", §6), the second the variance of the draws' differences at a
cut-off; the interval takes t quantiles with the degrees of freedom of Satterthwaite (1946).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from advprior.evaluation.learning_curve.cells import METRICS, SEGMENTS, CellResult
from advprior.store.arrays import Double, Int
from advprior.store.uncertainty import quantile

#: Arms with a sign each: (1, arm), (−1, baseline); with four, a difference of two differences.
Contrast = tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Point:
    """A difference at one number of users.

    Attributes
    ----------
    mean : float
    by_user : float64 [U]
        What each user of the tables adds to it, centred: its variance over users is the sum of squares.
    by_draw : float64 [C, D]
        Differences of each cut-off's draws; NaN where nobody counts.
    users : float
        Tested, on average over draws and cut-offs.
    """

    mean: float
    by_user: Double
    by_draw: Double
    users: float

    def interval(self, together: int = 1) -> tuple[float, float]:
        """95 % interval, or one that holds for so many differences together (Bonferroni)."""
        variance, freedom = self.variance()
        half = quantile(1 - 0.025 / together, freedom) * variance**0.5 if variance > 0 else 0.0
        return self.mean - half, self.mean + half

    def variance(self) -> tuple[float, float]:
        """Variance and its degrees of freedom."""
        people = int((self.by_user != 0).sum())
        of_users = float((self.by_user**2).sum()) * people / max(people - 1, 1)
        draws = (~np.isnan(self.by_draw)).sum(1)
        spread = [row[~np.isnan(row)].var(ddof=1) / n for row, n in zip(self.by_draw, draws, strict=True) if n > 1]
        of_draws = float(sum(spread)) / len(self.by_draw) ** 2
        total = of_users + of_draws
        parts = of_users**2 / max(people - 1, 1) + of_draws**2 / max(int((draws - 1).sum()), 1)
        return total, total**2 / parts if parts > 0 else 1.0


def difference(
    cells: Sequence[Sequence[CellResult]],
    tested: Sequence[Int],
    everyone: int,
    arms: Sequence[Sequence[Contrast]],
    metric: str,
    segment: str = "overall",
) -> Point | None:
    """Arm − baseline over some cut-offs, pooled; None where nobody counts in the segment.

    Parameters
    ----------
    cells : sequence of sequences of CellResult
        Draws of each cut-off, equally many, all at one number of users.
    tested : sequence of int64 [P]
        Users of each cut-off's labels.
    everyone : int
        U.
    arms : sequence of sequences of Contrast
        Arm and baseline of each cell: the best ones need not be the same.
    """
    m, s = METRICS.index(metric), SEGMENTS.index(segment)
    credits = [[float(cell.weights[s].sum(dtype=np.float64)) for cell in draws] for draws in cells]
    counting = sum(any(row) for row in credits)
    by_user, by_draw, people = np.zeros(everyone), [], []
    for draws, users, named, totals in zip(cells, tested, arms, credits, strict=True):
        if not any(totals):
            continue
        row = np.full(len(draws), np.nan)
        for d, (cell, contrast, total) in enumerate(zip(draws, named, totals, strict=True)):
            if not total:
                continue
            credit = cell.weights[s].astype(np.float64)
            gap: Double = np.sum([sign * _sums(cell, arm, m, s) for sign, arm in contrast], axis=0)
            row[d] = gap.sum() / total
            people.append(int((credit > 0).sum()))
            share = (gap - row[d] * credit) / total
            np.add.at(by_user, users, share / (np.count_nonzero(totals) * counting))
        by_draw.append(row)
    if not by_draw:
        return None
    mean = float(np.mean([np.nanmean(row) for row in by_draw]))
    return Point(mean, by_user, np.asarray(by_draw), float(np.mean(people)))


def _sums(cell: CellResult, arm: str, metric: int, segment: int) -> Double:
    sums: Double = cell.sums[cell.names.index(arm), metric, segment].astype(np.float64)
    return sums


def crossing(points: Mapping[float, Point], *, higher_is_better: bool) -> dict[str, float | None]:
    """At how many users a gain has faded to nothing, by a line through the gains over log(users).

    Weighted least squares with the covariance of the points, which share those tested; the interval holds every number
    of users at which the line cannot be told from zero (Fieller 1954).

    Returns
    -------
    dict
        ``users``: where the line crosses zero, None where it does not fall; ``low``, ``high``: the ends of the
        interval, None for an end that the data do not give; ``slope``: gain for each tenfold of the users.
    """
    sizes = sorted(points)
    sign = 1.0 if higher_is_better else -1.0
    gains = sign * np.asarray([points[n].mean for n in sizes])
    covariance = _covariance([points[n] for n in sizes])
    design = np.stack([np.ones(len(sizes)), np.log10(sizes)], axis=1)
    weight = 1.0 / np.maximum(np.diag(covariance), 1e-18)
    inverse = np.linalg.pinv(design.T @ (weight[:, None] * design)) @ (design.T * weight)
    start, slope = inverse @ gains
    spread = inverse @ covariance @ inverse.T
    z = quantile(0.975, np.inf)
    # every x with (start + slope·x)² = z² · variance of the line at x
    roots = np.roots(
        [
            slope**2 - z**2 * spread[1, 1],
            2 * (start * slope - z**2 * spread[0, 1]),
            start**2 - z**2 * spread[0, 0],
        ]
    )
    real = sorted(float(root.real) for root in roots if abs(root.imag) < 1e-12)
    at = -start / slope if slope < 0 else None
    bounds = real if len(real) == 2 and slope**2 > z**2 * spread[1, 1] and slope < 0 else _one_side(real, start, slope)
    low, high = (None if b is None or not -1 < b < 12 else float(10**b) for b in bounds)
    users = None if at is None or not -1 < at < 12 else float(10**at)
    return {"users": users, "low": low, "high": high, "slope": float(slope)}


def _one_side(real: Sequence[float], start: float, slope: float) -> tuple[float | None, float | None]:
    """The lower end alone, where the slope is not clear of zero: the gain is clear below it."""
    if len(real) != 2:
        return None, None
    below = [root for root in real if start + slope * root > 0]
    return (min(below) if below else None), None


def _covariance(points: Sequence[Point]) -> Double:
    """Covariance of differences at several numbers of users, of the same tested users and of nested draws.

    All users are one draw, which has no luck to share.
    """
    by_user = np.stack([point.by_user for point in points])
    covariance: Double = by_user @ by_user.T
    for i, a in enumerate(points):
        for j, b in enumerate(points):
            draws = min(a.by_draw.shape[1], b.by_draw.shape[1])
            if draws > 1:
                left, right = a.by_draw[:, :draws], b.by_draw[:, :draws]
                joint = (left - left.mean(1, keepdims=True)) * (right - right.mean(1, keepdims=True))
                covariance[i, j] += float(joint.sum()) / ((draws - 1) * draws * len(left) ** 2)
    return covariance
