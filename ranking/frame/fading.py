"""How much a user did with something, as the towers read it: two logarithms of counts, one fading and one even.

One place for both readers: the fit, which takes counts off the tables (`ranking.candidates.inputs`), and the store's
own rows, from which a service computes the same user vector (`ranking.frame.history`).
"""

from __future__ import annotations

import numpy as np

from advprior.store.arrays import Double, Float, Int

FADES = (28.0, None)  # half-lives in days; None fades never
_FAINT = 0.05  # a faded count below it is left out: it would cost memory and say nothing


def fading(age: Double, place: Int, size: int) -> Float:
    """log(1 + count) per place and fade, float32 [size, fades]: the tenth event says less than the first.

    Parameters
    ----------
    age : float64 [rows]
        Days before the snapshot; a row that is not strictly before it counts nothing.
    place : int array [rows]
        0 … size − 1, what the row is counted for.

    Examples
    --------
    >>> import numpy as np
    >>> np.expm1(fading(np.array([28.0, 56.0, 0.0]), np.array([0, 0, 0]), 1)).round(2).tolist()
    [[0.75, 2.0]]
    """
    before = age > 0
    out = np.zeros((size, len(FADES)), dtype=np.float32)
    for i, half_life in enumerate(FADES):
        weights = np.ones(int(before.sum())) if half_life is None else 0.5 ** (age[before] / half_life)
        count = np.bincount(place[before], weights=weights, minlength=size)
        out[:, i] = np.where(count > _FAINT, np.log1p(count), 0.0)
    return out
