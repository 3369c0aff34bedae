"""What one arm may be said to have done: never without its control and its placebo, or that none was measured.

A claim is one lift with the two that belong beside it, of the same segment and step: the best control's, which says
whether something cheaper does as well, and the placebo's, which says what columns that tell nothing of the user do.
Both are read by their joint intervals, since there are many of them. Which words are allowed follows from all three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, isnan
from typing import Any, Literal

from advprior.store.features import Feature
from ranking.evidence.lift import Lift
from ranking.evidence.wording import uncapitalised
from ranking.frame.checks import MIN_COVERAGE
from ranking.frame.coverage import CoverageGap
from ranking.models.arms import Arms, predictors_of

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

#: A headline for each kind, for badges and terminals.
HEADLINES: dict[str, str] = {
    "win": "Clear gain",
    "win_not_over_control": "Gain, but not over a cheaper prior",
    "gain": "A gain that is not checked in full",
    "loss": "Clear loss",
    "loss_unchecked": "A loss that is not checked in full",
    "unclear": "No clear effect",
    "untrusted": "Not to be trusted",
    "undefined": "Not measurable",
    "controls": "No treatment: what controls give",
}


def headline(kind: Kind, name: str, one_seed: bool) -> str:
    """A headline that says whose verdict it is.

    >>> headline("unclear", "LLM priors", False), headline("unclear", "LLM priors", True)
    ('LLM priors: no clear effect', 'LLM priors: no effect told apart from zero by one seed')
    """
    words = "no effect told apart from zero by one seed" if one_seed and kind == "unclear" else HEADLINES[kind]
    return f"{name}: {uncapitalised(words)}" if name else words


def jointly(lift: Lift) -> Lift:
    """The same difference with the interval that holds for all comparisons at once, where there is one.

    >>> one = Lift("llm", "baseline", "auc", "overall", 0.9, 0.89, 0.01, 0.011, 0.005, 0.015, 1000)
    >>> jointly(replace(one, adjusted_low=0.002, adjusted_high=0.018)).text(), jointly(one).text()
    ('+0.0100 [+0.0020, +0.0180]', '+0.0100 [+0.0050, +0.0150]')
    """
    if not (isfinite(lift.adjusted_low) and isfinite(lift.adjusted_high)):
        return lift
    return replace(lift, low=lift.adjusted_low, high=lift.adjusted_high)


#: What the intervals of printed sentences hold for.
JOINT_NOTE = (
    "(the first interval of a verdict is its own; those of controls, placebos, segments and further arms hold for all "
    "comparisons at once)"
)


@dataclass(frozen=True)
class Beside:
    """A control or a placebo beside a claim, of the same segment and step.

    Parameters
    ----------
    name : str
        What it is called in the middle of a sentence.
    own : Lift
        Its own lift over the baseline.
    over : Lift, optional
        The claim's arm minus it; None where the two were not compared.
    gap : CoverageGap, optional
        Where it has too few priors itself.
    """

    name: str
    own: Lift
    over: Lift | None = None
    gap: CoverageGap | None = None

    def text(self, arm: str) -> str:
        """Its lift, and that of an arm over it, by joint intervals."""
        words = jointly(self.own).text()
        if self.gap is not None:
            words += f" (with a prior on {100 * self.gap.share:.0f} % of the {self.gap.of} only)"
        if self.over is None:
            return f"{words} ({arm} not compared with it)"
        return f"{words}; {arm} over it: {jointly(self.over).text()}"


@dataclass(frozen=True)
class Claim:
    """One arm's effect, with what must stand beside it.

    Parameters
    ----------
    name : str
        What the arm is called in the middle of a sentence.
    lift : Lift
        Over the baseline.
    control, placebo : Beside, optional
        None where none was measured.
    gap : CoverageGap, optional
        Where too few impressions have the prior.
    is_control : bool
        The arm is what others are held against: no control stands beside it, and nothing of it is clear.
    trained : str
        What there is one or more of, with noise of training: a ranker's seed, a fit of the towers.

    Examples
    --------
    >>> lift = Lift("llm", "baseline", "auc", "overall", 0.9, 0.89, 0.01, 0.011, 0.005, 0.015, 1000)
    >>> Claim("LLM priors", lift).outcome()
    'a gain; whether a control does as well was not measured'
    >>> Claim("LLM priors", replace(lift, seeds=1)).outcome()
    'a gain; by one seed: the noise of training is not in its interval; whether a control does as well was not measured'
    """

    name: str
    lift: Lift
    control: Beside | None = None
    placebo: Beside | None = None
    gap: CoverageGap | None = None
    is_control: bool = False
    trained: str = "seed"

    @property
    def one_seed(self) -> bool:
        """Whether the noise of training is in no interval, since there is one ranker an arm."""
        return not self.lift.conclusive

    @property
    def kind(self) -> Kind:
        """A key of `HEADLINES`."""
        if isnan(self.lift.difference) or self.gap is not None:
            return "undefined"
        if self.placebo is not None and _apart(jointly(self.placebo.own)):
            return "untrusted"
        if above(self.lift):
            if self.control is not None and self.control.over is not None and not above(jointly(self.control.over)):
                return "win_not_over_control"
            return "gain" if self.is_control or self._doubts() else "win"
        if below(self.lift):
            return "loss_unchecked" if self.is_control or self._doubts() else "loss"
        return "unclear"

    def _doubts(self) -> list[str]:
        """What a gain or a loss lacks to be called clear."""
        doubts = [f"by one {self.trained}: the noise of training is not in its interval"] if self.one_seed else []
        if self.is_control:
            return doubts
        against = None if self.placebo is None or self.placebo.over is None else jointly(self.placebo.over)
        if below(self.lift):
            if against is None:
                doubts.append("whether columns that say nothing cost as much was not measured")
            elif not below(against):
                doubts.append("not told apart from the placebo, whose columns say nothing of the user")
            return doubts
        if self.control is None:
            doubts.append("whether a control does as well was not measured")
        elif self.control.over is None:
            doubts.append("its difference from the control's was not measured")
        elif self.control.gap is not None:
            doubts.append("the control lacks too many priors to be held against it")
        if against is not None and not above(against):
            doubts.append("not told apart from the placebo, whose columns say nothing of the user")
        return doubts

    def outcome(self) -> str:
        """What happened, in the words that the numbers allow."""
        kind = self.kind
        if kind == "undefined":
            return "not measurable" if self.gap is None else f"undefined: {gap_text(self.gap)}"
        if kind == "untrusted":
            return "not to be trusted: its placebo, which says nothing of the user, changes the ranker as well"
        if kind == "win":
            return "a clear gain, also over the best control"
        if kind == "win_not_over_control":
            assert self.control is not None
            assert self.control.over is not None
            also = f" by one {self.trained}" if self.one_seed else ""
            worse = below(jointly(self.control.over))
            return (
                f"a gain{also}, but not over the best control: "
                f"{'the cheaper prior is the better one' if worse else 'a cheaper prior does as well'}"
            )
        if kind == "loss":
            return "a clear loss, against the placebo as well"
        if kind == "unclear":
            return f"no effect told apart from zero by one {self.trained}" if self.one_seed else "no clear effect"
        return "; ".join(["a gain" if kind == "gain" else "a loss", *self._doubts()])

    @property
    def headline(self) -> str:
        """Whose effect, and what it is, in a few words."""
        return headline(self.kind, self.name, self.one_seed)

    def numbers(self) -> str:
        """The control's and the placebo's lift in brackets."""
        control, placebo = "no control was measured", "no placebo was measured"
        if self.control is not None:
            control = f"best control: {self.control.name}, {jointly(self.control.own).text()}"
        if self.placebo is not None:
            placebo = f"placebo: {jointly(self.placebo.own).text()}"
        return f"({placebo})" if self.is_control else f"({control}; {placebo})"

    def beside(self) -> str:
        """The control's and the placebo's sentences, each by joint intervals."""
        if self.is_control and self.placebo is None:
            return "It is a control itself, and no placebo of it was measured."
        return f"{self._control()} {self._placebo()}"

    def _control(self) -> str:
        if self.is_control:
            return "It is a control itself."
        if self.control is None:
            return "No control was measured in this step."
        return f"Best control, {self.control.name}: {self.control.text(self.name)}."

    def _placebo(self) -> str:
        if self.placebo is None:
            return "No placebo was measured in this step."
        own = jointly(self.placebo.own)
        if isnan(own.difference):
            word = "not measurable"
        else:
            word = "which should be nothing and is not" if _apart(own) else "not told apart from zero, as it should be"
        if self.is_control:
            return f"The {self.placebo.name}: {own.text()}, {word}."
        over = "" if self.placebo.over is None else f"; {self.name} over it: {jointly(self.placebo.over).text()}"
        return f"Its {self.placebo.name}: {own.text()}, {word}{over}."


def gap_text(gap: CoverageGap) -> str:
    """Cause and cure of a lift that is not that of the prior.

    >>> gap_text(CoverageGap(0.62, "its publication begins late", "advprior publish priors/llm"))
    'only 62 % of the impressions have this prior: its publication begins late; fix: advprior publish priors/llm'
    """
    return f"only {100 * gap.share:.0f} % of the {gap.of} have this prior: {gap.cause}; fix: {gap.fix}"


def gaps_of(arms: Arms, features: Sequence[Feature], facts: Mapping[str, Any]) -> dict[str, CoverageGap]:
    """Arms whose priors fewer than `ranking.frame.checks.MIN_COVERAGE` of the frame's impressions have.

    Parameters
    ----------
    arms : Arms
    features : sequence of Feature
    facts : mapping
        Of the frame's manifest: ``coverage``, and ``gaps`` with cause and fix, by predictor.
    """
    coverage, about_gaps = facts.get("coverage", {}), facts.get("gaps", {})
    gaps: dict[str, CoverageGap] = {}
    for arm in arms.arms:
        shares = {p: float(coverage[p]) for p in predictors_of(arm, features) if p in coverage}
        predictor = min(shares, key=lambda p: shares[p], default=None)
        if predictor is not None and shares[predictor] < MIN_COVERAGE:
            about = about_gaps.get(predictor, {})
            cause = about.get("cause", "users or snapshots were not scored")
            gaps[arm.name] = CoverageGap(
                shares[predictor], cause, about.get("fix", "score every user and snapshot (RNK008)")
            )
    return gaps


def gaps_to_json(gaps: Mapping[str, CoverageGap]) -> dict[str, dict[str, Any]]:
    """As a result keeps them."""
    return {arm: gap.to_json() for arm, gap in gaps.items()}


def gaps_from_json(records: Mapping[str, Mapping[str, Any]] | None) -> dict[str, CoverageGap]:
    """What `gaps_to_json` made; nothing of an older result."""
    return {arm: CoverageGap(**record) for arm, record in (records or {}).items()}


def above(lift: Lift) -> bool:
    """The whole interval lies on the good side of zero, however many seeds it is of."""
    return lift.low > 0 if lift.higher_is_better else lift.high < 0


def below(lift: Lift) -> bool:
    """The whole interval lies on the bad side of zero, however many seeds it is of."""
    return lift.high < 0 if lift.higher_is_better else lift.low > 0


def _apart(lift: Lift) -> bool:
    return above(lift) or below(lift)
