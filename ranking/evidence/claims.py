"""What one arm may be said to have done: never without its control and its placebo, or that none was measured.

A claim is one lift with the two that belong beside it, of the same segment and step: the best control's, which says
whether something cheaper does as well, and the placebo's, which says what columns that tell nothing of the user do.
Both are read by their joint intervals, since there are many of them. Which words are allowed follows from all three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, isnan
from typing import Any

from advprior.store.claims import CONTROL_NAMES, Bounds, Kind, expected_of, kind_of
from advprior.store.features import Feature
from ranking.evidence.lift import Lift
from ranking.evidence.wording import uncapitalised
from ranking.frame.checks import MIN_COVERAGE
from ranking.frame.coverage import CoverageGap
from ranking.models.arms import Arms, predictors_of

#: A headline for each kind, for badges and terminals.
HEADLINES: dict[str, str] = {
    "win": "Clear gain",
    "win_not_over_control": "Gain, but not over a control",
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


#: A control that lacks one thing of its treatment, by `ranking.models.arms.Arm.kind`: what it is called, and what it
#: may show where the treatment is not told apart from it.
KINDS: dict[str, tuple[str, str]] = {
    kind: (CONTROL_NAMES[kind], shows)
    for kind, shows in {
        "random_weights": "the same network without pre-training may do as well",
        "lexical": "the words may do as well without a network",
        "masked": "it may do as well without advertisers' names",
    }.items()
}


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
    kind : str
        A key of `KINDS`, for a control that lacks one thing of the claim's arm.
    """

    name: str
    own: Lift
    over: Lift | None = None
    gap: CoverageGap | None = None
    kind: str = ""

    def text(self, arm: str) -> str:
        """Its lift, and that of an arm over it, by joint intervals."""
        words = jointly(self.own).text()
        if self.gap is not None:
            words += f" with a prior on {100 * self.gap.share:.0f} % of the {self.gap.of} only"
        if self.over is None:
            return f"{words}, {arm} not compared with it"
        return f"{words}, {arm} over it {jointly(self.over).text()}"

    @property
    def unbeaten(self) -> bool:
        """Whether the claim's arm was compared with it and is not above it."""
        return self.over is not None and not above(jointly(self.over))


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
    kin : tuple of Beside
        Further controls, each of which lacks one thing of the arm: pre-training, the network, advertisers' names.
    lacking : tuple of str
        Keys of `KINDS` of which no control was measured, though the arm's prior is of pre-trained weights.
    gap : CoverageGap, optional
        Where too few impressions have the prior.
    is_control : bool
        The arm is what others are held against: no control stands beside it, and nothing of it is clear.
    trained : str
        What there is one or more of, with noise of training: a ranker's seed, a fit of the towers.
    decides : bool
        Whether the metric is the one that is decided on: of no other is a gain or a loss called clear.

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
    kin: tuple[Beside, ...] = ()
    lacking: tuple[str, ...] = ()
    gap: CoverageGap | None = None
    is_control: bool = False
    trained: str = "seed"
    decides: bool = True

    @property
    def one_seed(self) -> bool:
        """Whether the noise of training is in no interval, since there is one ranker an arm."""
        return not self.lift.conclusive

    @property
    def unbeaten(self) -> Beside | None:
        """The first control that the arm does not beat: the best one, else one that lacks one thing of it."""
        beside = (self.control, *self.kin) if not self.is_control else ()
        return next((one for one in beside if one is not None and one.unbeaten), None)

    @property
    def kind(self) -> Kind:
        """A key of `HEADLINES`."""
        if isnan(self.lift.difference) or self.gap is not None:
            return "undefined"
        own = Bounds(self.lift.low, self.lift.high, self.lift.higher_is_better)
        return kind_of(
            own,
            unbeaten=self.unbeaten is not None,
            doubts=self.is_control or bool(self._doubts()),
            trusted=self.placebo is None or not _apart(jointly(self.placebo.own)),
        )

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
        kind, clear = self.kind, "clear " if self.decides else ""
        if kind == "undefined":
            return "not measurable" if self.gap is None else f"undefined: {gap_text(self.gap)}"
        if kind == "untrusted":
            return "not to be trusted: its placebo, which says nothing of the user, changes the ranker as well"
        if kind == "win":
            return f"a {clear}gain, also over the best control"
        if kind == "win_not_over_control":
            return self._not_over_control()
        if kind == "loss":
            return f"a {clear}loss, against the placebo as well"
        if kind == "unclear":
            apart = "no effect told apart from zero"
            return f"{apart} by one {self.trained}" if self.one_seed else "no clear effect" if self.decides else apart
        return "; ".join(["a gain" if kind == "gain" else "a loss", *self._doubts()])

    def _not_over_control(self) -> str:
        one = self.unbeaten
        assert one is not None
        assert one.over is not None
        also = f" by one {self.trained}" if self.one_seed else ""
        if one.kind:
            name, shows = KINDS[one.kind]
            return f"a gain{also}, but not over its {name}: {shows}"
        worse = below(jointly(one.over))
        shows = "the cheaper prior is the better one" if worse else "a cheaper prior may do as well"
        return f"a gain{also}, but not over the best control: {shows}"

    @property
    def headline(self) -> str:
        """Whose effect, and what it is, in a few words."""
        return headline(self.kind, self.name, self.one_seed)

    def beside(self) -> str:
        """Controls and placebo in brackets, each by joint intervals, or that none was measured."""
        if self.is_control:
            parts = ["a control itself"]
        elif self.control is None:
            parts = ["no control was measured in this step"]
        else:
            parts = [f"best control, {self.control.name}: {self.control.text(self.name)}"]
        if self.placebo is None:
            parts.append("no placebo was measured in this step")
        else:
            parts.append(f"its placebo: {self.placebo.text(self.name)}{self._nothing()}")
        parts += [f"its {KINDS[one.kind][0]}: {one.text(self.name)}" for one in self.kin]
        parts += [f"its {KINDS[kind][0]}: not measured" for kind in self.lacking]
        return f"({'; '.join(parts)})"

    def _nothing(self) -> str:
        """Where a placebo is something."""
        assert self.placebo is not None
        return ", which should be nothing and is not" if _apart(jointly(self.placebo.own)) else ""


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


def expected_kinds(arms: Arms, features: Sequence[Feature], facts: Mapping[str, Any]) -> dict[str, list[str]]:
    """Which controls of `KINDS` each treatment should have beside it, by what its prior is made of.

    Parameters
    ----------
    arms : Arms
    features : sequence of Feature
    facts : mapping
        Of the frame's manifest: ``priors``, with the ``source_predictor`` of each.
    """
    priors = facts.get("priors", {})
    expected: dict[str, list[str]] = {}
    for arm in arms.of_role("treatment"):
        sources = [priors.get(p, {}).get("source_predictor", "") for p in predictors_of(arm, features)]
        kinds = list(dict.fromkeys(kind for source in sources for kind in expected_of(source)))
        expected |= {arm.name: kinds} if kinds else {}
    return expected


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
