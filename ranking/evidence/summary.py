"""The lines that a report opens with: conversions end to end, each step by itself, their worth, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from advprior.store.features import features_from_json
from ranking.evidence.claims import Claim, gaps_from_json
from ranking.evidence.metrics import Auc, Conversions, Metric
from ranking.evidence.result import AblationResult
from ranking.evidence.steps import Steps, decided_claim
from ranking.evidence.value import scoring_cost
from ranking.evidence.verdict import Bench, said
from ranking.evidence.wording import plain_label, signed, uncapitalised
from ranking.evidence.worth import Hours, Price, duration, refresh_hours, traffic_of, worth_text
from ranking.models.arms import Arm, predictors_of

Manifests = Mapping[str, Mapping[str, Any]]
_GAINS = ("win", "win_not_over_control", "gain")


@dataclass(frozen=True)
class Evidence:
    """Everything that a report's first lines are read from.

    Parameters
    ----------
    result : AblationResult
    predictors : mapping
        Name to manifest of finetune, export or score folders, for the cost.
    steps : Steps, optional
        Of a two-by-two, where there is one.
    price : Price, optional
    """

    result: AblationResult
    predictors: Manifests = field(default_factory=dict)
    steps: Steps | None = None
    price: Price | None = None

    @cached_property
    def first(self) -> Arm:
        """What the verdict is about: the first treatment, or of a run without any its best control."""
        result = self.result
        if result.arms.of_role("treatment") or result.best_control is None:
            return result.arms.on_trial[0]
        return result.arms.find(result.best_control)

    @cached_property
    def claim(self) -> Claim:
        """What is decided on: over both steps, or the ranker's."""
        return decided_claim(self.steps) or bench_of(self.result).claim(self.first)

    @cached_property
    def best(self) -> tuple[str, Claim] | None:
        """The other treatment that gains most, if it gains more than the first; of the step that is decided on."""
        if decided_claim(self.steps) is not None and self.steps is not None:
            claims = {arm: claim for arm, (claim, _) in self.steps.others.items()}
        else:
            bench, baseline = bench_of(self.result), self.result.arms.baseline
            others = [arm for arm in self.result.arms.of_role("treatment") if arm.name != self.first.name]
            others = [arm for arm in others if bench.baseline_of(arm) == baseline and bench.measured(arm)]
            claims = {arm.name: bench.claim(arm, joint=True) for arm in others}
        size = {arm: _signed_gain(claim) for arm, claim in claims.items() if claim.kind != "undefined"}
        best = max(size, key=lambda arm: size[arm], default=None)
        own = _signed_gain(self.claim)
        return None if best is None or not size[best] > max(own, 0.0) else (best, claims[best])


def _signed_gain(claim: Claim) -> float:
    return claim.lift.difference * (1 if claim.lift.higher_is_better else -1)


def opening_lines(evidence: Evidence) -> list[tuple[str, str]]:
    """Pairs of a name and a sentence, in the order shown."""
    lines = [
        ("End to end", _end_to_end(evidence)),
        ("By cut-off", "" if evidence.steps is None else " ".join(evidence.steps.cutoffs)),
        ("Retrieval", _retrieval(evidence)),
        ("Ranking", _ranking(evidence)),
        ("Also on trial", _also(evidence)),
        ("Worth", _worth(evidence)),
        ("What to do", _advice(evidence)),
    ]
    return [(name, text) for name, text in lines if text]


def headline(evidence: Evidence) -> tuple[str, str]:
    """What the page says in its largest letters, and the tone of it: a key of `ranking.evidence.claims.HEADLINES`.

    It is of what is decided on, and says whose prior it is.
    """
    own, decided = evidence.result.verdict, decided_claim(evidence.steps)
    if own.kind == "untrusted":
        return own.headline, own.kind
    if decided is not None:
        return f"End to end, {decided.headline}", decided.kind
    return f"In ranking, {own.headline}" if own.kind != "controls" else own.headline, own.kind


def costs(result: AblationResult, predictors: Manifests) -> dict[str, float | None]:
    """CPU-seconds of a million of each arm's priors (a user at a snapshot); None where a run did not record it."""
    by_arm: dict[str, float | None] = {}
    for arm, parts in _priors(result, predictors).items():
        recorded = [cost for cost in (scoring_cost(*part) for part in parts) if cost is not None]
        by_arm[arm] = sum(recorded) if recorded or not parts else None
    return by_arm


def _hours(result: AblationResult, predictors: Manifests) -> dict[str, Hours | None]:
    """Hours of a million users' priors at one refresh, by arm; None where a run did not record it."""
    by_arm: dict[str, Hours | None] = {}
    for arm, parts in _priors(result, predictors).items():
        each = [refresh_hours(*part) for part in parts]
        by_arm[arm] = None if None in each else sum((one for one in each if one is not None), Hours(0.0))
    return by_arm


def _priors(
    result: AblationResult, predictors: Manifests
) -> dict[str, list[tuple[Mapping[str, Any], Mapping[str, Any] | None]]]:
    """Facts of each arm's priors, and the manifests of their scoring runs where these were handed over."""
    priors = result.about["frame_facts"].get("priors", {})
    listed = result.about["frame_facts"].get("features", [])
    features = features_from_json(listed) if isinstance(listed, list) else []  # an older ablation has groups
    runs = {str(m["facts"].get("predictor")): m for m in predictors.values() if m.get("step") == "score"}
    by_arm = {}
    for arm in result.arms.arms:
        names = predictors_of(arm, features)
        # a run's manifest names the predictor, not what it was published as: of two priors of one kind it is either's
        sole = {name: priors.get(name, {}).get("source_predictor", name) == name for name in names}
        by_arm[arm.name] = [(priors.get(name, {}), runs.get(name) if sole[name] else None) for name in names]
        if arm.adds and not names:
            by_arm[arm.name] = [({}, None)]
    return by_arm


def _label(arm: Arm) -> str:
    return uncapitalised(plain_label(arm.label))


def bench_of(result: AblationResult, metric: Metric | None = None) -> Bench:
    """Everything that a claim about an ablation's arms is read from, on one metric: the one that is decided on, else.

    Of another metric nothing is called clear.
    """
    metric = metric or result.metric
    gaps, expected = gaps_from_json(result.about.get("gaps")), result.about.get("expected_kinds", {})
    decides = metric.name == result.metric.name
    return Bench(result.lifts, result.arms, result.best_controls, metric, gaps, expected, decides)


def _end_to_end(evidence: Evidence) -> str:
    if evidence.steps is not None:
        return evidence.steps.sentences[0]
    return f"Retrieval was not measured, so this is ranking alone. {_in_ranking(evidence)}"


def _in_ranking(evidence: Evidence) -> str:
    """Conversions per slate by the ranker alone, all ads of a slate ranked."""
    metric = Conversions(evidence.result.slots)
    claim = bench_of(evidence.result, metric).claim(evidence.first)
    return (
        f"With {claim.name} in ranking, {said(metric)} change by {claim.lift.text()} "
        f"({signed(100 * claim.lift.relative, 1)} %): {claim.outcome()} {claim.beside()}."
    )


def _retrieval(evidence: Evidence) -> str:
    if evidence.steps is not None:
        return evidence.steps.sentences[1]
    return "Not measured: advprior rank towers, then rank two-by-two, measure it."


def _ranking(evidence: Evidence) -> str:
    """By conversions after retrieval without priors, and by what the ablation says of the whole slate."""
    metric = evidence.result.metric if decided_claim(evidence.steps) is None else Auc()
    parts = [evidence.steps.sentences[2]] if evidence.steps is not None else []
    if parts or not isinstance(metric, Conversions):
        claim = bench_of(evidence.result, metric).claim(evidence.first)
        text = (
            f"All ads of a slate ranked, {said(metric)} {claim.lift.text()} with {claim.name}: "
            f"{claim.outcome()} {claim.beside()}."
        )
        parts.append(text)
    else:
        parts.append("As above: all ads of a slate ranked, none left out by retrieval.")
    return " ".join(parts)


def _also(evidence: Evidence) -> str:
    """The other treatment that gains most, where it gains more than the first."""
    if evidence.best is None:
        return ""
    arm, _ = evidence.best
    if evidence.steps is not None and arm in evidence.steps.others and decided_claim(evidence.steps) is not None:
        return evidence.steps.others[arm][1]
    return bench_of(evidence.result).verdict(evidence.result.arms.find(arm)).sentence


def _worth(evidence: Evidence) -> str:
    """Conversions against hours, of the first arm and of the other that gains most."""
    result, hours = evidence.result, _hours(evidence.result, evidence.predictors)
    if not evidence.first.adds:
        return ""
    if evidence.steps is not None:
        claims, controls = {evidence.steps.arm: evidence.steps.both}, dict(evidence.steps.controls)
        if evidence.best is not None and evidence.best[0] in evidence.steps.others:
            claims[evidence.best[0]] = evidence.steps.others[evidence.best[0]][0]
    else:
        claim = bench_of(result, Conversions(result.slots)).claim(evidence.first)
        claims, controls = {evidence.first.name: claim}, dict(result.best_controls)
    texts, counted = [], ""
    for arm, claim in claims.items():
        traffic = traffic_of(result.about, _users(result, evidence.predictors, arm))
        if traffic is None:
            return "Not counted: the frame has no time plan or no slates."
        texts.append(worth_text(claim, hours, (arm, controls.get(arm)), traffic, evidence.price))
        counted = counted or f"Slates are counted: {traffic.text()}."
    return " ".join([*texts, counted, _fitting(evidence)]).strip()


def _users(result: AblationResult, predictors: Manifests, arm: str) -> int | None:
    """Users whose priors of an arm were scored."""
    counts = [facts.get("users") for facts, _ in _priors(result, predictors).get(arm, [])]
    return max((int(count) for count in counts if count), default=None)


def _fitting(evidence: Evidence) -> str:
    """What fitting and export took, once a model, by the runs that were handed to the report."""
    runs = [m for m in evidence.predictors.values() if m.get("step") in ("finetune", "export")]
    seconds = sum(float(m.get("cpu_seconds") or 0.0) for m in runs)
    if not seconds:
        return ""
    names = ", ".join(dict.fromkeys(str(m["facts"].get("predictor")) for m in runs))
    return f"Not counted: fitting and export ({names}: {duration(seconds)}), once a model."


def _advice(evidence: Evidence) -> str:
    claim, verdict = evidence.claim, evidence.result.verdict
    if verdict.kind == "untrusted" or claim.kind == "untrusted":
        return "Trust no figure on this page: measure with more seeds (--seeds 5) and users until the placebo is nil."
    if claim.gap is not None:
        return f"Close the gap first: {claim.gap.fix}. Then build the frame and measure again."
    if claim.kind == "undefined":
        return "Measure on more users: the test rows lack positives or negatives."
    if verdict.kind == "controls":
        return "Put a prior on trial beside these: publish one, and give its arm `role: treatment` in arms.yaml."
    if claim.one_seed:
        return "Measure again with three seeds or more (--seeds 3): of one, nothing is clear."
    return _advice_on_gain(evidence) or _advice_without_gain(evidence)


def _advice_on_gain(evidence: Evidence) -> str:
    """Where something gains: that, whatever does as well for less, or one step of it; empty where nothing does."""
    claim, steps = evidence.claim, evidence.steps
    where = "in both steps" if decided_claim(steps) is not None else "in the ranker"
    if claim.kind == "win":
        return f"Try {claim.name} {where} in an A/B test: a clear gain, at the cost above."
    if evidence.best is not None and evidence.best[1].kind == "win":
        return f"Leave {claim.name} out; try {evidence.best[1].name} {where} in an A/B test."
    if claim.kind == "win_not_over_control" and claim.unbeaten is not None:
        cheaper = "" if claim.unbeaten.kind else ", and cheaper"
        return f"Take {claim.unbeaten.name}: as good by this measurement{cheaper}."
    if steps is not None and claim is steps.both:
        for step, of_step in (("candidates", steps.retrieval), ("the ranker", steps.ranking)):
            if of_step.kind == "win":
                return f"Use {claim.name} for {step} alone: over both steps its gain is not clear."
    return ""


def _advice_without_gain(evidence: Evidence) -> str:
    claim = evidence.claim
    if claim.kind == "gain":
        lacks = (
            "a control (neighbours, say)" if claim.control is None else "more users, until it stands off its placebo"
        )
        return f"Measure with {lacks} before you build on it."
    if claim.kind in ("loss", "loss_unchecked"):
        return f"Leave {claim.name} out."
    size = f"{claim.lift.detectable:.{claim.lift.digits}f}"
    decided = evidence.result.metric if decided_claim(evidence.steps) is None else Conversions(evidence.result.slots)
    true = f"a true change of {size} in {said(decided)} would have shown, a smaller one might not"
    return f"Leave {claim.name} out, or measure on more users: {true}."
