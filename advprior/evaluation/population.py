"""Whom the arms are asked about: a population's labels, its controls and the blends, all fitted on labels before T.

Users with a history and users known by a profile alone are populations of their own: what weighs a habit says nothing
of those who have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from advprior.evaluation.compare import mean_marks
from advprior.evaluation.controls import BEST, BLEND, Controls, Window, blend, fit_blend, fit_controls
from advprior.evaluation.protocol import Labels, first_labels
from advprior.evaluation.terms import Terms
from advprior.history.histories import Histories
from advprior.store.arrays import Float
from advprior.store.contract import POPULARITY

ALL = "all LLMs"
MOST_FITTED = 20_000  # users on whose labels of one earlier cut-off the controls and blends are fitted
MOST_CELLS = 1_500_000  # of one term, likewise
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
    """

    labels: Labels
    early: Labels
    controls: Controls
    arms: dict[str, list[Float]]
    first: dict[str, list[Float]]
    blend_weights: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)


def fitted_facts(asked: Population) -> dict[str, Any]:
    """What was fitted on the earlier labels, for the provenance."""
    return {
        "fitted_users": len(asked.early),
        "controls": asked.controls.to_json(),
        "blend_weights": asked.blend_weights,
        "best_control": asked.best,
    }


def ask(
    histories: Histories,
    now: int,
    ahead: int,
    back: int,
    terms_at: Callable[[int], Terms],
    size: int,
    seed: int,
    *,
    profile_only: int | None = None,
    users: int | None = None,
) -> Population | None:
    """The users with an event before the cut-off, or those with a profile only, and their controls.

    Parameters
    ----------
    histories : Histories
        All events.
    now, ahead, back : int
        The cut-off, the horizon, and how far before the cut-off labels to fit on may start (microseconds).
    terms_at : callable
        Terms as of a moment, from events before it: the same for every population.
    size, seed : int
        N; of what is drawn at random.
    profile_only : int, optional
        At most this many users with a profile only, in place of those with a history.
    users : int, optional
        At most this many, drawn at random, at every cut-off.

    Returns
    -------
    Population or None
        None when there is nobody to ask, or no earlier label to fit on.
    """
    alone = profile_only is not None
    labels = first_labels(histories, now, ahead, profile_only=alone)
    if profile_only is not None:
        labels = labels.sample(profile_only, seed)
    fitted = min(MOST_FITTED if profile_only is None else profile_only, max(MOST_CELLS // size, 1000))
    if users is not None:
        labels, fitted = labels.sample(users, seed), min(users, MOST_FITTED)
    past = histories.before(now)
    windows: list[Window] = []
    for share in EARLIER:
        then = now - int(share * back)
        early = first_labels(past, then, now - then, profile_only=alone).sample(fitted, seed)
        if len(early):
            windows.append(Window(terms_at(then), early))
        elif share == EARLIER[0]:  # the blends are fitted on these
            return None
    if not len(labels):
        return None
    controls, first = fit_controls(windows, size, seed=seed)
    arms = controls.log_probs(terms_at(now), labels.user, size)
    return Population(
        labels, windows[0].labels, controls, {k: [v] for k, v in arms.items()}, {k: [v] for k, v in first.items()}
    )


def add_blends(asked: Population, names: Sequence[str], with_llm: set[str], optimistic: Sequence[str]) -> None:
    """Adds the blend of all controls, of those with each LLM arm and with all of them; chooses the best control.

    With several seeds, blend s holds the s-th seed of every arm in it.
    """

    plain = [name for name in asked.arms if name not in with_llm]
    for called, extra in blends(names, with_llm).items():
        inside = [*plain, *extra]
        asked.arms[called], asked.first[called], asked.blend_weights[called] = [], [], []
        for s in range(max(len(asked.arms[name]) for name in inside)):
            first = {name: asked.first[name][s % len(asked.first[name])] for name in inside}
            weights = fit_blend(first, asked.early)
            asked.blend_weights[called].append(weights)
            asked.first[called].append(blend(first, weights))
            arms = {name: asked.arms[name][s % len(asked.arms[name])] for name in inside}
            asked.arms[called].append(blend(arms, weights))
    judged = {
        name: mean_marks(asked.first[name], asked.early)["recall@5"]
        for name in (*plain, BLEND)
        if name not in optimistic
    }
    asked.best = {"name": max(judged, key=lambda name: judged[name]), "recall@5 on the earlier labels": judged}


def blends(names: Sequence[str], with_llm: set[str]) -> dict[str, list[str]]:
    """What each blend has beside the controls: nothing, one LLM arm, and, where there are several, all of them."""
    llms = [name for name in names if name in with_llm]
    found: dict[str, list[str]] = {BLEND: []} | {f"{BLEND} + {name}": [name] for name in llms}
    return found | ({f"{BLEND} + {ALL}": llms} if len(llms) > 1 else {})


def pairs(asked: Population, names: Sequence[str], with_llm: set[str]) -> Iterator[tuple[str, str, str]]:
    """(arm, baseline, the baseline's name): controls against popularity, runs and blends against all they must beat."""
    plain = [name for name in asked.controls.arms if name in asked.arms]
    for arm in (*plain, BLEND):
        if arm != POPULARITY:
            yield arm, POPULARITY, POPULARITY
    if f"{BLEND} + {ALL}" in asked.arms:
        yield f"{BLEND} + {ALL}", BLEND, BLEND
        yield f"{BLEND} + {ALL}", asked.best["name"], BEST
    for name in names:
        for baseline in (*plain, BLEND, *(n for n in names if n != name)):
            yield name, baseline, baseline
        if name not in with_llm:
            continue
        both = f"{BLEND} + {name}"
        yield name, asked.best["name"], BEST
        yield both, asked.best["name"], BEST
        yield both, BLEND, BLEND
        yield both, name, name
        if f"{BLEND} + {ALL}" in asked.arms:
            yield f"{BLEND} + {ALL}", both, both
        for other in names:
            if other != name and other in with_llm:
                yield both, f"{BLEND} + {other}", f"{BLEND} + {other}"
