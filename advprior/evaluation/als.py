"""Alternating least squares as a control: factors of users and advertisers, tuned on labels before the cut-off.

A control with settings that suit other data is a weak one: which of `GRID` explains an earlier window's labels best is
looked up before anything is compared.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from advprior.evaluation.protocol import Labels
from advprior.history.histories import Histories
from advprior.predictors.logit import fit_logit, log_softmax, logit
from advprior.store.arrays import Float, Int

ITERATIONS = 15
ALS_FLOOR = 0.02  # of a factor score, so that its log stays finite
MOST_TUNED = 1_500_000  # cells of users × advertisers whose labels choose


@dataclass(frozen=True)
class AlsSettings:
    """Settings of ALS, as the package ``implicit`` has them."""

    factors: int = 32
    regularization: float = 0.05
    alpha: float = 5.0

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


#: Fewer and more factors, more weight of an event, more regularization.
GRID = (
    AlsSettings(),
    AlsSettings(factors=16),
    AlsSettings(factors=64),
    AlsSettings(alpha=40.0),
    AlsSettings(regularization=5.0),
)


def als_installed() -> bool:
    """Whether the optional package `implicit` is there."""
    return find_spec("implicit") is not None


def fit_als(past: Histories, size: int, seed: int, settings: AlsSettings) -> Any:
    """Factors of users and advertisers by alternating least squares on log1p of events.

    Implicit feedback as Hu, Koren and Volinsky weigh it ("Collaborative filtering for implicit feedback datasets",
    ICDM 2008), by the package ``implicit``, for users with an event.
    """
    from implicit.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):  # its own threads and those of BLAS would fight
        model = AlternatingLeastSquares(
            factors=min(settings.factors, size),
            regularization=settings.regularization,
            alpha=settings.alpha,
            iterations=ITERATIONS,
            random_state=seed,
            num_threads=1,
        )
        model.fit(_log_counts(past, size)[1], show_progress=False)
    return model


def als_factors(model: Any, asked: Histories, size: int, *, counted: bool) -> Float:
    """Factors of users [U, F], zero without an event; folded in where the model was fitted on others."""
    from threadpoolctl import threadpool_limits

    active, matrix = _log_counts(asked, size)
    users = np.zeros((len(asked), model.item_factors.shape[1]), np.float32)
    if counted:
        users[active] = model.user_factors
    elif len(active):
        with threadpool_limits(1, "blas"):
            users[active] = model.recalculate_user(np.arange(len(active)), matrix)
    return users


def als_term(users: Float, model: Any) -> Float:
    """``log(max(score, 0) + 0.02)`` [P, N] of factors of users [P, F]."""
    term: Float = np.log(np.clip(users @ model.item_factors.T, 0.0, None) + ALS_FLOOR)
    return term


def tune_als(past: Histories, labels: Labels, size: int, seed: int) -> tuple[AlsSettings, dict[str, float]]:
    """Which of `GRID` explains labels best that come after ``past``, and nats a label of each, by what it is called.

    Scores stand beside log-popularity in a logit whose two weights are fitted on the same labels: what is compared is
    the order that the factors give, not how large their scores happen to be.
    """
    if not len(labels):
        return AlsSettings(), {}
    labels = labels.sample(max(MOST_TUNED // size, 100), seed)
    popular = log_softmax(np.log(np.bincount(past.advertiser, minlength=size) + 1.0))
    everyone: Float = np.broadcast_to(popular, (len(labels), size)).astype(np.float32)
    truth, nats = labels.truth(size), {}
    for settings in GRID:
        model = fit_als(past, size, seed, settings)
        terms = np.stack([everyone, als_term(als_factors(model, past, size, counted=True)[labels.user], model)])
        answers = logit(list(terms), fit_logit(terms, truth))
        nats[settings] = -float((truth * answers).sum(dtype=np.float64)) / float(truth.sum(dtype=np.float64))
    named = {", ".join(f"{k} {v:g}" for k, v in settings.to_json().items()): value for settings, value in nats.items()}
    return min(nats, key=lambda settings: nats[settings]), named


def _log_counts(past: Histories, size: int) -> tuple[Int, Any]:
    """Users with an event, and log1p of their events as a sparse matrix.

    Users without one would be solved for again and again to no end: their factors are zero.
    """
    from scipy.sparse import csr_matrix

    active = np.flatnonzero(np.diff(past.offsets))
    row = np.searchsorted(active, past.user_of_row)
    matrix = csr_matrix((np.ones(len(row), np.float32), (row, past.advertiser)), shape=(len(active), size))
    matrix.data = np.log1p(matrix.data)
    return active, matrix
