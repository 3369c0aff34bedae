"""What an arm is worth beside its accuracy: conversions at an ad load, and how few advertisers they go to.

An ad load of k shows the first k ads of each slate. Among ads that were shown the outcome is known, so conversions
are counted, not forecast; that a user would have done the same with fewer ads around is assumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from advprior.store.arrays import Double, Int
from ranking.evidence.ordering import Sorted, concentration

LOADS = (1, 3, 5, 10)


def value_at_loads(
    slate: ArrayLike,
    label: ArrayLike,
    advertiser: Int,
    scores: Mapping[str, Sequence[Double]],
    loads: Sequence[int] = LOADS,
) -> list[dict[str, Any]]:
    """Conversions per slate, and concentration of what is shown, for every arm and ad load.

    Parameters
    ----------
    slate, label : array [n]
    advertiser : int array [n]
        Index of the ad's advertiser.
    scores : mapping of arm to list of array [n]
        One array per seed; the values are means over seeds.

    Returns
    -------
    list of dict
        arm, load, conversions, share (of the slates' conversions), hhi (of advertisers over ads shown). Tied scores
        share what their places show, as if broken at random: conversions are the mean over those orders, the
        concentration is that of the expected number of ads shown.

    Examples
    --------
    >>> import numpy as np
    >>> rows = value_at_loads([0, 0, 1], [1, 0, 0], np.array([0, 1, 1]), {"a": [np.array([.9, .1, .5])]}, [1])
    >>> rows[0]["conversions"], rows[0]["share"], rows[0]["hhi"]
    (0.5, 1.0, 0.5)
    """
    y = np.asarray(label, dtype=np.float64)
    out: list[dict[str, Any]] = []
    for arm, of_arm in scores.items():
        by_load: dict[int, list[tuple[float, float]]] = {load: [] for load in loads}
        slates = 1
        for score in of_arm:
            rows = Sorted.of(slate, score)
            slates = max(len(rows.starts), 1)
            for load in loads:
                shown = rows.shown(load)
                conversions = float(shown @ y[rows.order])
                by_load[load].append((conversions, concentration(advertiser[rows.order], shown)))
        for load in loads:
            hits, hhi = np.mean(by_load[load], axis=0)
            out.append(
                {
                    "arm": arm,
                    "load": load,
                    "conversions": float(hits) / slates,
                    "share": float(hits / y.sum()) if y.sum() else float("nan"),
                    "hhi": float(hhi),
                }
            )
    return out


def scoring_cost(prior: Mapping[str, Any], run: Mapping[str, Any] | None = None) -> float | None:
    """CPU-seconds of a million priors (a user at a snapshot), from what a run took; None where it was not recorded.

    Processor time, not time on the clock: it does not depend on how many cores there were or who shared them.

    Parameters
    ----------
    prior : mapping
        Facts of the published prior: ``rows`` (users × snapshots) and, where known, ``score_cpu_seconds``.
    run : mapping, optional
        Manifest of the scoring run, where it was handed to the report.

    Examples
    --------
    >>> scoring_cost({"rows": 2000, "score_seconds": 30.0, "score_cpu_seconds": 50.0})
    25000.0
    """
    facts = dict(run["facts"]) if run else dict(prior)
    seconds = run.get("cpu_seconds") if run else prior.get("score_cpu_seconds")
    return 1e6 * float(seconds) / float(facts["rows"]) if seconds and facts.get("rows") else None
