"""Training on some of the negatives, and what makes up for the others.

Where positives are rare, most of the cost of a fit is negatives that say the same (He et al. 2014, *Practical lessons
from predicting clicks on ads at Facebook*, doi:10.1145/2648584.2648589, 6.3). Two ways, both drawn once for all arms
and seeds:

- ``negatives``, a share w of them, as in that paper. A ranker of such rows answers for them: its odds are 1/w times too
  high, and q = p / (p + (1 - p) / w) is the probability of all rows. On log-odds that is log w, added once
  (`Sample.correction`); a ranker keeps it and applies it wherever it is used.
- ``negatives_per_positive``, so many of them at most, each weighing more (King and Zeng 2001, 4.2): the level of
  probabilities stays without a correction.

The order of a slate needs all of its rows: who fits lambdarank leaves none out.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranking.models.config import RankerConfig

_SEED = 0  # the same rows for every arm and seed


@dataclass(frozen=True, eq=False)
class Sample:
    """Which training rows are learned from.

    Attributes
    ----------
    rows : int array, optional
        Places, rising; None for all of them.
    weight : float32 array, optional
        Of each of these rows; None for 1.
    correction : float
        What is added to the log-odds of who learned from them.
    """

    rows: NDArray[np.int64] | None = None
    weight: NDArray[np.float32] | None = None
    correction: float = 0.0

    @classmethod
    def of(cls, label: NDArray[Any], config: RankerConfig, *, weights: bool = True) -> Sample:
        """As a ranker's settings say.

        Parameters
        ----------
        label : array [training rows] of 0 and 1
        config : RankerConfig
        weights : bool
            Whether who learns can be told that some rows weigh more; else none are left out that way.

        Examples
        --------
        >>> label = np.array([1] + [0] * 8, dtype=np.int8)
        >>> half = Sample.of(label, RankerConfig(negatives=0.5))
        >>> len(half.rows), half.weight, round(half.correction, 3)
        (5, None, -0.693)
        >>> four = Sample.of(label, RankerConfig(negatives_per_positive=4))
        >>> four.weight.tolist(), four.correction
        ([1.0, 2.0, 2.0, 2.0, 2.0], 0.0)
        """
        negative = np.flatnonzero(label == 0)
        if config.negatives is not None:
            rows = _with_negatives(label, negative, max(1, round(config.negatives * len(negative))))
            return (
                cls() if rows is None else cls(rows, None, log((len(rows) - int((label == 1).sum())) / len(negative)))
            )
        if config.negatives_per_positive is None or not weights:
            return cls()
        wanted = (len(label) - len(negative)) * config.negatives_per_positive
        rows = _with_negatives(label, negative, wanted)
        if rows is None:
            return cls()
        return cls(rows, np.where(label[rows] == 1, 1.0, len(negative) / wanted).astype(np.float32))


def _with_negatives(label: NDArray[Any], negative: NDArray[np.int64], wanted: int) -> NDArray[np.int64] | None:
    """Every positive and so many negatives, rising; None where that is all of them."""
    if wanted >= len(negative):
        return None
    drawn = np.random.default_rng(_SEED).choice(negative, wanted, replace=False)
    return np.sort(np.concatenate([np.flatnonzero(label == 1), drawn]))
