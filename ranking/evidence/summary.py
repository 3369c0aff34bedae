"""The five lines that a report opens with: the effect end to end, whose prior, against what, its cost, what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advprior.store.features import features_from_json
from ranking.evidence.claims import Claim, gaps_from_json
from ranking.evidence.metrics import Auc, Conversions, Metric
from ranking.evidence.result import AblationResult
from ranking.evidence.value import scoring_cost
from ranking.evidence.verdict import Bench
from ranking.evidence.wording import plain_label, signed, uncapitalised
from ranking.models.arms import Arm, predictors_of

Manifests = Mapping[str, Mapping[str, Any]]


def five_lines(
    result: AblationResult, predictors: Manifests | None = None, retrieval: Mapping[str, Any] | None = None
) -> list[tuple[str, str]]:
    """Pairs of a name and a sentence, in the order shown.

    Parameters
    ----------
    result : AblationResult
    predictors : mapping, optional
        Name to manifest of scoring runs, for the cost.
    retrieval : mapping, optional
        As `ranking.candidates.section.retrieval_section` makes it.
    """
    return [
        ("End to end", _end_to_end(result, retrieval or {})),
        ("Whose prior", _whose(result)),
        ("Against what", _against(result)),
        ("Cost", _cost(result, predictors or {})),
        ("What to do", _advice(result, retrieval or {})),
    ]


def headline(result: AblationResult, retrieval: Mapping[str, Any] | None = None) -> tuple[str, str]:
    """What the page says in its largest letters, and the tone of it: a key of `ranking.evidence.claims.HEADLINES`.

    End to end first, where it was measured; then the ranker alone. Each says whose prior it is.
    """
    kind, words = result.verdict.kind, result.verdict.headline
    claim: Claim | None = (retrieval or {}).get("claim")
    if claim is None or kind == "untrusted":
        return words, kind
    return f"End to end, {claim.headline}; in the ranker, {words}", claim.kind


def costs(result: AblationResult, predictors: Manifests) -> dict[str, float | None]:
    """CPU-seconds of a million of each arm's priors (a user at a snapshot); None where a run did not record it."""
    priors = result.about["frame_facts"].get("priors", {})
    listed = result.about["frame_facts"].get("features", [])
    features = features_from_json(listed) if isinstance(listed, list) else []  # an older ablation has groups
    runs = {str(m["facts"].get("predictor")): m for m in predictors.values() if m.get("step") == "score"}
    by_arm: dict[str, float | None] = {}
    for arm in result.arms.arms:
        each = [scoring_cost(priors.get(name, {}), runs.get(name)) for name in predictors_of(arm, features)]
        recorded = [cost for cost in each if cost is not None]
        by_arm[arm.name] = sum(recorded) if recorded or not arm.adds else None
    return by_arm


def _label(arm: Arm) -> str:
    return uncapitalised(plain_label(arm.label))


def bench_of(result: AblationResult, metric: Metric | None = None) -> Bench:
    """Everything that a claim about an ablation's arms is read from, on one metric."""
    gaps = gaps_from_json(result.about.get("gaps"))
    return Bench(result.lifts, result.arms, result.best_controls, metric or Auc(), gaps)


def _first(result: AblationResult) -> Arm:
    """What the verdict is about: the first treatment, or of a run without any its best control."""
    if result.arms.of_role("treatment") or result.best_control is None:
        return result.arms.on_trial[0]
    return result.arms.find(result.best_control)


def _best(result: AblationResult) -> Arm:
    """The treatment that gains most of those that gain among all comparisons at once; the first where none does."""
    gaining = {other.arm for other in result.verdict.others if other.kind in ("win", "win_not_over_control", "gain")}
    arms = [arm for arm in result.arms.of_role("treatment") if arm.name in gaining]
    bench, baseline = bench_of(result), result.arms.baseline
    arms = [arm for arm in arms if bench.baseline_of(arm) == baseline]
    if result.verdict.kind in ("win", "win_not_over_control", "gain"):
        arms.append(_first(result))
    lift = {arm.name: result.lifts.get(arm.name, baseline.name, Auc.name).difference for arm in arms}
    return max(arms, key=lambda arm: lift[arm.name], default=_first(result))


def _end_to_end(result: AblationResult, retrieval: Mapping[str, Any]) -> str:
    if "claim" in retrieval:
        claim, about = retrieval["claim"], retrieval["about"]
        where, slots, lead = "in retrieval and in ranking", about["slots"], ""
    else:
        metric = Conversions()
        claim, slots = bench_of(result, metric).claim(_first(result)), metric.k
        where, lead = "in ranking", "Retrieval was not measured. "
    lift = claim.lift
    return (
        f"{lead}With {claim.name} {where}, conversions per slate at {slots} ads change by {lift.text()} "
        f"({signed(100 * lift.relative, 1)} %): {claim.outcome()}. {claim.beside()}"
    )


def _whose(result: AblationResult) -> str:
    first, best, bench = _first(result), _best(result), bench_of(result)
    claim = bench.claim(first)
    text = f"In ranking, AUC changes by {claim.lift.text()} with {claim.name}: {claim.outcome()} {claim.numbers()}."
    if best.name != first.name:
        most = bench.claim(best, joint=True)
        text += f" Of all that is on trial, most is {most.name}: {most.lift.text()}, {most.outcome()} {most.numbers()}."
    return text


def _against(result: AblationResult) -> str:
    """The best control and the placebo of what gains most."""
    return bench_of(result).claim(_best(result), joint=True).beside()


def _cost(result: AblationResult, predictors: Manifests) -> str:
    by_arm = costs(result, predictors)
    shown = [_first(result), _best(result)]
    if result.best_control is not None:
        shown.append(result.arms.find(result.best_control))
    named = {arm.name: (arm, by_arm[arm.name]) for arm in shown}.values()
    phrases = [f"{_duration(cost)} for {_label(arm)}" for arm, cost in named if cost is not None]
    if not phrases:
        return "Not recorded: name the scoring runs with --predictor-run."
    return f"A million priors, each of a user at a snapshot, take {', '.join(phrases)}."


def _duration(seconds: float) -> str:
    """CPU time in its largest fitting unit.

    >>> _duration(25000.0), _duration(90.0), _duration(12.3)
    ('6.9 CPU-hours', '1.5 CPU-minutes', '12 CPU-seconds')
    """
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f} CPU-hours"
    return f"{seconds / 60:.1f} CPU-minutes" if seconds >= 60 else f"{seconds:.0f} CPU-seconds"


def _advice(result: AblationResult, retrieval: Mapping[str, Any]) -> str:
    first, best, bench = _first(result), _best(result), bench_of(result)
    claim, end_to_end = bench.claim(first), retrieval.get("claim")
    kind = result.verdict.kind
    if kind == "untrusted":
        return (
            "Trust no figure on this page: measure with more seeds (--seeds 5) and more users until the placebo is nil."
        )
    if claim.gap is not None:
        return f"Close the gap first: {claim.gap.fix}. Then build the frame and measure again."
    if kind == "undefined":
        return "Measure on more users: the test rows lack positives or negatives."
    if kind == "controls":
        return "Put a prior on trial beside these: publish one, and give its arm `role: treatment` in arms.yaml."
    if claim.one_seed:
        return "Measure again with three seeds or more (--seeds 3): of one, nothing is clear."
    if kind == "win":
        return f"Train a ranker with {_label(first)}, and try it in an A/B test."
    if kind == "win_not_over_control" and claim.control is not None:
        return f"Take {claim.control.name}: as good, and it costs less."
    if best.name != first.name and bench.claim(best, joint=True).kind == "win":
        return f"Leave {_label(first)} out of the ranker; try {_label(best)} in an A/B test."
    if end_to_end is not None and end_to_end.kind == "win":
        return f"Use {end_to_end.name} for candidates; the ranker does without."
    if kind == "gain":
        lacks = (
            "a control (neighbours, say)" if claim.control is None else "more users, until it stands off its placebo"
        )
        return f"Measure with {lacks} before you build on it."
    if kind in ("loss", "loss_unchecked"):
        return f"Leave {_label(first)} out of the ranker."
    size = claim.lift.detectable
    name = _label(first)
    return f"Leave {name} out, or measure on more users: a true lift of AUC below {size:.4f} would not have shown here."
