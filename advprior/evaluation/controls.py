"""The arms that need no run: what an LLM has to beat, computed from data before the cut-off alone.

Each is a conditional logit over terms (`advprior.evaluation.terms`), the drift of popularity among them, so that none
is too weak. Weights come from labels of earlier cut-offs, which lie before T; counts, similarities and factors are
then taken anew from everything before T.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from advprior.evaluation.protocol import Labels
from advprior.evaluation.terms import ARMS, LOGIT, Terms
from advprior.predictors.logit import fit_logit, logit
from advprior.store.arrays import Float, Int
from advprior.store.contract import POPULARITY
from advprior.store.progress import tracked

BLEND, BEST = "blend", "best control"
HAND_RIDGE, RUN_RIDGE = 100.0, 10.0  # nats by which a blend's weights are held
CHUNK_CELLS = 4_000_000  # of one term held at once


@dataclass
class EarlierLabels:
    """Labels of one earlier cut-off, and the terms as of then."""

    terms: Terms
    labels: Labels


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
        for part in _chunks(len(users), size):
            log_probs[POPULARITY][part] = terms.popularity(users[part])
            values = terms(users[part])
            for name, weights in self.weights.items():
                log_probs[name][part] = logit([values[term] for term in weights], list(weights.values()))
        return log_probs


def fit_controls(windows: Sequence[EarlierLabels], size: int, *, seed: int) -> tuple[Controls, dict[str, Float]]:
    """Weights of every control on the labels of all windows, and what they say of the first window's users.

    Returns
    -------
    controls : Controls
    first : dict of str to float32 [P, N]
        Log-probs of the first window's users by weights that did not see the label of the user (fitted on the other
        half of the users): what a blend is fitted on, so that controls look no better there than they are.
    """
    by_window = [window.terms(window.labels.user) for window in windows]
    truth = np.concatenate([window.labels.truth(size) for window in windows])
    user = np.concatenate([window.labels.user for window in windows])
    half = np.random.default_rng(seed).permutation(int(user.max()) + 1)[user] % 2 == 0
    first_half = half[: len(windows[0].labels)]
    first: dict[str, Float] = {POPULARITY: np.array(windows[0].terms.popularity(windows[0].labels.user))}
    weights = {}
    for name, chosen in tracked(ARMS.items(), "fit controls", "control"):
        names = [term for term in chosen if all(term in k for k in by_window)]
        if name in chosen and name not in names:  # ALS without its package
            continue
        terms = np.stack([np.concatenate([k[term] for k in by_window]) for term in names])
        fitted = fit_logit(terms, truth)
        weights[name] = dict(zip(names, map(float, fitted), strict=True))
        out: Float = np.empty((len(first_half), size), np.float32)
        for side in (True, False):
            other = fit_logit(terms[:, half != side], truth[half != side], start=fitted)
            out[first_half == side] = logit(list(terms[:, : len(first_half)][:, first_half == side]), other)
        first[name] = out
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


def _chunks(users: int, size: int) -> Iterator[slice]:
    step = max(CHUNK_CELLS // max(size, 1), 1)
    for start in range(0, users, step):
        yield slice(start, start + step)
