"""What numbers allow to be said of an effect: one rule, whoever measured it.

An effect is a gain only where its whole interval lies on the good side of zero; it is a clear one only where the same
holds of what it adds to the best control, and where nothing is left open: a placebo or a random-weight control that
does as well, a single seed, too few cut-offs.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from typing import Literal

Kind = Literal[
    "win",
    "win_not_over_control",
    "gain",
    "loss",
    "loss_unchecked",
    "unclear",
    "untrusted",
    "undefined",
    "controls",
]


@dataclass(frozen=True)
class Bounds:
    """The interval of a difference.

    Parameters
    ----------
    low, high : float
    higher_is_better : bool

    Examples
    --------
    >>> Bounds(-0.02, -0.01, False).above, Bounds(-0.02, 0.01, False).above, Bounds(-0.02, -0.01, True).below
    (True, False, True)
    """

    low: float
    high: float
    higher_is_better: bool = True

    @property
    def above(self) -> bool:
        """The whole interval lies on the good side of zero."""
        return self.low > 0 if self.higher_is_better else self.high < 0

    @property
    def below(self) -> bool:
        """The whole interval lies on the bad side of zero."""
        return self.high < 0 if self.higher_is_better else self.low > 0


def kind_of(own: Bounds, over_control: Bounds | None, *, doubts: bool, trusted: bool = True) -> Kind:
    """Which words an effect may be given.

    Parameters
    ----------
    own : Bounds
        Of the arm over the baseline.
    over_control : Bounds, optional
        Of the arm over the best control; None where that was not measured, which is a doubt.
    doubts : bool
        Whether anything is left open that a clear gain or loss needs.
    trusted : bool
        False where a placebo has an effect of its own.

    Examples
    --------
    >>> kind_of(Bounds(0.1, 0.2), Bounds(0.1, 0.2), doubts=False), kind_of(Bounds(0.1, 0.2), Bounds(-1, 1), doubts=True)
    ('win', 'win_not_over_control')
    >>> kind_of(Bounds(-1, 1), Bounds(0.1, 0.2), doubts=False), kind_of(Bounds(0.1, 0.2), None, doubts=True)
    ('unclear', 'gain')
    """
    if isnan(own.low) or isnan(own.high):
        return "undefined"
    if not trusted:
        return "untrusted"
    if own.above:
        if over_control is not None and not over_control.above:
            return "win_not_over_control"
        return "gain" if doubts else "win"
    if own.below:
        return "loss_unchecked" if doubts else "loss"
    return "unclear"
