"""One arm against the control: differences and ratios of means, with an interval for one look and one for any look.

Intervals and p-values are of the same quantity: those of the difference come from its standard error (Welch's t), those
of the lift from the standard error of the logarithm of the ratio (delta method), each with Satterthwaite's degrees of
freedom. Normal quantiles would announce 18 % of the nulls at two users an arm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from advprior.store.arrays import Double
from advprior.store.uncertainty import quantile
from ranking.experiment.anytime import half_width, mixture_variance, p_value

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with its intervals.

    Attributes
    ----------
    estimate : float
    low, high : float
        For one look, fixed beforehand.
    p_value : float
        Of no effect, two-sided, at that look.
    anytime_low, anytime_high : float
        Hold at all looks at once: whoever looks daily stops by these.
    anytime_p_value : float
        At most 0.05 at some look, with probability 0.05 under no effect.
    """

    estimate: float
    low: float
    high: float
    p_value: float
    anytime_low: float
    anytime_high: float
    anytime_p_value: float


@dataclass(frozen=True)
class Effect:
    """One arm against the control, per user.

    Attributes
    ----------
    lift : Interval or None
        Relative: 0.05 is five percent more. None where a mean is not positive.
    difference : Interval
        In the outcome's unit.
    """

    lift: Interval | None
    difference: Interval

    def text(self) -> str:
        """The lift, else the difference, with both intervals."""
        of, form = (self.difference, "{:+.4g}") if self.lift is None else (self.lift, "{:+.2%}")
        estimate, low, high, any_low, any_high = (
            form.format(x) for x in (of.estimate, of.low, of.high, of.anytime_low, of.anytime_high)
        )
        return (
            f"{estimate} [{low}, {high}], p = {of.p_value:.3g}; at any look [{any_low}, {any_high}], "
            f"p = {of.anytime_p_value:.3g}"
        )


def effect(treated: Double, control: Double, planned: tuple[float, float] = (5000.0, 5000.0)) -> Effect:
    """Effect of one arm: difference of means, and their ratio less one.

    Parameters
    ----------
    treated, control : float64 [users of the arm]
        Outcome of each user; two users or more.
    planned : (float, float)
        Users of either arm that the experiment is planned to reach, fixed beforehand: the interval for any look is
        narrowest there.

    Examples
    --------
    >>> import numpy as np
    >>> result = effect(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0]))
    >>> result.difference.estimate, result.lift.estimate
    (2.0, 1.0)
    """
    means = float(treated.mean()), float(control.mean())
    variances = float(treated.var(ddof=1)), float(control.var(ddof=1))
    sizes = float(len(treated)), float(len(control))
    difference = _interval(means[0] - means[1], variances, sizes, planned)
    if min(means) <= 0:
        return Effect(None, difference)
    relative = variances[0] / means[0] ** 2, variances[1] / means[1] ** 2
    ratio = _interval(math.log(means[0] / means[1]), relative, sizes, planned)
    lift = Interval(
        math.expm1(ratio.estimate),
        math.expm1(ratio.low),
        math.expm1(ratio.high),
        ratio.p_value,
        math.expm1(ratio.anytime_low),
        math.expm1(min(ratio.anytime_high, 700.0)),  # beyond it a float is infinite
        ratio.anytime_p_value,
    )
    return Effect(lift, difference)


def _interval(
    estimate: float, variances: tuple[float, float], sizes: tuple[float, float], planned: tuple[float, float]
) -> Interval:
    """Both intervals of an estimate that is a difference of two independent means."""
    from scipy.special import stdtr

    parts = variances[0] / sizes[0], variances[1] / sizes[1]
    error = math.sqrt(sum(parts))
    if error == 0:
        certain = float(estimate == 0)
        return Interval(estimate, estimate, estimate, certain, estimate, estimate, certain)
    freedom = sum(parts) ** 2 / sum(part**2 / (size - 1) for part, size in zip(parts, sizes, strict=True))
    reach = quantile(0.5 + LEVEL / 2, freedom) * error
    chance = float(2 * stdtr(freedom, -abs(estimate) / error))
    mixture = mixture_variance(math.sqrt(variances[0] / planned[0] + variances[1] / planned[1]), 1 - LEVEL)
    # few users: a t quantile's share more than a normal one's, for the error is estimated
    stretch = quantile(0.5 + LEVEL / 2, freedom) / 1.959963984540054
    wide = stretch * half_width(error, mixture, 1 - LEVEL)
    any_look = p_value(estimate / stretch, error, mixture)
    return Interval(estimate, estimate - reach, estimate + reach, chance, estimate - wide, estimate + wide, any_look)
