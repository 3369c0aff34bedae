"""What one prior's slots bring over the towers alone, and over another prior's slots: with intervals for all at once.

Users are resampled, the same ones for every contrast. The joint intervals are single-step max-t: one fit of the towers
has no seeds, so all contrasts have the same degrees of freedom (`advprior.store.uncertainty`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from advprior.store.arrays import Double, Int
from advprior.store.contract import shuffled_source
from ranking.evidence.bootstrap import user_draws
from ranking.evidence.lift import OVERALL, Lift

if TYPE_CHECKING:
    import pandas as pd

_DRAWS = 100
_CELLS = 20_000_000  # [replicates, users] at a time, at most: 160 MB, however many users there are
_LEVEL = 0.95
TOWERS = "towers"  # the retrieval without priors, as the other side of a contrast


@dataclass(frozen=True, eq=False)
class Hits:
    """Engaged ads among the candidates of each request of a split.

    Parameters
    ----------
    user : int array [requests]
    engaged : float array [requests]
        Ads that each request engaged with.
    of : mapping of name to float array [requests]
        Those among the candidates; `TOWERS` is one of the names.
    """

    user: Int
    engaged: Double
    of: Mapping[str, Double]


def contrasts(hits: Hits, pairs: Sequence[tuple[str, str]], replicates: int, seed: int = 0) -> list[dict[str, Any]]:
    """Differences of recall with their intervals, as JSON keeps them.

    Parameters
    ----------
    hits : Hits
    pairs : sequence of (name, against)
    replicates : int
        Resamplings of users.

    Returns
    -------
    list of dict
        Fields of `Lift`; empty where nothing was engaged with.
    """
    _, who = np.unique(hits.user, return_inverse=True)
    engaged = np.bincount(who, weights=hits.engaged).astype(np.float64)
    if not engaged.sum() or not pairs:
        return []
    change = np.stack([np.bincount(who, weights=hits.of[a] - hits.of[b]) for a, b in pairs], axis=1).astype(np.float64)
    drawn = np.concatenate(list(_drawn(engaged, change, replicates, seed)))
    recall = {name: float(of.sum() / engaged.sum()) for name, of in hits.of.items()}
    error = drawn.std(axis=0, ddof=1)
    apart = np.abs(drawn - drawn.mean(axis=0))[:, error > 0] / error[error > 0]
    wide = float(np.quantile(apart.max(axis=1), _LEVEL)) if apart.size else 0.0
    low, high = np.quantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], axis=0)
    return [
        {
            "arm": a,
            "baseline": b,
            "metric": "recall",
            "segment": OVERALL,
            "value": recall[a],
            "baseline_value": recall[b],
            "difference": recall[a] - recall[b],
            "relative": (recall[a] - recall[b]) / recall[b] if recall[b] else None,
            "low": float(low[i]),
            "high": float(high[i]),
            "replicates": replicates,
            "error": float(error[i]),
            "adjusted_low": recall[a] - recall[b] - wide * float(error[i]),
            "adjusted_high": recall[a] - recall[b] + wide * float(error[i]),
        }
        for i, (a, b) in enumerate(pairs)
    ]


def as_lift(record: Mapping[str, Any]) -> Lift:
    """A contrast as a lift: of one fit of the towers, so that no noise of training is in its interval."""
    relative = record["relative"]
    return Lift(**{**record, "relative": float("nan") if relative is None else relative, "seeds": 1})


def references(reached: Mapping[str, float], controls: Sequence[str]) -> dict[str, dict[str, str]]:
    """The best control and the placebo of each prior that is no control itself, as far as they get slots.

    Parameters
    ----------
    reached : mapping of name to float
        Recall on validation.
    controls : sequence of str

    Examples
    --------
    >>> references({"llm": 0.5, "als": 0.4, "neighbours": 0.6, "placebo": 0.3}, ["als", "neighbours"])["llm"]
    {'control': 'neighbours', 'placebo': 'placebo'}
    """
    best = max((name for name in reached if name in controls), key=lambda name: reached[name], default=None)
    beside: dict[str, dict[str, str]] = {}
    for name in reached:
        if name in controls or shuffled_source(name) in reached:
            continue
        placebo = next((other for other in reached if shuffled_source(other) == name), None)
        named = {"control": best, "placebo": placebo}
        beside[name] = {role: other for role, other in named.items() if other is not None}
    return beside


def gain(user: Int, change: Double, engaged: Double, replicates: int, seed: int = 0) -> tuple[float, float, float]:
    """Change of hits over engaged ads, and its 95 % interval, users resampled; arrays [requests]."""
    _, who = np.unique(user, return_inverse=True)
    top, bottom = (np.bincount(who, weights=of).astype(np.float64) for of in (change, engaged))
    if not bottom.sum():
        return float("nan"), float("nan"), float("nan")
    drawn = np.concatenate(list(_drawn(bottom, top[:, None], replicates, seed)))
    low, high = np.quantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(top.sum() / bottom.sum()), float(low), float(high)


def row_lift(predictor: str, row: pd.Series[Any], replicates: int) -> Lift:
    """A gain over the towers alone, as a row of the curve's table has it: without a joint interval."""
    value, change = float(row["recall"]), float(row["gain"])
    base = value - change
    return Lift(
        arm=predictor,
        baseline=TOWERS,
        metric="recall",
        segment=OVERALL,
        value=value,
        baseline_value=base,
        difference=change,
        relative=change / base if base else float("nan"),
        low=float(row["low"]),
        high=float(row["high"]),
        replicates=replicates,
        seeds=1,
    )


def _drawn(engaged: Double, change: Double, replicates: int, seed: int) -> Iterator[Double]:
    """Change of recall in each replicate, [replicates of a block, pairs]."""
    draws = user_draws(len(engaged), replicates, seed)
    while drawn := list(islice(draws, max(1, min(_DRAWS, _CELLS // len(engaged))))):
        block = np.array(drawn, np.float64)
        below = block @ engaged
        yield (block @ change)[below > 0] / below[below > 0, None]
