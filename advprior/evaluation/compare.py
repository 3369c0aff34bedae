"""From log-probs to the tables of a ladder: every metric of every arm by segment, and paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from advprior.evaluation.intervals import interval, resample
from advprior.evaluation.protocol import METRICS, Labels, marks
from advprior.store.arrays import Double, Float, Int
from advprior.store.progress import tracked

Segments = Mapping[str, npt.NDArray[np.bool_]]


def mean_marks(members: Sequence[Float], labels: Labels) -> dict[str, float]:
    """Each metric, mean over users and seeds."""
    marked = [marks(log_probs, labels) for log_probs in members]
    return {
        m: float(np.mean([(by_metric[m] * labels.credit).sum() / len(labels) for by_metric in marked])) for m in METRICS
    }


@dataclass(frozen=True)
class Bootstrap:
    """How often is drawn again, and what.

    Attributes
    ----------
    replicates, seed : int
    unit : int64 [L], optional
        Of each label, what is drawn again in place of its user: its advertiser, say, where a difference must stand
        another sample of advertisers. The means are the same; ``users`` of a row counts these then.
    """

    replicates: int
    seed: int
    unit: Int | None = None


def compare(
    arms: Mapping[str, Sequence[Float]],
    labels: Labels,
    inside: Segments,
    pairs: Iterable[tuple[str, str, str]],
    bootstrap: Bootstrap,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of arms by segment, and of (arm, baseline) differences with their intervals.

    Parameters
    ----------
    arms : mapping of str to sequence of float32 [P, N]
        Log-probs of each of an arm's seeds.
    labels : Labels
    inside : mapping of str to bool [L]
        Which labels count in each segment.
    pairs : iterable of (arm, baseline, name)
        ``name`` is what the baseline is called in the row.
    bootstrap : Bootstrap
        Users are drawn again with replacement, the same ones for all arms; what seeds add is read off the differences
        between arms, seed by seed. The interval is that of another draw of both.
    """
    row = labels.row if bootstrap.unit is None else np.unique(bootstrap.unit, return_inverse=True)[1]
    replicates, seed = bootstrap.replicates, bootstrap.seed
    credit, users = labels.credit, int(row.max(initial=-1)) + 1
    weight: Double = np.stack([np.bincount(row, credit * mask, minlength=users) for mask in inside.values()], axis=1)
    total = np.tile(weight.sum(0), len(METRICS))
    drawn_weight = np.tile(resample([weight], replicates=replicates, seed=seed)[0], len(METRICS))
    people = (weight > 0).sum(0)
    means: dict[str, Double] = {}
    by_seed: dict[str, Double] = {}
    drawn: dict[str, Double] = {}
    for name, members in tracked(arms.items(), "bootstrap", "arm"):
        # sums per user, or what is drawn [U, metrics · segments]: enough for means and for every interval
        sums = [_sums(log_probs, labels, inside, row, users) for log_probs in members]
        again = resample(sums, replicates=replicates, seed=seed)
        with np.errstate(invalid="ignore", divide="ignore"):
            by_seed[name] = np.stack([s.sum(0) / total for s in sums])
            drawn[name] = np.stack(
                [np.vstack([s, a / drawn_weight]) for s, a in zip(by_seed[name], again, strict=True)]
            )
        means[name] = by_seed[name].mean(0)
    rows = []
    for name in arms:
        for j, segment in enumerate(inside):
            at = {m: i * len(inside) + j for i, m in enumerate(METRICS)}
            one: dict[str, Any] = {"arm": name, "segment": segment, "users": int(people[j])}
            one |= {m: _number(means[name][k]) for m, k in at.items()}
            one["seeds"] = len(arms[name])
            if len(arms[name]) > 1:
                one["by_seed"] = {m: [_number(v) for v in by_seed[name][:, k]] for m, k in at.items()}
            rows.append(one)
    comparisons = []
    for arm, baseline, called in pairs:
        low, high = interval(drawn[arm], drawn[baseline], np.tile(people, len(METRICS)))
        for i, metric in enumerate(METRICS):
            for j, segment in enumerate(inside):
                k = i * len(inside) + j
                base, difference = means[baseline][k], means[arm][k] - means[baseline][k]
                comparisons.append(
                    {
                        "arm": arm,
                        "baseline": called,
                        "metric": metric,
                        "segment": segment,
                        "difference": _number(difference),
                        "relative": _number(difference / base) if base else None,
                        "low": _number(low[k]),
                        "high": _number(high[k]),
                    }
                )
    return rows, comparisons


def overall(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The table of arms: the rows of the segment ``overall``, under ``name``."""
    return [
        {"name": row["arm"], **{k: v for k, v in row.items() if k not in ("arm", "segment")}}
        for row in rows
        if row["segment"] == "overall"
    ]


def _sums(log_probs: Float, labels: Labels, inside: Segments, row: Int, size: int) -> Double:
    marked = marks(log_probs, labels)
    columns = [
        np.bincount(row, marked[m] * labels.credit * mask, minlength=size) for m in METRICS for mask in inside.values()
    ]
    return np.stack(columns, axis=1)


def _number(value: Any) -> float | None:
    """A JSON number; nothing where a segment is empty."""
    return float(value) if value == value else None
