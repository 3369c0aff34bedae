"""The arms that need no run: what an LLM has to beat, computed from data before the cut-off alone.

Each is a conditional logit over terms (`advprior.evaluation.terms`), the drift of popularity among them, so that none
is too weak. Weights come from labels of earlier cut-offs, which lie before T; counts, similarities and factors are
then taken anew from everything before T.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from advprior.evaluation.alternatives import EVERYONE_UP_TO, Alternatives, EarlierLabels, chunks
from advprior.evaluation.protocol import Labels
from advprior.evaluation.terms import ARMS, LOGIT, Terms
from advprior.predictors.logit import fit_logit, logit
from advprior.store.arrays import Bool, Float, Int
from advprior.store.contract import POPULARITY
from advprior.store.progress import tracked

BLEND, BEST = "blend", "best control"
HAND_RIDGE, RUN_RIDGE = 100.0, 10.0  # nats by which a blend's weights are held


@dataclass
class Controls:
    """The controls' weights by arm and term, fitted by `fit_controls`."""

    weights: dict[str, dict[str, float]]

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of all controls."""
        return POPULARITY, *self.weights

    def to_json(self) -> dict[str, Any]:
        """JSON form, for the provenance."""
        return self.weights

    def log_probs(self, terms: Terms, users: Int, size: int) -> dict[str, Float]:
        """Log-probs [len(users), size] of every control."""
        log_probs = {name: np.empty((len(users), size), np.float32) for name in self.arms}
        for part in chunks(len(users), size):
            log_probs[POPULARITY][part] = terms.popularity(users[part])
            values = terms(users[part])
            for name, weights in self.weights.items():
                log_probs[name][part] = logit([values[term] for term in weights], list(weights.values()))
        return log_probs


def fit_controls(
    windows: Sequence[EarlierLabels], size: int, *, seed: int, early: Labels | None = None
) -> tuple[Controls, dict[str, Float]]:
    """Weights of every control on the labels of all windows, and what they say of the first window's users.

    Beyond `EVERYONE_UP_TO` advertisers they are fitted on some alternatives of each label
    (`advprior.evaluation.alternatives`), up to it on all advertisers.

    Parameters
    ----------
    windows : sequence of EarlierLabels
    size : int
        N.
    seed : int
        Of the halves of the users, and of what is drawn.
    early : Labels, optional
        Of the first window, those of some of its users where not all are answered for.

    Returns
    -------
    controls : Controls
    first : dict of str to float32 [P, N]
        Log-probs of these users by weights that did not see the label of the user (fitted on the other half of the
        users): what a blend is fitted on, so that controls look no better there than they are.
    """
    early = windows[0].labels if early is None else early
    most = max(int(window.labels.user.max()) for window in windows)
    side = np.random.default_rng(seed).permutation(most + 1) % 2 == 0
    if size > EVERYONE_UP_TO:
        return _fit_on_some(windows, side, early, size, seed)
    by_window = [window.terms(window.labels.user) for window in windows]
    truth = np.concatenate([window.labels.truth(size) for window in windows])
    half = side[np.concatenate([window.labels.user for window in windows])]
    first_half = half[: len(windows[0].labels)]
    answered = np.isin(windows[0].labels.user, early.user)
    first: dict[str, Float] = {POPULARITY: np.array(windows[0].terms.popularity(early.user))}
    weights = {}
    for name, chosen in tracked(ARMS.items(), "fit controls", "control"):
        names = _names(name, [term for term in chosen if all(term in k for k in by_window)])
        if not names:
            continue
        terms = np.stack([np.concatenate([k[term] for k in by_window]) for term in names])
        fitted = fit_logit(terms, truth)
        weights[name] = dict(zip(names, map(float, fitted), strict=True))
        out: Float = np.empty((len(first_half), size), np.float32)
        for each in (True, False):
            other = fit_logit(terms[:, half != each], truth[half != each], start=fitted)
            out[first_half == each] = logit(list(terms[:, : len(first_half)][:, first_half == each]), other)
        first[name] = out[answered]
    return Controls(weights), first


def _names(arm: str, names: list[str]) -> list[str]:
    """Those of its terms that a control weighs; none where its own is missing, as ALS's without its package."""
    return [] if arm in ARMS[arm] and arm not in names else names


def _fit_on_some(
    windows: Sequence[EarlierLabels], side: Bool, early: Labels, size: int, seed: int
) -> tuple[Controls, dict[str, Float]]:
    """See `fit_controls`; ``side`` [U] is each user's half."""
    some = Alternatives.draw(windows, size, seed=seed)
    weights, by_half = {}, {}
    for name, chosen in tracked(ARMS.items(), "fit controls", "control"):
        names = _names(name, [term for term in chosen if term in some.names])
        if not names:
            continue
        fitted = fit_logit(some.design(names), some.truth())
        weights[name] = dict(zip(names, map(float, fitted), strict=True))
        for each in (True, False):
            rows = side[some.user] != each
            other = fit_logit(some.design(names, rows), some.truth(rows), start=fitted)
            by_half[name, each] = dict(zip(names, map(float, other), strict=True))
    first = {name: np.empty((len(early), size), np.float32) for name in (POPULARITY, *weights)}
    for each in (True, False):
        of_half = Controls({name: by_half[name, each] for name in weights})
        rows = side[early.user] == each
        for name, log_probs in of_half.log_probs(windows[0].terms, early.user[rows], size).items():
            first[name][rows] = log_probs
    return Controls(weights), first


def fit_blend(arms: Mapping[str, Float], labels: Labels) -> dict[str, float]:
    """Weights of a conditional logit over the arms' log-probs, by likelihood of ``labels``.

    It starts from `logit` alone, which holds what the other controls weigh: those are kept close to nothing, and a run
    comes in where the labels say so.
    """
    terms = np.stack(list(arms.values()))
    centre = [float(name == LOGIT) for name in arms]
    ridge = [HAND_RIDGE if name in (POPULARITY, *ARMS) else RUN_RIDGE for name in arms]
    weights = fit_logit(terms, labels.truth(terms.shape[-1]), ridge=ridge, centre=centre)
    return dict(zip(arms, map(float, weights), strict=True))


def blend(arms: Mapping[str, Float], weights: Mapping[str, float]) -> Float:
    """Log-probs [P, N] of the logit with ``weights``."""
    return logit([arms[name] for name in weights], list(weights.values()))
