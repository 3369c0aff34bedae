"""Intervals that may be looked at every day: a confidence sequence holds at all looks at once.

A fixed-horizon interval misses the truth at one look in twenty; whoever looks daily and stops at the first look that
excludes zero announces nothing far more often. A confidence sequence is wider, and is wrong *ever* with probability
α. The one here is the normal-mixture sequence behind the mixture sequential probability ratio test (Robbins 1970;
Johari, Pekelis & Walsh, arXiv 1512.04922; asymptotic form: Waudby-Smith et al., arXiv 2103.06476): an estimate with
standard error s at each look behaves, for many users, like Brownian motion in information time 1/s².
"""

from __future__ import annotations

import math


def mixture_variance(planned_error: float, alpha: float = 0.05) -> float:
    """Variance of the mixing normal that makes the sequence narrowest once the standard error is ``planned_error``.

    Parameters
    ----------
    planned_error : float
        Standard error expected at the end of the experiment, in the outcome's unit. It must be fixed beforehand: the
        guarantee does not hold for one that is chosen after looking.
    alpha : float
        Probability of ever missing the truth.

    Returns
    -------
    float
        ``−W₋₁(−α² / e) − 1`` times the planned variance, W₋₁ the lower branch of Lambert's function
        (Waudby-Smith et al., arXiv 2103.06476, appendix B).

    Examples
    --------
    >>> round(mixture_variance(1.0), 2)
    8.21
    """
    from scipy.special import lambertw

    return float(-lambertw(-(alpha**2) * math.exp(-1.0), k=-1).real - 1.0) * planned_error**2


def half_width(standard_error: float, mixture: float, alpha: float = 0.05) -> float:
    """Half the width of the confidence sequence at one look.

    Parameters
    ----------
    standard_error : float
        Of the estimate at this look.
    mixture : float
        As `mixture_variance` gives it; the same at every look.
    alpha : float
        Probability that the sequence ever misses the truth.

    Returns
    -------
    float
        ``√(v (v + τ²) / τ² · log((v + τ²) / (v α²)))`` with v the squared standard error and τ² the mixture; infinite
        where the standard error is not finite.

    Examples
    --------
    Wider than the 1.96 standard errors of one look, and about as wide long before the planned end as long after it:

    >>> tau = mixture_variance(0.1)
    >>> [round(half_width(error, tau) / error, 2) for error in (0.2, 0.1, 0.05)]
    [3.25, 3.04, 3.13]
    """
    if not math.isfinite(standard_error):
        return math.inf
    variance = standard_error**2
    if variance == 0:
        return 0.0
    total = variance + mixture
    return math.sqrt(variance * total / mixture * math.log(total / (variance * alpha**2)))


def p_value(estimate: float, standard_error: float, mixture: float) -> float:
    """Always-valid p-value of no difference: below α at some look with probability at most α under the null.

    It is the reciprocal of the mixture's likelihood ratio, at most 1; the running minimum over looks is valid too.

    Examples
    --------
    >>> p_value(0.0, 0.1, 0.02)
    1.0
    >>> tau, error = mixture_variance(0.1), 0.1
    >>> round(p_value(half_width(error, tau), error, tau), 6)
    0.05
    """
    if not math.isfinite(standard_error) or standard_error == 0:
        return 1.0 if estimate == 0 or not math.isfinite(standard_error) else 0.0
    variance = standard_error**2
    total = variance + mixture
    log_ratio = 0.5 * math.log(variance / total) + estimate**2 * mixture / (2 * variance * total)
    return min(1.0, math.exp(-log_ratio))
