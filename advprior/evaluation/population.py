"""Whom the arms are asked about: a population's labels, its controls and the blends, all fitted on labels before T.

Users with a history and users known by a profile alone are populations of their own: what weighs a habit says nothing
of those who have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from advprior.evaluation.alternatives import EVERYONE_UP_TO, EarlierLabels
from advprior.evaluation.compare import mean_marks
from advprior.evaluation.controls import BEST, BLEND, Controls, blend, fit_blend, fit_controls
from advprior.evaluation.options import Options
from advprior.evaluation.protocol import Labels, first_labels
from advprior.evaluation.split import Split
from advprior.store.arrays import Float
from advprior.store.contract import POPULARITY

ALL = "all LLMs"
MOST_FITTED = 20_000  # users on whose labels of one earlier cut-off the controls and blends are fitted
LEAST_FITTED = 1000
MOST_CELLS = 1_500_000  # of one term, likewise; `LEAST_FITTED` users where these are fewer
WIDE_CELLS = 5_000_000  # of one term, likewise, of whatever users: the terms of three cut-offs are some 2 GB then
BLENDED_CELLS = 20_000_000  # of an arm's answers that blends are fitted on, where controls see some advertisers alone
#: Earlier cut-offs of the controls' labels, in horizons before the cut-off; a later one knows the drift better
EARLIER = (1.0, 0.75, 0.5)


@dataclass
class Population:
    """One population: whom the arms are asked about at the cut-off, and at the earlier one that weighs them.

    Attributes
    ----------
    labels, early : Labels
        From the cut-off on, and between the earlier one and it.
    controls : Controls
    arms, first : dict of str to list of float32 [P, N]
        Log-probs of each of an arm's seeds for the users of ``labels`` and of ``early``.
    fitted : int
        Users of the earlier one whose labels weigh the controls: those of ``early``, or more where N is large.
    """

    labels: Labels
    early: Labels
    controls: Controls
    arms: dict[str, list[Float]]
    first: dict[str, list[Float]]
    fitted: int
    blend_weights: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)


def fitted_facts(population: Population) -> dict[str, Any]:
    """What was fitted on the earlier labels, for the provenance."""
    return {
        "fitted_users": len(population.early),
        "controls_fitted_users": population.fitted,
        "controls": population.controls.to_json(),
        "blend_weights": population.blend_weights,
        "best_control": population.best,
    }


def populate(split: Split, options: Options, *, profile_only: bool = False) -> Population | None:
    """The users with an event before the cut-off, or those with a profile only, and their controls.

    Parameters
    ----------
    split : Split
    options : Options
        ``users`` and, of users with a profile only, ``profile_only`` say how many at most, drawn at random.
    profile_only : bool
        Whether it is the users with a profile only.

    Returns
    -------
    Population or None
        None when there is nobody to ask, or no earlier label to fit on.
    """
    labels, most = first_labels(split.histories, split.now, split.ahead, profile_only=profile_only), MOST_FITTED
    if profile_only:
        labels, most = labels.sample(options.profile_only, options.seed), options.profile_only
    wide = max(WIDE_CELLS // split.size, 1)
    fitted = min(most, max(MOST_CELLS // split.size, LEAST_FITTED), wide)
    if options.users is not None:
        labels, fitted = labels.sample(options.users, options.seed), min(options.users, MOST_FITTED, wide)
    blended = fitted
    if split.size > EVERYONE_UP_TO:  # a label of the controls costs a few numbers there, and no run an answer
        blended = min(most if options.users is None else options.users, max(BLENDED_CELLS // split.size, 1))
        fitted = min(most, LEAST_FITTED)
    windows: list[EarlierLabels] = []
    for share in EARLIER:
        then = split.now - int(share * split.back)
        choices = first_labels(split.past, then, split.now - then, profile_only=profile_only)
        if len(choices):
            windows.append(EarlierLabels(split.terms_at(then), choices.sample(fitted, options.seed)))
        elif share == EARLIER[0]:  # the blends are fitted on these
            return None
    if not len(labels):
        return None
    early = windows[0].labels.sample(blended, options.seed)
    controls, first = fit_controls(windows, split.size, seed=options.seed, early=early)
    arms = controls.log_probs(split.terms_at(split.now), labels.user, split.size)
    every, earlier = ({name: [values] for name, values in answers.items()} for answers in (arms, first))
    return Population(labels, early, controls, every, earlier, len(windows[0].labels))


def add_blends(population: Population, names: Sequence[str], with_llm: set[str], optimistic: Sequence[str]) -> None:
    """Adds the blend of all controls, of those with each LLM arm and with all of them; chooses the best control.

    With several seeds, blend s holds the s-th seed of every arm in it.
    """

    plain = [name for name in population.arms if name not in with_llm]
    for called, extra in blends(names, with_llm).items():
        inside = [*plain, *extra]
        population.arms[called], population.first[called], population.blend_weights[called] = [], [], []
        for s in range(max(len(population.arms[name]) for name in inside)):
            first = {name: population.first[name][s % len(population.first[name])] for name in inside}
            weights = fit_blend(first, population.early)
            population.blend_weights[called].append(weights)
            population.first[called].append(blend(first, weights))
            arms = {name: population.arms[name][s % len(population.arms[name])] for name in inside}
            population.arms[called].append(blend(arms, weights))
    judged = {
        name: mean_marks(population.first[name], population.early)["recall@5"]
        for name in (*plain, BLEND)
        if name not in optimistic
    }
    population.best = {"name": max(judged, key=lambda name: judged[name]), "recall@5 on the earlier labels": judged}


def blends(names: Sequence[str], with_llm: set[str]) -> dict[str, list[str]]:
    """What each blend has beside the controls: nothing, one LLM arm, and, where there are several, all of them."""
    llms = [name for name in names if name in with_llm]
    each: dict[str, list[str]] = {BLEND: []} | {f"{BLEND} + {name}": [name] for name in llms}
    return each | ({f"{BLEND} + {ALL}": llms} if len(llms) > 1 else {})


def comparisons_of(population: Population, names: Sequence[str], with_llm: set[str]) -> Iterator[tuple[str, str, str]]:
    """(arm, baseline, the baseline's name): controls against popularity, runs and blends against all they must beat."""
    plain = [name for name in population.controls.arms if name in population.arms]
    for arm in (*plain, BLEND):
        if arm != POPULARITY:
            yield arm, POPULARITY, POPULARITY
    if f"{BLEND} + {ALL}" in population.arms:
        yield f"{BLEND} + {ALL}", BLEND, BLEND
        yield f"{BLEND} + {ALL}", population.best["name"], BEST
    for name in names:
        for baseline in (*plain, BLEND, *(n for n in names if n != name)):
            yield name, baseline, baseline
        if name not in with_llm:
            continue
        both = f"{BLEND} + {name}"
        yield name, population.best["name"], BEST
        yield both, population.best["name"], BEST
        yield both, BLEND, BLEND
        yield both, name, name
        if f"{BLEND} + {ALL}" in population.arms:
            yield f"{BLEND} + {ALL}", both, both
        for other in names:
            if other != name and other in with_llm:
                yield both, f"{BLEND} + {other}", f"{BLEND} + {other}"
