"""How sure a lift is: users and training seeds in one interval, and intervals that hold for many lifts at once.

**Two sources.** A lift is the mean over training seeds (and cut-offs) of differences between two arms' rankers, seed by
seed. Whatever both arms share in a seed, be it the same rankers as in a two-by-two or the same draw of rows, cancels in
that difference; and no other arm has a say in it. With B the variance of the mean under resampled users, W the variance
of the differences between seeds (divisor S - 1) and I that part of W which users make (differences of seeds vary with
the users drawn: half the variance of d_s - d_s' under resampling, averaged over pairs of seeds),

    error² = B + max(W - I, 0) / S.

B holds I / S already: to add W / S counts it twice, which covered 97-98 % of nulls in place of 95 %, and leaving out W
covered 89-94 % (docs/experiments/2026-11-26-intervals.md).

**Few seeds.** With L = max(W - I, 0) / S the error has Satterthwaite's degrees of freedom,

    error⁴ / (B² / (users - 1) + L · (W / S) / (S - 1)),

and the interval is the bootstrap's percentile interval stretched to the error and to Student's quantile. The last term
stands between L², which forgets that W is a guess of one degree of freedom where it is small by chance, and (W / S)²,
which makes two seeds' intervals three times too wide where users explain W; chosen by replays (same page). Where
training outweighs users tenfold, two seeds cover 88 %, three 92 %, five 95 %. Of several cut-offs, whose rankers are
fitted apart, W and I are means and S and S - 1 are times their number.

**Many lifts.** Single-step min-p (Westfall & Young 1993, section 2.3), which is max-t where all lifts have the same
degrees of freedom. Each replicate gives every lift of a family a p-value, from its users, who are the same for all, and
from luck drawn for each; the smallest of them has a distribution whose 5 % quantile is the level that holds for all.
Being joint in users, it costs less than Bonferroni or Holm where arms are alike.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, nan

import numpy as np

from advprior.store.arrays import Double


@dataclass(frozen=True, eq=False)
class Spread:
    """One difference with its uncertainty.

    Parameters
    ----------
    difference : float
        Mean over seeds and those cut-offs where it is defined.
    by_cutoff : float array [cut-offs]
        NaN where it is not.
    users : float array [replicates]
        Its deviations under resampled users; NaN where a replicate has no positive or no negative.
    luck : float
        Variance that training leaves in it, beyond what users make of it.
    error, freedom : float
        Standard error, and degrees of freedom of it.
    low, high : float
    seed_sd : float or None
        Standard deviation of the difference between seeds; None with one.
    """

    difference: float
    by_cutoff: Double
    users: Double
    luck: float
    error: float
    freedom: float
    low: float
    high: float
    seed_sd: float | None


def spread(differences: Double, users: int, level: float) -> Spread:
    """Uncertainty of the mean of one pair's differences.

    Parameters
    ----------
    differences : float array [cut-offs, seeds, 1 + replicates]
        Arm minus arm, seed by seed, on the users as they are and on those of each replicate.
    users : int
        Whose rows the difference is told by.
    level : float
        Nominal coverage.
    """
    seeds = differences.shape[1]
    by_cutoff = differences[:, :, 0].mean(axis=1)
    measured = differences[np.isfinite(by_cutoff)]
    sd = None if seeds == 1 else nan
    if not len(measured):
        return Spread(nan, by_cutoff, np.full(differences.shape[2] - 1, nan), nan, nan, inf, nan, nan, sd)
    difference, replicates = float(by_cutoff[np.isfinite(by_cutoff)].mean()), _mean(measured.mean(axis=1))[1:]
    defined = replicates[np.isfinite(replicates)]
    if len(defined) < 2:
        return Spread(difference, by_cutoff, replicates * nan, nan, nan, inf, nan, nan, sd)
    by_users, fits = float(defined.var(ddof=1)), seeds * len(measured)
    between = interaction = 0.0
    if seeds > 1:
        between = float(measured[:, :, 0].var(axis=1, ddof=1).mean())
        interaction = _interaction(measured)
        sd = float(np.sqrt(between))
    luck = max(between - interaction, 0.0) / fits
    error = float(np.sqrt(by_users + luck))
    terms = (by_users**2 / max(users - 1, 1), luck * between / fits / (fits - len(measured)) if luck else 0.0)
    freedom = max(error**4 / sum(terms), 1.0) if sum(terms) > 0 else inf
    low, high = _stretched(difference, defined, error, freedom, level)
    return Spread(difference, by_cutoff, replicates - defined.mean(), luck, error, freedom, low, high, sd)


def with_luck_of(one: Spread, other: Spread, level: float) -> Spread:
    """A spread whose baseline has seeds of its own, other in number than the arm's: both lucks add up.

    Parameters
    ----------
    one : Spread
        Of the arm's seeds minus the baseline's mean.
    other : Spread
        Of the arm's mean minus the baseline's seeds.
    level : float
        Nominal coverage.
    """
    if not one.error > 0 or not other.luck > 0:
        return one
    error, freedom = float(np.hypot(one.error, np.sqrt(other.luck))), min(one.freedom, other.freedom)
    upper = (1 + level) / 2
    by = error * quantile(upper, freedom) / (one.error * quantile(upper, one.freedom))
    centre = (one.low + one.high) / 2
    low, high = centre + (one.low - centre) * by, centre + (one.high - centre) * by
    return replace(one, luck=one.luck + other.luck, error=error, freedom=freedom, low=low, high=high)


def _mean(values: Double) -> Double:
    """Mean over the first axis of what is a number; NaN where nothing is."""
    if np.isnan(values).any():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # an empty slice is what NaN says
            mean: Double = np.nanmean(values, axis=0)
    else:  # the rule; watching for warnings would take most of the time
        mean = values.mean(axis=0)
    return mean


def _interaction(differences: Double) -> float:
    """Variance between seeds that users make: of the seeds' deviations from their mean, under resampled users."""
    deviations = differences[:, :, 1:] - differences[:, :, 1:].mean(axis=1, keepdims=True)
    if np.isnan(deviations).any() or deviations.shape[2] < 2:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            variances = np.nanvar(deviations, axis=2, ddof=1)
    else:
        variances = deviations.var(axis=2, ddof=1)
    per_cutoff = variances.sum(axis=1) / (differences.shape[1] - 1)
    return float(per_cutoff[np.isfinite(per_cutoff)].mean()) if np.isfinite(per_cutoff).any() else 0.0


def _stretched(
    difference: float, replicates: Double, error: float, freedom: float, level: float
) -> tuple[float, float]:
    """Percentile interval of the replicates, stretched about their mean to an error and a t quantile."""
    reach = quantile((1 + level) / 2, freedom) * error
    deviation = float(replicates.std(ddof=1))
    if deviation <= 1e-12 * max(error, abs(difference)):  # no user tells: luck alone
        return difference - reach, difference + reach
    centre = float(replicates.mean())
    # the (R + 1) p-th of R: a quantile of few replicates lies inside (Davison & Hinkley 1997, 5.2.3), by 1 % at R = 200
    ends = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2], method="weibull")
    low, high = centre + (ends - centre) * reach / (quantile((1 + level) / 2, inf) * deviation)
    return float(low), float(high)


def quantile(probability: float, freedom: float) -> float:
    """Of Student's distribution; of the normal one where the degrees of freedom are infinite.

    By the functions that ``scipy.stats`` calls, which alone take a hundredth of its time and no second to import.
    """
    from scipy.special import ndtri, stdtrit

    return float(stdtrit(freedom, probability) if np.isfinite(freedom) else ndtri(probability))


def _two_sided(ratios: Double, freedom: float) -> Double:
    from scipy.special import ndtr, stdtr

    p: Double = 2 * (stdtr(freedom, -np.abs(ratios)) if np.isfinite(freedom) else ndtr(-np.abs(ratios)))
    return p


@dataclass(frozen=True)
class Joint:
    """A lift's p-value alone, and what holds for it and its family at once."""

    p: float = nan
    p_adjusted: float = nan
    low: float = nan
    high: float = nan
    family: int = 1


def jointly(spreads: Sequence[Spread], level: float, rng: np.random.Generator) -> list[Joint]:
    """P-values and intervals of a family; a lift that is undefined, or of two equal arms, belongs to none."""
    members = [i for i, one in enumerate(spreads) if one.error > 0]
    out = [Joint(1.0, 1.0, one.low, one.high) if one.error == 0 else Joint() for one in spreads]
    if not members:
        return out
    smallest = np.ones(len(spreads[members[0]].users))
    for i in members:
        one = spreads[i]
        ratios = (np.nan_to_num(one.users) + np.sqrt(one.luck) * rng.standard_normal(len(smallest))) / one.error
        if np.isfinite(one.freedom):
            ratios = ratios / np.sqrt(rng.chisquare(one.freedom, len(smallest)) / one.freedom)
        smallest = np.minimum(smallest, _two_sided(ratios, one.freedom))
    smallest.sort()
    # one is added to both counts, so that no p is zero (Davison & Hinkley 1997, 4.11); the level is where p reaches it
    place = int(np.ceil((1 - level) * (1 + len(smallest)) - 1e-9)) - 2
    critical = float(smallest[max(place, 0)])
    for i in members:
        one = spreads[i]
        p = float(_two_sided(np.array(one.difference / one.error), one.freedom))
        below = int(np.searchsorted(smallest, p, side="right"))
        reach = quantile(1 - min(critical, 1 - level) / 2, one.freedom) * one.error
        adjusted = max((1 + below) / (1 + len(smallest)), p)
        low, high = min(one.difference - reach, one.low), max(one.difference + reach, one.high)
        out[i] = Joint(p, adjusted, low, high, len(members))
    return out
