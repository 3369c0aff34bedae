"""What the numbers say, in one sentence, honest both ways.

The treatment must beat the baseline to be called a gain, and the best control to be called worth an LLM. A placebo
whose interval leaves zero out says that the measurement itself is off, whatever the treatment did.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import isnan
from typing import Any, Literal

from ranking.evidence.lift import OVERALL, Lift, Lifts
from ranking.evidence.metrics import Auc, Metric
from ranking.evidence.wording import outcome, segment_label, uncapitalised
from ranking.models.arms import Arm, Arms

Kind = Literal["win", "win_not_over_control", "loss", "unclear", "untrusted", "undefined"]

#: A word for each kind, for badges and terminals.
HEADLINES: dict[str, str] = {
    "win": "Clear gain",
    "win_not_over_control": "Gain, but not over a cheaper prior",
    "loss": "Clear loss",
    "unclear": "No clear effect",
    "untrusted": "Not to be trusted",
    "undefined": "Not measurable",
}


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
        Further findings, one sentence each.
    """

    kind: Kind
    sentence: str
    details: list[str] = field(default_factory=list)

    @property
    def headline(self) -> str:
        return HEADLINES[self.kind]

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return {"kind": self.kind, "headline": self.headline, "sentence": self.sentence, "details": self.details}


def _name(arm: Arm) -> str:
    """Label in the middle of a sentence: ``History baseline`` is *history baseline*, ``+ LLM priors`` *LLM priors*."""
    return uncapitalised(arm.label.removeprefix("+").strip())


def judge(lifts: Lifts, arms: Arms, *, best_control: str | None = None, metric: Metric | None = None) -> Verdict:
    """Verdict about the first treatment of an ablation.

    Parameters
    ----------
    lifts : Lifts
        Every arm against the baseline; the treatment against the best control and the placebo, where there are such.
    arms : Arms
    best_control : str, optional
        Name of the control that was best on *validation* rows.
    metric : Metric, optional
        What the verdict is about; AUC by default.
    """
    metric = metric or Auc()
    treatment, baseline = arms.of_role("treatment")[0], arms.baseline
    gain = lifts.get(treatment.name, baseline.name, metric.name)
    changes = f"{metric.label} changes by {gain.text()} against the {_name(baseline)}"
    subject = f"With {_name(treatment)} the ranker's {changes}"
    control = None if best_control is None else lifts.get(treatment.name, best_control, metric.name)
    control_arm = None if best_control is None else arms.find(best_control)
    over = ""
    if control is not None and control_arm is not None:
        over = f" the best control ({_name(control_arm)}): {control.text()}"
    imitation = arms.placebo_of(treatment)
    placebo = lifts.get(imitation.name, baseline.name, metric.name) if imitation else None
    others = _others(lifts, arms, treatment, metric)
    tail = (
        f" Placebo: {placebo.text()}, not told apart from zero, as it should be."
        if placebo
        else " No placebo was measured."
    ) + others
    details = _details(lifts, arms, treatment, metric)
    nearest = _nearest(lifts, treatment, arms.baseline, metric)

    if isnan(gain.difference):
        return Verdict(
            "undefined",
            f"The {metric.label} of {_name(treatment)} cannot be measured: the test rows lack positives or negatives.",
            details,
        )
    if placebo is not None and (placebo.better or placebo.worse):
        cause = (
            "priors of the wrong user must not help, so a gain here need not come from reading a user's own history"
            if placebo.better
            else "columns that say nothing of the user cost the ranker this much, so a loss need not be the prior's"
        )
        own = lifts.get(treatment.name, placebo.arm, metric.name)
        return Verdict(
            "untrusted",
            f"This measurement is not to be trusted: the placebo changes {metric.label} by {placebo.text()}; "
            f"{cause}. "
            f"{subject}, and by {own.text()} against the placebo.{others}",
            details,
        )
    if gain.worse:
        return Verdict("loss", f"{subject}: a clear loss.{nearest}{tail}", details)
    if not gain.better:
        against = f" Against{over}." if over else ""
        return Verdict("unclear", f"{subject}: no clear effect.{_missed(gain)}{nearest}{against}{tail}", details)
    if control is None:
        return Verdict("win", f"{subject}: a clear gain; no cheaper prior was measured beside it.{tail}", details)
    if control.better:
        return Verdict("win", f"{subject}: a clear gain, also over{over}.{tail}", details)
    so = "the cheaper prior is the better one" if control.worse else "a cheaper prior does as well"
    return Verdict("win_not_over_control", f"{subject}: a gain, but not over{over}; {so}.{tail}", details)


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


def _nearest(lifts: Lifts, treatment: Arm, baseline: Arm, metric: Metric) -> str:
    """The segment with the largest lift, by its ratio to its standard error, where there is none overall."""
    sign = 1 if metric.higher_is_better else -1
    among = [
        lift
        for lift in lifts
        if lift.segment != OVERALL
        and (lift.arm, lift.baseline, lift.metric) == (treatment.name, baseline.name, metric.name)
        and lift.error > 0
    ]
    if not among:
        return ""
    best = max(among, key=lambda lift: sign * lift.difference / lift.error)
    return f" Of all segments, the most is to be seen in “{uncapitalised(segment_label(best.segment))}”: {best.text()}."


def _others(lifts: Lifts, arms: Arms, first: Arm, metric: Metric) -> str:
    """The other treatments that gain, also when all comparisons are taken together, and what their placebos say."""
    objective = arms.config_of(arms.baseline).objective
    among = {arm.name: arm for arm in arms.of_role("treatment") if arms.config_of(arm).objective == objective}
    among.pop(first.name, None)  # its objective may be another
    wanted = (arms.baseline.name, metric.name, OVERALL)
    gains = [
        (among[lift.arm], lift)
        for lift in lifts
        if lift.arm in among and (lift.baseline, lift.metric, lift.segment) == wanted
        if ((lift.adjusted_low > 0) if metric.higher_is_better else (lift.adjusted_high < 0))
    ]
    phrases = []
    for arm, lift in sorted(gains, key=lambda gain: -abs(gain[1].difference)):
        phrase = f"{_name(arm)} {_jointly(lift)}"
        imitation = arms.placebo_of(arm)
        if imitation is not None:
            placebo = lifts.get(imitation.name, arms.baseline.name, metric.name)
            own = lifts.get(arm.name, imitation.name, metric.name)
            phrase += f" (its placebo {placebo.text()}; against that {own.text()})"
        phrases.append(phrase)
    if not phrases:
        return ""
    return f" Among all arms, with intervals that hold for all of them at once, these gain: {'; '.join(phrases)}."


def _jointly(lift: Lift) -> str:
    """A difference and its interval for the whole family of comparisons."""
    return replace(lift, low=lift.adjusted_low, high=lift.adjusted_high).text()


def _details(lifts: Lifts, arms: Arms, treatment: Arm, metric: Metric) -> list[str]:
    """The same lift on every segment."""
    sentences = []
    for lift in lifts:
        if lift.segment == OVERALL or (lift.arm, lift.baseline, lift.metric) != (
            treatment.name,
            arms.baseline.name,
            metric.name,
        ):
            continue
        word = "not measurable" if isnan(lift.difference) else outcome(lift.better, lift.worse)
        sentences.append(f"{segment_label(lift.segment)}: {metric.label} {lift.text()}, {word}.")
    return sentences
