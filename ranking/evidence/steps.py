"""The verdict over both steps: what priors do to conversions end to end, then each step by itself, then the ranker's.

The two-by-two measures both steps, the ablation one; which of them the verdict is about follows from the metric that is
decided on. Everything that leads a report, a terminal or a `Verdict` is put together here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ranking.evidence.claims import Claim
from ranking.evidence.result import AblationResult
from ranking.evidence.verdict import Verdict, said


@dataclass(frozen=True)
class Steps:
    """What a two-by-two says of conversions per slate.

    Parameters
    ----------
    arm : str
        Whose priors it is about first.
    both, retrieval, ranking : Claim
        Of that arm, both steps and each by itself.
    sentences : tuple of str
        Of these three.
    others : mapping of arm to (Claim, str)
        Both steps with the priors of every other treatment, and its sentence.
    controls : mapping of arm to arm
        Each one's best control over both steps.
    cutoffs : tuple of str
        A line for each of several cut-offs that are pooled.
    """

    arm: str
    both: Claim
    retrieval: Claim
    ranking: Claim
    sentences: tuple[str, str, str]
    others: Mapping[str, tuple[Claim, str]]
    controls: Mapping[str, str]
    cutoffs: tuple[str, ...] = ()


def decided_claim(steps: Steps | None) -> Claim | None:
    """The claim over both steps, where it is what is decided on; None where the ranker's is."""
    return steps.both if steps is not None and steps.both.decides else None


def whole_verdict(result: AblationResult, steps: Steps | None = None) -> Verdict:
    """The verdict that leads: over both steps where they were measured, else the ranker's.

    Parameters
    ----------
    result : AblationResult
    steps : Steps, optional
    """
    own = result.verdict
    if steps is None:
        return own
    lead, *alone = steps.sentences
    alone = [*steps.cutoffs, *alone]  # what is pooled first, then what it is pooled of
    others = [sentence for _, sentence in steps.others.values()]
    decided = decided_claim(steps)
    if own.kind == "untrusted":
        return replace(own, steps=[lead, *alone, *others])
    if decided is None:
        return replace(own, sentence=lead, steps=[f"Decided on {said(result.metric)}: {own.sentence}", *alone, *others])
    ranker = f"All ads of a slate ranked, none left out by retrieval: {own.sentence}"
    return replace(
        own,
        kind=decided.kind,
        sentence=lead,
        label=decided.name,
        one_seed=decided.one_seed,
        steps=[*alone, *others, ranker],
    )
