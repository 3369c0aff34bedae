"""The arms that need no run: what an LLM has to beat, computed from data before the cut-off alone.

What is chosen (half-life, back-off, weights) is chosen on the labels of an earlier cut-off, which lie before T;
counts, similarities and factors are then taken anew from everything before T.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from advprior.evaluation.protocol import YEAR, Labels
from advprior.histories import Histories, Int
from advprior.predictors import counts
from advprior.predictors.base import Float, log_softmax
from advprior.predictors.habit import SMOOTHING, fit_weights
from advprior.predictors.neighbours import neighbour_term, similarity
from feature_repo.contract import NEIGHBOURS, POPULARITY

RECENCY, ALS, BLEND = "recency", "als", "blend"
HALF_LIVES = (30.0, 90.0, 365.0, 1460.0)  # days
BACK_OFFS = (0.1, 0.3, 1.0, 3.0, 10.0)  # events that popularity counts for
ALS_FLOOR = 0.02  # of a factor score, so that its log stays finite


def als_installed() -> bool:
    """Whether the optional package `implicit` is there."""
    return find_spec("implicit") is not None


def popularity(past: Histories, cutoff: int, size: int) -> Float:
    """Log-shares of the last 365 days [size]."""
    recent = past.time >= cutoff - YEAR
    events = np.bincount(past.advertiser[recent], minlength=size)
    return log_softmax(np.log(events + SMOOTHING))


def recency(own: Float, log_popularity: Float, back_off: float) -> Float:
    """``log((own + back_off·popularity) / (Σ own + back_off))`` of decayed own purchases [P, size]."""
    mixed = own.astype(np.float64) + back_off * np.exp(log_popularity, dtype=np.float64)
    result: Float = np.log(mixed / mixed.sum(1, keepdims=True)).astype(np.float32)
    return result


def als_term(past: Histories, users: Int, size: int, seed: int) -> Float:
    """Log of what matrix factors by alternating least squares give ``users`` [P, size]."""
    from implicit.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix
    from threadpoolctl import threadpool_limits

    shape = (len(past), size)
    bought = csr_matrix((np.ones(len(past.time), np.float32), (past.user_of_row, past.advertiser)), shape=shape)
    bought.data = np.log1p(bought.data)
    with threadpool_limits(1, "blas"):  # its own threads and those of BLAS would fight
        model = AlternatingLeastSquares(
            factors=min(32, size), regularization=0.05, alpha=5.0, iterations=15, random_state=seed, num_threads=1
        )
        model.fit(bought, show_progress=False)
    scores = model.user_factors[users] @ model.item_factors.T
    term: Float = np.log(np.clip(scores, 0.0, None) + ALS_FLOOR)
    return term


@dataclass
class Controls:
    """The controls' settings, fitted on labels before T by `fit_controls`.

    Attributes
    ----------
    half_life, back_off : float
        Days and events, of own purchases.
    weights : dict of str to list of float
        For ``neighbours`` and ``als``: of log-popularity and of the arm's own term.
    """

    half_life: float
    back_off: float
    weights: dict[str, list[float]]
    seed: int

    def to_json(self) -> dict[str, Any]:
        """JSON form, for the provenance."""
        return asdict(self)

    def log_probs(self, past: Histories, users: Int, cutoff: int, size: int) -> dict[str, Float]:
        """Log-probs [len(users), size] of every control, from ``past`` (events before ``cutoff``)."""
        common, own = popularity(past, cutoff, size), _own(past, users, cutoff, self.half_life, size)
        wide: Float = np.broadcast_to(common, (len(users), size))
        found = {POPULARITY: wide, RECENCY: recency(own, common, self.back_off)}
        for name, weights in self.weights.items():
            term = _term(name, past, users, own, size, self.seed)
            found[name] = log_softmax(weights[0] * common + weights[1] * term)
        return found


def fit_controls(past: Histories, labels: Labels, cutoff: int, size: int, *, seed: int) -> Controls:
    """Choose the controls' settings on ``labels`` of an earlier ``cutoff``, from ``past`` before that cut-off."""
    common, truth = popularity(past, cutoff, size), labels.truth(size)
    best = (np.inf, HALF_LIVES[0], BACK_OFFS[0])
    for half_life in HALF_LIVES:
        own = _own(past, labels.user, cutoff, half_life, size)
        for back_off in BACK_OFFS:
            nll = -float((recency(own, common, back_off) * truth).sum())
            best = min(best, (nll, half_life, back_off))
    _, half_life, back_off = best
    own = _own(past, labels.user, cutoff, half_life, size)
    wide = np.broadcast_to(common, own.shape)
    weights = {}
    for name in (NEIGHBOURS, *([ALS] if als_installed() else [])):
        term = _term(name, past, labels.user, own, size, seed)
        weights[name] = [float(w) for w in fit_weights(np.stack([wide, term]), truth, [1.0, 0.0])[0]]
    return Controls(half_life, back_off, weights, seed)


def fit_blend(arms: dict[str, Float], labels: Labels) -> dict[str, float]:
    """Weights of a conditional logit over the arms' log-probs, by likelihood of ``labels``."""
    terms = np.stack(list(arms.values()))
    weights, _ = fit_weights(terms, labels.truth(terms.shape[-1]), np.full(len(terms), 1.0 / len(terms)))
    return dict(zip(arms, map(float, weights), strict=True))


def blend(arms: dict[str, Float], weights: dict[str, float]) -> Float:
    """Log-probs [P, N] of the logit with ``weights``."""
    terms = np.stack([arms[name] for name in weights]).astype(np.float64)
    total = np.tensordot(np.asarray(list(weights.values())), terms, 1)
    return log_softmax(total)


def _own(past: Histories, users: Int, cutoff: int, half_life: float, size: int) -> Float:
    return counts.own_points(past, users, np.full(len(users), cutoff, np.int64), half_life, size)


def _term(name: str, past: Histories, users: Int, own: Float, size: int, seed: int) -> Float:
    return als_term(past, users, size, seed) if name == ALS else neighbour_term(own, similarity(past, size))
