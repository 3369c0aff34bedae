"""The K likeliest advertisers of each row, best first, and what is left for all others.

Above some ten thousand advertisers a whole row costs more to store and read than anybody looks at. The others
share what is left evenly: a statement that needs no second table and never favours one of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from advprior.store.arrays import Float

ABOVE = 10_000  # advertisers: larger catalogs are kept as top-K unless told otherwise
DEFAULT_K = 100


def kept(size: int, top_k: int | None) -> int | None:
    """K for a catalog of ``size`` advertisers, None for whole rows.

    >>> kept(664, None), kept(50_000, None), kept(664, 20), kept(20, 20)
    (None, 100, 20, None)
    """
    k = top_k if top_k is not None else (DEFAULT_K if size > ABOVE else size)
    return k if k < size else None


def top_k(log_probs: Float, k: int) -> tuple[npt.NDArray[np.int32], Float, Float]:
    """Indices [R, K] and log-probs [R, K], best first (ties: lower index first), and log of the rest [R].

    Parameters
    ----------
    log_probs : float32 [R, N]
        Normalised over N > K.

    Examples
    --------
    >>> index, best, tail = top_k(np.log(np.asarray([[0.1, 0.4, 0.3, 0.2]], np.float32)), 2)
    >>> index.tolist(), np.exp(best).round(3).tolist(), np.exp(tail).round(3).tolist()
    ([[1, 2]], [[0.4000000059604645, 0.30000001192092896]], [0.30000001192092896])
    """
    worst = np.partition(log_probs, -k, axis=1)[:, -k, None]
    # of those that tie at the edge the lowest indices are kept: a stable order of the candidates alone
    index = np.empty((len(log_probs), k), np.int32)
    for row, (values, least) in enumerate(zip(log_probs, worst, strict=True)):
        candidates = np.flatnonzero(values >= least)
        index[row] = candidates[np.argsort(-values[candidates], kind="stable")[:k]]
    best = np.take_along_axis(log_probs, index.astype(np.int64), axis=1)
    # summed over the rest itself: one minus the rest's complement would lose a small tail
    total = np.exp(log_probs, dtype=np.float64)
    np.put_along_axis(total, index.astype(np.int64), 0.0, axis=1)
    tail = np.log(np.maximum(total.sum(1), np.finfo(np.float64).tiny)).astype(np.float32)
    return index, best, tail
