"""What numbers allow to be said of an effect: one rule, whoever measured it.

An effect is a gain only where its whole interval lies on the good side of zero; it is a clear one only where the same
holds of what it adds to the best control, and where nothing is left open: a placebo or a random-weight control that
does as well, a single seed, too few cut-offs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from advprior.store.contract import PRETRAINED, READS_TEXTS

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

#: Controls that lack one thing of a treatment (`ranking.models.arms.Arm.kind`), and what each is called.
CONTROL_NAMES = {
    "random_weights": "random-weight control",
    "lexical": "lexical control",
    "masked": "control without names",
}


def expected_of(source: str) -> list[str]:
    """Controls of `CONTROL_NAMES` that belong beside a prior of a predictor.

    >>> expected_of("text"), expected_of("llm"), expected_of("sasrec")
    (['random_weights', 'lexical'], ['random_weights'], [])
    """
    return ["random_weights"] * (source in PRETRAINED) + ["lexical"] * (source in READS_TEXTS)


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


def kind_of(own: Bounds, *, unbeaten: bool, doubts: bool, trusted: bool = True) -> Kind:
    """Which words an effect that was measured may be given.

    Parameters
    ----------
    own : Bounds
        Of the arm over the baseline.
    unbeaten : bool
        Whether a control was measured that the arm is not clearly better than.
    doubts : bool
        Whether anything is left open that a clear gain or loss needs, a control that was not measured among it.
    trusted : bool
        False where a placebo has an effect of its own.

    Examples
    --------
    >>> kind_of(Bounds(0.1, 0.2), unbeaten=False, doubts=False), kind_of(Bounds(0.1, 0.2), unbeaten=True, doubts=True)
    ('win', 'win_not_over_control')
    >>> kind_of(Bounds(-1, 1), unbeaten=False, doubts=False), kind_of(Bounds(0.1, 0.2), unbeaten=False, doubts=True)
    ('unclear', 'gain')
    """
    if not trusted:
        return "untrusted"
    if own.above:
        return "win_not_over_control" if unbeaten else "gain" if doubts else "win"
    if own.below:
        return "loss_unchecked" if doubts else "loss"
    return "unclear"
