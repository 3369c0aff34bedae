"""Which metric a verdict is about, and how many ads of a slate are shown when conversions are counted.

One metric decides: what is called clear is said of it alone, in the ablation, the two-by-two and the report. By default
it is conversions per slate, which is what an ad earns by; where a slate leaves nothing to choose, it is AUC.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranking.evidence.metrics import DEFAULT_METRICS, MORE_METRICS, Auc, Conversions, Metric

SLOTS, CANDIDATES = 5, 15  # shown ads, and the candidates that they are chosen from, of a long slate
_LONG = 1.5 * CANDIDATES  # ads of a slate from which on both are as above


def slate_sizes(ads: float) -> tuple[int, int]:
    """Candidates and shown ads of slates with so many ads on average: two thirds and one third of short ones.

    >>> slate_sizes(46.0), slate_sizes(9.0), slate_sizes(1.0)
    ((15, 5), (6, 3), (2, 1))
    """
    if ads >= _LONG:
        return CANDIDATES, SLOTS
    return max(2, round(ads * 2 / 3)), max(1, round(ads / 3))


def metrics_at(slots: int) -> tuple[Metric, ...]:
    """What an ablation reports with intervals, conversions at so many shown ads."""
    return tuple(Conversions(slots) if isinstance(m, Conversions) else m for m in DEFAULT_METRICS)


def deciding_metric(decide_on: str | None, slots: int, slate: NDArray[Any]) -> Metric:
    """The metric of a verdict: the one that is asked for; else conversions, or AUC where slates leave no choice.

    Parameters
    ----------
    decide_on : str, optional
        One of `advprior.store.project_files.DECIDE_ON`.
    slots : int
    slate : array [test rows]

    Examples
    --------
    >>> import numpy as np
    >>> deciding_metric(None, 1, np.array([0, 0, 1])).name, deciding_metric(None, 1, np.array([0, 1])).name
    ('conversions_1', 'auc')
    """
    if decide_on is not None:
        return next(m for m in metrics_at(slots) if m.name.rstrip("_0123456789") == decide_on)
    longest = int(np.unique(slate, return_counts=True)[1].max(initial=0))
    return Conversions(slots) if longest > slots else Auc()


def metric_named(name: str) -> Metric:
    """A metric by its name, conversions at any number of ads.

    >>> metric_named("conversions_3").label, metric_named("auc").label
    ('Conversions@3', 'AUC')
    """
    kind, _, number = name.rpartition("_")
    if kind == "conversions" and number.isdigit():
        return Conversions(int(number))
    return next(m for m in (*DEFAULT_METRICS, *MORE_METRICS) if m.name == name)
