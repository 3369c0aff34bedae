"""What the numbers say, in one sentence an arm, honest both ways.

The treatment must beat the baseline to be called a gain, and the best control to be called worth an LLM. A placebo
whose interval leaves zero out says that the measurement itself is off, whatever the treatment did. The headline is
the first treatment's, by its own interval, since it was named before anything was measured; every other treatment,
and every segment, is judged by intervals that hold for all comparisons at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isnan
from typing import Any

from advprior.store.claims import Kind
from ranking.evidence.claims import HEADLINES, Beside, Claim, above, gap_text, headline, jointly
from ranking.evidence.lift import OVERALL, Lift, Lifts
from ranking.evidence.metrics import Auc, Conversions, Metric
from ranking.evidence.wording import segment_label, uncapitalised
from ranking.frame.coverage import CoverageGap
from ranking.models.arms import Arm, Arms

__all__ = ["HEADLINES", "ArmVerdict", "Verdict", "judge"]


@dataclass(frozen=True)
class ArmVerdict:
    """The verdict of one treatment that is not the first, or of one control where nothing is on trial.

    Parameters
    ----------
    arm : str
    kind : str
        A key of `ranking.evidence.claims.HEADLINES`.
    sentence : str
    """

    arm: str
    kind: Kind
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """The outcome of an ablation.

    Parameters
    ----------
    kind : str
        A key of `HEADLINES`.
    sentence : str
        The verdict with its interval, the control's and the placebo's.
    details : list of str
        The same on every segment, one sentence each.
    label : str
        Whose verdict it is.
    one_seed : bool
        Whether each arm had one ranker, so that nothing is clear.
    others : list of ArmVerdict
        Every other treatment's; of a run without treatments, every control's.
    steps : list of str
        Where both steps were measured: each by itself, and other treatments' over both
        (`ranking.evidence.steps.whole_verdict`).
    """

    kind: Kind
    sentence: str
    details: list[str] = field(default_factory=list)
    label: str = ""
    one_seed: bool = False
    others: list[ArmVerdict] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)

    @property
    def headline(self) -> str:
        """Whose verdict, and what it is, in a few words."""
        return headline(self.kind, self.label, self.one_seed)

    @property
    def sentences(self) -> list[str]:
        """Its own sentence, then each step's, then one of every other arm on trial."""
        return [self.sentence, *self.steps, *(other.sentence for other in self.others)]

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "headline": self.headline}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Verdict:
        """From what `to_json` made, of an earlier version as well."""
        others = [ArmVerdict(**other) for other in record.get("others", [])]
        rest = (record.get("label", ""), record.get("one_seed", False), others, list(record.get("steps", [])))
        return cls(record["kind"], record["sentence"], list(record["details"]), *rest)


def judge(
    lifts: Lifts,
    arms: Arms,
    *,
    best_controls: Mapping[str, str] | None = None,
    metric: Metric | None = None,
    gaps: Mapping[str, CoverageGap] | None = None,
    expected: Mapping[str, Sequence[str]] | None = None,
) -> Verdict:
    """Verdict of an ablation: about the first treatment, with a line of every other.

    Parameters
    ----------
    lifts : Lifts
        Every arm against the baseline; the treatments against their controls and placebos, where there are such.
    arms : Arms
    best_controls : mapping of arm to arm, optional
        The control of each arm on trial that was best on *validation* rows.
    metric : Metric, optional
        What the verdict is about; AUC by default.
    gaps : mapping of arm to CoverageGap, optional
        Arms whose prior too few impressions have: they get no verdict but its cause and cure.
    expected : mapping of arm to list of str, optional
        See `ranking.evidence.claims.expected_kinds`: those that were not measured are named as such.
    """
    bench = Bench(lifts, arms, dict(best_controls or {}), metric or Auc(), dict(gaps or {}), dict(expected or {}))
    treatments = arms.of_role("treatment")
    if not treatments:
        return _of_controls(bench)
    first = treatments[0]
    claim = bench.claim(first)
    others = [bench.verdict(arm) for arm in treatments[1:] if bench.measured(arm)]
    return Verdict(
        claim.kind,
        _sentence(bench, first, claim),
        [f"{segment_label(s)}: {bench.in_segment(first, s)}" for s in bench.segments(first)],
        label=name_of(first),
        one_seed=claim.one_seed,
        others=others,
    )


def name_of(arm: Arm) -> str:
    """Label in the middle of a sentence: ``History baseline`` is *history baseline*, ``+ LLM priors`` *LLM priors*."""
    return uncapitalised(arm.label.removeprefix("+").strip())


@dataclass(frozen=True)
class Bench:
    """Everything that a claim is read from."""

    lifts: Lifts
    arms: Arms
    best_controls: Mapping[str, str]
    metric: Metric
    gaps: Mapping[str, CoverageGap]
    expected: Mapping[str, Sequence[str]] = field(default_factory=dict)
    decides: bool = True  # whether the metric is the one that is decided on

    def get(self, arm: str, against: str, segment: str = OVERALL) -> Lift | None:
        """A lift, where the two were compared."""
        try:
            return self.lifts.get(arm, against, self.metric.name, segment)
        except KeyError:
            return None

    def baseline_of(self, arm: Arm) -> Arm:
        """The baseline; of an arm that another method trains, the control that is its baseline."""
        method = self.arms.method_of(arm)
        if method == self.arms.method_of(self.arms.baseline):
            return self.arms.baseline
        controls = [control for control in self.arms.of_role("control") if control != arm and not control.adds]
        own = [control for control in controls if self.arms.method_of(control) == method]
        return own[0] if own else self.arms.baseline

    def measured(self, arm: Arm) -> bool:
        """Whether an arm was compared with its baseline."""
        return self.get(arm.name, self.baseline_of(arm).name) is not None

    def segments(self, arm: Arm) -> list[str]:
        """Segments that an arm was measured in, overall left out."""
        key = (arm.name, self.arms.baseline.name, self.metric.name)
        return [x.segment for x in self.lifts if x.segment != OVERALL and (x.arm, x.baseline, x.metric) == key]

    def claim(self, arm: Arm, segment: str = OVERALL, *, joint: bool = False) -> Claim:
        """What may be said of an arm in a segment."""
        baseline = self.baseline_of(arm)
        lift = self.get(arm.name, baseline.name, segment)
        if lift is None:
            raise KeyError((arm.name, baseline.name, self.metric.name, segment))
        control = placebo = None
        kin: tuple[Beside, ...] = ()
        lacking: tuple[str, ...] = ()
        if baseline == self.arms.baseline:
            if arm.name in self.best_controls:
                control = self._beside(arm, self.arms.find(self.best_controls[arm.name]), segment)
            imitation = self.arms.placebo_of(arm) if arm.role == "treatment" else None
            placebo = None if imitation is None else self._beside(arm, imitation, segment)
            kin, lacking = self._kin(arm, segment)
        own, is_control = jointly(lift) if joint else lift, arm.role == "control"
        beside = None if is_control else control
        gap = self.gaps.get(arm.name)
        return Claim(name_of(arm), own, beside, placebo, kin, lacking, gap, is_control=is_control, decides=self.decides)

    def _kin(self, arm: Arm, segment: str) -> tuple[tuple[Beside, ...], tuple[str, ...]]:
        """Controls that lack one thing of an arm, other than the best one; and kinds of them that were not measured."""
        measured: dict[str, Beside] = {}
        for kind, control in self.arms.kin_of(arm).items():
            beside = self._beside(arm, control, segment)
            if beside is not None:
                measured[kind] = replace(beside, kind=kind)
        best = self.best_controls.get(arm.name)
        kin = tuple(one for one in measured.values() if best is None or one.own.arm != best)
        return kin, tuple(kind for kind in self.expected.get(arm.name, ()) if kind not in measured)

    def _beside(self, arm: Arm, other: Arm, segment: str) -> Beside | None:
        own = self.get(other.name, self.arms.baseline.name, segment)
        if own is None:
            return None
        return Beside(name_of(other), own, self.get(arm.name, other.name, segment), self.gaps.get(other.name))

    def in_segment(self, arm: Arm, segment: str) -> str:
        """The sentence of a segment, by joint intervals."""
        claim = self.claim(arm, segment, joint=True)
        return f"{self.said} {claim.lift.text()} with {claim.name}: {claim.outcome()} {claim.beside()}."

    @property
    def said(self) -> str:
        """What the metric is called in a sentence."""
        return said(self.metric)

    def verdict(self, arm: Arm) -> ArmVerdict:
        """The line of an arm that is not the first treatment, by joint intervals."""
        claim, baseline = self.claim(arm, joint=True), self.baseline_of(arm)
        against = "" if baseline == self.arms.baseline else f" against the {name_of(baseline)}"
        text = f"With {claim.name}, {self.said} {claim.lift.text()}{against}: {claim.outcome()} {claim.beside()}."
        return ArmVerdict(arm.name, claim.kind, text)


def _sentence(bench: Bench, arm: Arm, claim: Claim) -> str:
    """The headline's sentence: by the interval of the one comparison that was named before."""
    metric, gain = bench.said, claim.lift
    changes = f"{metric} {_changes(bench.metric)} by {gain.text()} against the {name_of(bench.baseline_of(arm))}"
    if claim.gap is not None:
        return f"The verdict of {claim.name} is undefined: {gap_text(claim.gap)} {claim.beside()}."
    if isnan(gain.difference):
        return (
            f"{_capital(metric)} with {claim.name} cannot be measured: the test rows lack positives or negatives "
            f"{claim.beside()}."
        )
    if claim.kind == "untrusted":
        assert claim.placebo is not None
        own = jointly(claim.placebo.own)
        cause = (
            "priors of the wrong user must not help, so a gain here need not come from reading a user's own history"
            if above(own)
            else "columns that say nothing of the user cost the ranker this much, so a loss need not be the prior's"
        )
        return (
            f"This measurement is not to be trusted: the placebo changes {metric} by {own.text()}; {cause}. "
            f"With {claim.name} in ranking, {changes} {claim.beside()}."
        )
    more = _missed(gain) + _nearest(bench, arm) if claim.kind == "unclear" else ""
    return f"With {claim.name} in ranking, {changes}: {claim.outcome()} {claim.beside()}.{more}"


def said(metric: Metric) -> str:
    """A metric in a sentence.

    >>> from ranking.evidence.metrics import Conversions
    >>> said(Conversions(3)), said(Auc())
    ('conversions per slate at 3 ads', 'AUC')
    """
    if isinstance(metric, Conversions):
        return f"conversions per slate at {metric.k} ad{'s' if metric.k > 1 else ''}"
    return metric.label


def _changes(metric: Metric) -> str:
    return "change" if isinstance(metric, Conversions) else "changes"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _of_controls(bench: Bench) -> Verdict:
    """A run without treatments: what the controls give, the best on validation first."""
    best = next(iter(bench.best_controls.values()), None)
    controls = [arm for arm in bench.arms.of_role("control") if bench.measured(arm)]
    controls.sort(key=lambda arm: arm.name != best)
    lines = [bench.verdict(arm) for arm in controls]
    lead = "No treatment is among the arms, so this is what controls give"
    lead += ", the best on validation first: " if len(lines) > 1 else ": "
    first = lines[0].sentence if lines else "none was measured."
    one_seed = any(not lift.conclusive for lift in bench.lifts)
    return Verdict("controls", lead + uncapitalised(first), [], one_seed=one_seed, others=lines[1:])


def _missed(gain: Lift) -> str:
    """What an unclear result does not rule out."""
    if isnan(gain.detectable):
        return ""
    if gain.difference == 0 and gain.error == 0:
        return (
            " Both rankers give the same scores: no tree uses a feature of this prior, because it says nothing new or"
            " because the rows are too few to split on. Whether a true lift would have shown cannot be told."
        )
    size = f"{gain.detectable:.{gain.digits}f}"
    return f" A true lift of {size} would have shown four times in five; a smaller one may be there."


def _nearest(bench: Bench, treatment: Arm) -> str:
    """The segment whose lift is largest for its standard error, where it gains; with what stands beside it there."""
    sign = 1 if bench.metric.higher_is_better else -1
    claims = [(s, bench.claim(treatment, s, joint=True)) for s in bench.segments(treatment)]
    among = [(s, c) for s, c in claims if c.lift.error > 0 and sign * c.lift.difference > 0]
    if not among:
        return " In no segment does it rise." if claims else ""
    segment, best = max(among, key=lambda pair: sign * pair[1].lift.difference / pair[1].lift.error)
    name = uncapitalised(segment_label(segment))
    return (
        f" Of all segments, it rises most for its error in “{name}”: {best.lift.text()}, {best.outcome()} "
        f"{best.beside()}."
    )
