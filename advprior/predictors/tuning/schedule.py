"""The learning rate of every fit: a short warm-up, then half a cosine down to a floor."""

from __future__ import annotations

import math

WARM_UP = 0.05  # share of all steps
FLOOR = 0.05  # of the peak, at the end
LEAST = 1e-3  # of the peak: no step is made for nothing


def learning_rate(progress: float) -> float:
    """Share of the peak learning rate at a share of all steps: a linear warm-up inside a half cosine.

    Cosine without restarts: Loshchilov and Hutter, SGDR, arXiv 1608.03983.

    Parameters
    ----------
    progress : float
        From 0 to 1.

    Examples
    --------
    >>> [round(learning_rate(progress), 3) for progress in (0.0, 0.01, 0.05, 0.5, 1.0)]
    [0.001, 0.2, 0.994, 0.525, 0.05]
    """
    cosine = 0.5 * (1 + math.cos(math.pi * progress)) * (1 - FLOOR) + FLOOR
    return max(min(progress / WARM_UP, 1.0) * cosine, LEAST)
