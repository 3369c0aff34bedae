"""Population stability index of one feature: how far its distribution moved from training to serving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BINS = 10
#: What stands for a count of 0, so that a bin that one side lacks gives a large number and not infinity.
_EMPTY = 0.5
#: Categories beyond so many of a text feature share one bin.
_MOST_CATEGORIES = 20


@dataclass(frozen=True)
class Bins:
    """Bins of one feature, learnt on the training side; the last one holds missing values.

    Attributes
    ----------
    edges : float64 [bins − 1] or None
        Upper edges, inclusive, of numeric bins; values above the last edge have a bin too.
    categories : tuple of str or None
        Of a text feature; all others share a bin.
    """

    edges: npt.NDArray[np.float64] | None = None
    categories: tuple[str, ...] | None = None

    @classmethod
    def of_numbers(cls, values: npt.NDArray[np.float64], bins: int = BINS) -> Bins:
        """Bins between the quantiles of the values that are not missing.

        Where a tenth or more of them is the minimum, what is smaller still gets a bin of its own.

        >>> Bins.of_numbers(np.array([1.0, 2.0, 3.0, 4.0]), bins=2).edges
        array([2.])
        >>> Bins.of_numbers(np.array([0.0, 0.0, 0.0, 4.0]), bins=2).labels()
        ['< 0', '0', '> 0', 'missing']
        """
        present = values[np.isfinite(values)]
        if not len(present):
            return cls(edges=np.empty(0))
        inner = np.arange(1, bins) / bins
        edges = np.unique(np.quantile(present, inner, method="inverted_cdf"))
        if edges[0] == present.min():
            edges = np.concatenate([[np.nextafter(edges[0], -np.inf)], edges])
        return cls(edges=edges)

    @classmethod
    def of_text(cls, values: Sequence[str | None]) -> Bins:
        """The most frequent categories, one bin each."""
        return cls.of_coded(*coded(values))

    @classmethod
    def of_coded(cls, names: Sequence[str], codes: npt.NDArray[np.int64]) -> Bins:
        """The same of text as `coded` gives it."""
        counts = np.bincount(codes[codes >= 0], minlength=len(names))
        order = np.argsort(-counts, kind="stable")[:_MOST_CATEGORIES]
        return cls(categories=tuple(names[i] for i in order if counts[i]))

    def count(self, values: Any) -> npt.NDArray[np.int64]:
        """Values in each bin, missing ones last."""
        if self.categories is not None:
            return self.count_coded(*coded(values))
        assert self.edges is not None
        numbers = np.asarray(values, dtype=np.float64)
        at = np.searchsorted(self.edges, numbers, side="left")
        missing = len(self.edges) + 1
        return np.bincount(np.where(np.isnan(numbers), missing, at), minlength=missing + 1)

    def count_coded(self, names: Sequence[str], codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The same of text as `coded` gives it."""
        assert self.categories is not None
        place = {name: i for i, name in enumerate(self.categories)}
        other = len(place)
        at = np.array([*(place.get(name, other) for name in names), other + 1], dtype=np.int64)
        return np.bincount(at[codes], minlength=other + 2)  # a missing value's code, −1, takes the last

    def labels(self) -> list[str]:
        """What each bin is called in a plot."""
        if self.categories is not None:
            return [*self.categories, "others", "missing"]
        assert self.edges is not None
        if not len(self.edges):
            return ["present", "missing"]
        edges = [float(edge) for edge in self.edges]
        if len(edges) > 1 and edges[0] == np.nextafter(edges[1], -np.inf):
            named = [f"< {edges[1]:.3g}", f"{edges[1]:.3g}", *(f"≤ {edge:.3g}" for edge in edges[2:])]
        else:
            named = [f"≤ {edge:.3g}" for edge in edges]
        return [*named, f"> {edges[-1]:.3g}", "missing"]


def coded(values: Any) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Distinct values as text, sorted, and the place of each value among them: −1 where it is missing.

    >>> names, codes = coded(["b", None, "a", "b"])
    >>> names, codes.tolist()
    (['a', 'b'], [1, -1, 0, 1])
    """
    import pandas as pd

    codes, distinct = pd.factorize(values if isinstance(values, pd.Series) else pd.Series(list(values), dtype=object))
    names, place = np.unique(np.array([str(value) for value in distinct], dtype=np.str_), return_inverse=True)
    return [str(name) for name in names], np.append(place.astype(np.int64), -1)[codes]


def psi(reference: npt.ArrayLike, current: npt.ArrayLike) -> float:
    """Population stability index of two histograms over the same bins.

    The sum over bins of ``(c − r) · ln(c / r)`` of the shares c and r: Siddiqi, *Credit Risk Scorecards* (Wiley 2006),
    as the divergence of Kullback and Leibler (*On Information and Sufficiency*, 1951, eq. 2.6), which is symmetric.
    A count of 0 is taken as a half; a bin that is empty on both sides says nothing.

    Parameters
    ----------
    reference, current : counts [bins]

    >>> round(psi([50, 50], [80, 20]), 6)  # .3 ln 1.6 − .3 ln .4
    0.415888
    """
    r, c = np.asarray(reference, dtype=np.float64), np.asarray(current, dtype=np.float64)
    filled = (r > 0) | (c > 0)
    r = np.maximum(r[filled], _EMPTY) / r.sum()
    c = np.maximum(c[filled], _EMPTY) / c.sum()
    return float(np.sum((c - r) * np.log(c / r)))


def noise(bins: int, reference: int, current: int) -> float:
    """Mean index of two independent samples of one distribution, ``(bins − 1)(1/n + 1/m)``.

    Yurdakul, *Statistical Properties of Population Stability Index* (Western Michigan University 2018).

    >>> noise(11, 100, 50)
    0.3
    """
    return (bins - 1) * (1 / reference + 1 / current)
