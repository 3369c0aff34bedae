"""Linear autoencoders in closed form: what goes with what, by events (EASE), by texts, or by both (L3AE).

An item-item matrix B with a zero diagonal says of an advertiser what the others of a history say of it. With X the
users' events [U, N], I the identity and F unit text vectors [N, H]:

- **EASE** (Steck, "Embarrassingly shallow autoencoders for sparse data", WWW 2019): least ``‖X − XB‖² + l·‖B‖²``. With
  ``P = (X'X + l·I)⁻¹`` it is ``B = −P / diag(P)``, column by column. A harder control than cosines: it explains away
  what two advertisers share with everybody.
- **texts alone**: the same of ``F F'`` in place of ``X'X``: the *semantic* matrix C.
- **L3AE** (arXiv 2508.13500): EASE that is pulled to C, ``… + e·‖B − C‖²``, so that advertisers with few events lean on
  their texts. With ``P = (X'X + (l + e)·I)⁻¹`` it is ``B = e·PC − P·(1 + e·diag(PC)) / diag(P)``.

Ridges are those that did best on wine ratings before 2018 (docs/experiments, 2026-11-26-linear-autoencoders). As a term
of a logit the entries are scaled, so that the strongest link of an advertiser is 1 on average, and the log is taken.
"""

from __future__ import annotations

import numpy as np

from advprior.history.histories import Histories
from advprior.store.arrays import Double, Float

EASE_RIDGE = 10.0
SEMANTIC_RIDGE = 10.0
L3AE_RIDGE, L3AE_PULL = 10.0, 1000.0
FLOOR = 0.1  # of a score, so that its log stays finite
WIDEST = 5000  # advertisers: dense [N, N] matrices, and an inverse that costs N³


def gram(histories: Histories, size: int) -> Double:
    """How many users turned to both of two advertisers [N, N]; on the diagonal, to one.

    >>> h = Histories(("u", "v"), ("", ""), np.array([0, 2, 3]), np.array([1, 2, 1]), np.array([0, 1, 0]))
    >>> gram(h, 2).tolist()
    [[2.0, 1.0], [1.0, 1.0]]
    """
    from scipy.sparse import csr_matrix

    ones = np.ones(len(histories.advertiser))
    events = csr_matrix((ones, (histories.user_of_row, histories.advertiser)), shape=(len(histories), size))
    events.data[:] = 1.0  # whatever their number
    both: Double = (events.T @ events).toarray()
    return both


def ease_weights(both: Double | Float, ridge: float = EASE_RIDGE) -> Double:
    """EASE's matrix B [N, N] of a Gram matrix: of events, or of texts, which gives the semantic matrix.

    >>> ease_weights(np.array([[2.0, 1.0], [1.0, 1.0]]), 1.0).round(2).tolist()
    [[0.0, 0.33], [0.5, 0.0]]
    """
    inverse = _inverse(both, ridge)
    weights: Double = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    return weights


def l3ae_weights(both: Double, semantic: Double, ridge: float = L3AE_RIDGE, pull: float = L3AE_PULL) -> Double:
    """L3AE's matrix B [N, N]: EASE of the events' Gram matrix, pulled to ``semantic`` [N, N]."""
    weights: Double = pulled(pulling_inverse(both, ridge, pull), semantic, pull).astype(np.float64)
    return weights


def pulling_inverse(both: Double, ridge: float = L3AE_RIDGE, pull: float = L3AE_PULL) -> Double:
    """What of L3AE depends on the events alone [N, N]: several texts' matrices share it."""
    return _inverse(both, ridge + pull)


def pulled(inverse: Double | Float, semantic: Double | Float, pull: float = L3AE_PULL) -> Double | Float:
    """L3AE's matrix B [N, N] from `pulling_inverse` and a semantic matrix [N, N]."""
    near = pull * (inverse @ semantic)
    weights: Double | Float = near - inverse * ((1.0 + np.diag(near)) / np.diag(inverse))
    np.fill_diagonal(weights, 0.0)
    return weights


def linear_term(own: Float, weights: Double | Float) -> Float:
    """``log(max(log1p(own)·B, 0) + 0.1)`` [..., N] of own decayed events, B scaled by `scaled`."""
    term: Float = np.log(np.maximum(np.log1p(own) @ weights, 0.0) + FLOOR)
    return term


def scaled(weights: Double | Float) -> Float:
    """Weights [N, N] whose rows' largest entry is 1 on average, float32; zero where they all are."""
    largest = float(np.abs(weights).max(axis=1, initial=0.0).mean()) if len(weights) else 0.0
    result: Float = (weights / (largest or 1.0)).astype(np.float32)
    return result


def _inverse(both: Double | Float, ridge: float) -> Double:
    """Of a symmetric matrix and a ridge, which is positive definite: by Cholesky's factors, half an LU's cost."""
    from scipy.linalg.lapack import dpotrf, dpotri

    ridged = both.astype(np.float64) + ridge * np.eye(len(both))
    factor, failed = dpotrf(ridged)
    if failed:  # cosines in single precision may be off by more than a small ridge
        other: Double = np.linalg.inv(ridged).astype(np.float64)
        return other
    upper: Double = np.triu(dpotri(factor)[0])
    return upper + np.triu(upper, 1).T
