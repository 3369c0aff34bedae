"""Of each advertiser the closest few of a wide catalog by their texts, found tile by tile; what the others come to.

An array of 100,000 × 100,000 cosines would take 40 GB. Each tile of it is made once, for its rows and, turned, for its
columns; a cell is looked at again only where it exceeds the least that its row has so far. What is summed is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from advprior.history.histories import Codes
from advprior.predictors.text.similar import CLIP
from advprior.store.arrays import Double, Float, Int
from advprior.store.progress import Progress

LINKS = 100  # of each advertiser, itself among them
TILE = 1024  # advertisers on either side of what is multiplied at once


@dataclass(frozen=True)
class Closest:
    """What is known of a catalog's cosines without all of them.

    Attributes
    ----------
    index : int32 [N, K]
        Closest advertisers of each, in ascending order.
    cosine : float32 [N, K]
    total : float64 [N]
        Of cosines to all advertisers.
    weight : float64 [N]
        Of the kernel to all that speak, before its rows are made to sum to one.
    middle, spread : float
        Of cosines between any two that speak.
    fitted : int64 [F]
        Who speaks.
    """

    index: Codes
    cosine: Float
    total: Double
    weight: Double
    middle: float
    spread: float
    fitted: Int

    @classmethod
    def of(cls, unit: Float, fitted: Int, links: int | None = None) -> Closest:
        """From unit vectors [N, H]; `LINKS` of each unless told."""
        size, count = len(unit), min(links or LINKS, len(unit))
        used = unit.any(0)
        unit = unit if used.all() else unit[:, used]  # a part that no text has says nothing
        middle, spread = _spread(unit[fitted])
        speaks = np.zeros(size, np.float32)
        speaks[fitted] = 1.0
        weight, best = np.zeros(size), _Best(size, count)
        starts = range(0, size, TILE)
        with Progress(len(starts) * (len(starts) + 1) // 2, "closest texts", "tile") as progress:
            for i, first in enumerate(starts):
                rows = unit[first : first + TILE]
                for second in starts[i:]:
                    tile = rows @ unit[second : second + TILE].T
                    best.add(tile, first, second)
                    if first != second:
                        best.add(tile.T, second, first)
                    kernel = kernel_of(tile, middle, spread)
                    weight[first : first + TILE] += kernel @ speaks[second : second + TILE]
                    if first != second:
                        weight[second : second + TILE] += speaks[first : first + TILE] @ kernel
                    progress.update()
        index, cosine = best.links()
        total = (unit @ unit.sum(0, dtype=np.float64).astype(np.float32)).astype(np.float64)
        return cls(index, cosine, total, weight, middle, spread, np.asarray(fitted, np.int64))

    def arrays(self) -> Mapping[str, Any]:
        """For `numpy.savez`."""
        return vars(self)

    @classmethod
    def load(cls, saved: Mapping[str, Any]) -> Closest:
        """From what `arrays` gave."""
        arrays = {name: saved[name] for name in cls.__dataclass_fields__}
        return cls(**arrays | {name: float(arrays[name]) for name in ("middle", "spread")})


def kernel_of(cosine: Float, middle: float, spread: float) -> Float:
    """How far texts speak for each other, as `advprior.predictors.text.similar.text_kernel`, not summing to one."""
    kernel: Float = (cosine - np.float32(middle)) / np.float32(spread or 1.0)
    np.clip(kernel, *CLIP, out=kernel)
    return np.exp(kernel, out=kernel)


def _spread(unit: Float) -> tuple[float, float]:
    """Mean and standard deviation of the cosines of every two of some unit vectors [F, H]."""
    count = len(unit)
    pairs = count * (count - 1)
    if not pairs:
        return 0.0, 0.0
    every = unit.sum(0, dtype=np.float64)
    own = float(np.einsum("ij,ij->", unit, unit, dtype=np.float64))
    middle = float(every @ every - own) / pairs
    gram = (unit.T @ unit).astype(np.float64) if unit.shape[1] <= count else (unit @ unit.T).astype(np.float64)
    squares = float((gram**2).sum() - (np.einsum("ij,ij->i", unit, unit, dtype=np.float64) ** 2).sum()) / pairs
    return middle, float(np.sqrt(max(squares - middle**2, 0.0)))


class _Best:
    """The largest cells of each row of an array that comes tile by tile."""

    def __init__(self, size: int, count: int) -> None:
        self._size, self._count = size, count
        self._least = np.full(size, -np.inf, np.float32)
        self._cells: dict[int, list[tuple[Codes, Codes, Float]]] = {}

    def add(self, tile: Float, first: int, second: int) -> None:
        """A tile whose rows begin at ``first``, its columns at ``second``."""
        cells = self._cells.setdefault(first, [])
        if not cells and tile.shape[1] > self._count:
            column = np.argpartition(-tile, self._count - 1, axis=1)[:, : self._count].ravel()
            row = np.repeat(np.arange(len(tile)), self._count)
        else:
            row, column = np.nonzero(tile > self._least[first : first + len(tile), None])
        cells.append((row.astype(np.int32), (column + second).astype(np.int32), tile[row, column]))
        if len(cells) == 1 or sum(len(part[0]) for part in cells) > 2 * self._count * len(tile):
            self._cut(first, len(tile))

    def _cut(self, first: int, height: int) -> None:
        row, column, value = (np.concatenate(parts) for parts in zip(*self._cells[first], strict=True))
        order = np.lexsort([column, -value, row])
        row, column, value = row[order], column[order], value[order]
        starts = np.searchsorted(row, np.arange(height + 1))
        place = np.arange(len(row)) - starts[row]
        inside = place < self._count
        self._cells[first] = [(row[inside], column[inside], value[inside])]
        full = np.flatnonzero(np.diff(starts) >= self._count)
        self._least[first + full] = value[starts[full] + self._count - 1]

    def links(self) -> tuple[Codes, Float]:
        """Columns [N, K] of each row's largest in ascending order, and their values."""
        index = np.empty((self._size, self._count), np.int32)
        values = np.empty((self._size, self._count), np.float32)
        for first in list(self._cells):
            height = min(TILE, self._size - first)
            self._cut(first, height)
            row, column, value = self._cells.pop(first)[0]
            order = np.lexsort([column, row])
            index[first : first + height] = column[order].reshape(height, self._count)
            values[first : first + height] = value[order].reshape(height, self._count)
        return index, values
