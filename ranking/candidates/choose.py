"""Which of a request's ads become candidates: the towers' best, with slots kept for ads of predicted advertisers.

Rows are ads of requests, any number each. One sort serves every quota.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from advprior.store.arrays import Bool
from ranking.evidence.ordering import Sorted


def choose(rows: Sorted, predicted: ArrayLike, k: int, quota: float) -> Bool:
    """Candidates of each request.

    The first k − n are the towers' best; n = quota · k slots go to the best remaining ads of predicted advertisers;
    what such ads cannot fill goes to the towers again.

    Parameters
    ----------
    rows : Sorted
    predicted : bool array [rows]
        Ads of predicted advertisers, in the order that the rows came in.
    k : int
    quota : float
        0 … 1, the share of slots.

    Returns
    -------
    bool array [rows]
        In the order that the rows came in.

    Examples
    --------
    >>> rows = Sorted.of([0, 0, 0, 0], [4.0, 3.0, 2.0, 1.0])
    >>> choose(rows, [False, False, False, True], 2, 0.0).tolist()
    [True, True, False, False]
    >>> choose(rows, [False, False, False, True], 2, 0.5).tolist()
    [True, False, False, True]
    >>> choose(rows, [False] * 4, 2, 1.0).tolist()
    [True, True, False, False]
    """
    kept = round(quota * k)
    wanted = np.asarray(predicted, dtype=bool)[rows.order]
    head = rows.place < k - kept
    extra = wanted & ~head
    extra &= rows.running(extra) <= kept
    taken = head | extra
    free = k - np.bincount(rows.request, weights=taken, minlength=len(rows.starts))[rows.request]
    rest = ~taken
    taken = taken | (rest & (rows.running(rest) <= free))
    out = np.empty(len(taken), dtype=bool)
    out[rows.order] = taken
    return out
