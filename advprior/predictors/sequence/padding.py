"""Padding, which every batch of the network needs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from advprior.store.arrays import Int


def padded(rows: Sequence[Int], *, least: int = 0) -> Int:
    """Rows of any length as one int64 matrix, zeros to the right, at least ``least`` wide.

    >>> padded([np.array([1, 2]), np.array([3])], least=3).tolist()
    [[1, 2, 0], [3, 0, 0]]
    """
    out = np.zeros((len(rows), max([least, *map(len, rows)])), np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
