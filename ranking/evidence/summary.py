"""The five lines that a report opens with: the effect end to end, whose prior, against what, its cost, what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advprior.store.features import features_from_json
from ranking.evidence.lift import Lift
from ranking.evidence.metrics import Auc, Conversions
from ranking.evidence.result import AblationResult
from ranking.evidence.value import scoring_cost
from ranking.evidence.wording import outcome, plain_label, uncapitalised
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
    """What the page says in its largest letters, and the tone of it: a key of `ranking.evidence.verdict.HEADLINES`.

    End to end first, where it was measured; then the ranker alone.
    """
    kind, words = result.verdict.kind, result.verdict.headline
    if "end_to_end" not in (retrieval or {}) or kind == "untrusted":
        return words, kind
    lift = (retrieval or {})["end_to_end"]
    tone = "win" if lift.better else "loss" if lift.worse else "unclear"
    return f"End to end {outcome(lift.better, lift.worse)}; in the ranker: {uncapitalised(words)}", tone


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


def _lift(result: AblationResult, arm: Arm, metric: str = Auc.name) -> Lift:
    return result.lifts.get(arm.name, result.arms.baseline.name, metric)


def _first(result: AblationResult) -> Arm:
    return result.arms.of_role("treatment")[0]


def _best(result: AblationResult) -> Arm:
    """The treatment that gains most of those that gain among all comparisons at once; the first where none does."""
    objective = result.arms.config_of(result.arms.baseline).objective
    treatments = [a for a in result.arms.of_role("treatment") if result.arms.config_of(a).objective == objective]
    gains = [arm for arm in treatments if _lift(result, arm).adjusted_low > 0]
    return max(gains, key=lambda arm: _lift(result, arm).difference, default=_first(result))


def _end_to_end(result: AblationResult, retrieval: Mapping[str, Any]) -> str:
    if "end_to_end" in retrieval:
        lift, about = retrieval["end_to_end"], retrieval["about"]
        arm = next((a for a in result.arms.arms if a.name == about["arm"]), None)
        return (
            f"With {_label(arm) if arm else about['arm']} in retrieval and in ranking, conversions per slate at "
            f"{about['slots']} ads change by {lift.text()} ({lift.relative:+.1%}): {outcome(lift.better, lift.worse)}."
        )
    metric = Conversions()
    lift = _lift(result, _first(result), metric.name)
    return (
        f"Retrieval was not measured. With {_label(_first(result))} in ranking, conversions per slate at "
        f"{metric.k} ads change by {lift.text()} ({lift.relative:+.1%}): {outcome(lift.better, lift.worse)}."
    )


def _whose(result: AblationResult) -> str:
    first, best = _first(result), _best(result)
    lift = _lift(result, first)
    text = f"In ranking, AUC changes by {lift.text()} with {_label(first)}: {outcome(lift.better, lift.worse)}."
    if best.name != first.name:
        text += f" Of all that is on trial {_label(best)} gain most: {_lift(result, best).text()}."
    return text


def _against(result: AblationResult) -> str:
    """The best control and the placebo, in one sentence."""
    best = _best(result)
    phrases = []
    if result.best_control is not None:
        control = result.arms.find(result.best_control)
        own = f"with the best cheap prior, {_label(control)}, AUC changes by {_lift(result, control).text()}"
        compared = {lift.baseline for lift in result.lifts if lift.arm == best.name}
        if control.name in compared:
            difference = result.lifts.get(best.name, control.name, Auc.name)
            own += f", and from there by {difference.text()} with {_label(best)}"
        phrases.append(own)
    placebo = result.arms.placebo_of(best) or result.arms.placebo_of(_first(result))
    if placebo is not None:
        lift = _lift(result, placebo)
        clear = lift.better or lift.worse
        phrases.append(
            f"with the placebo, priors of other users, by {lift.text()}, "
            + ("which should be nothing and is not" if clear else "not told apart from nothing, as it should be")
        )
    if not phrases:
        return "No cheaper prior and no placebo were measured beside it."
    text = "; ".join(phrases)
    return text[:1].upper() + text[1:] + "."


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
    kind, best, first = result.verdict.kind, _best(result), _first(result)
    if kind == "untrusted":
        return (
            "Trust no figure on this page: measure with more seeds (--seeds 5) and more users until the placebo is nil."
        )
    if kind == "undefined":
        return "Measure on more users: the test rows lack positives or negatives."
    if kind == "win":
        return f"Train a ranker with {_label(first)}, and try it in an A/B test."
    if kind == "win_not_over_control" and result.best_control is not None:
        return f"Take {_label(result.arms.find(result.best_control))}: as good, and it costs less."
    if best.name != first.name:
        return f"Leave {_label(first)} out of the ranker; try {_label(best)} in an A/B test."
    if "end_to_end" in retrieval and retrieval["end_to_end"].better:
        return f"Use {_label(first)} for candidates, where the gain comes from; the ranker does without."
    size = _lift(result, first).detectable
    if kind == "loss":
        return f"Leave {_label(first)} out of the ranker."
    return f"Leave it out, or measure on more users: a true lift of AUC below {size:.4f} would not have shown here."
