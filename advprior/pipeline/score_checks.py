"""Do priors see the past only? A sample is scored again from histories that end at the snapshot, before all others.

A long run on the wrong settings is thus refused in its first seconds. What was written is held to the same sample at
the end: each row in its own place.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from advprior.history.everyone import Everyone
from advprior.predictors.base import Scorer
from advprior.runtime.parity import RELATIVE, allowed_difference, largest_difference
from advprior.store.arrays import Float, Int
from advprior.store.contract import TOP_INDEX_FILE
from advprior.store.errors import AdvpriorError
from advprior.store.matrix import matrix_path, open_matrix

PAST_SAMPLE = 12  # priors that are checked so


@dataclass(frozen=True)
class PastSample:
    """Priors of some users from histories cut at a snapshot.

    Attributes
    ----------
    rows : int64 [n]
        Of the priors of everyone at every snapshot, users first.
    priors : float32 [n, N]
    difference : float
        Largest, in log-prob, to the same users' priors from their whole histories.
    relative : float
        What may be a rounding, of the largest log-prob.
    """

    rows: Int
    priors: Float
    difference: float
    relative: float


def check_past_only(scorer: Scorer, everyone: Everyone, cutoffs: Int, relative: float = RELATIVE) -> PastSample:
    """Priors as they will be scored, against priors from histories cut at their snapshot; the sample.

    The backfill gives all snapshots of a user from one long forward; this takes some of them one by one,
    as if nothing later had happened yet.

    Raises
    ------
    AdvpriorError
        ``PRI011`` above ``relative`` of the priors' size (see `advprior.runtime.parity`).
    """
    rng = np.random.default_rng(0)
    rows: list[Int] = []
    cut: list[Float] = []
    worst, allowed = 0.0, 0.0
    columns = rng.choice(len(cutoffs), min(3, len(cutoffs)), replace=False) if len(everyone) and len(cutoffs) else ()
    for column in columns:
        users = np.sort(rng.choice(len(everyone), min(PAST_SAMPLE // 3, len(everyone)), replace=False))
        users = users.astype(np.int64)
        histories, local = everyone.of(users)
        past = histories.before(int(cutoffs[column]))
        whole = scorer.score(histories, local, cutoffs)[:, column]
        again = scorer.score(past, local, cutoffs[column : column + 1])[:, 0]
        worst = max(worst, largest_difference(again, whole))
        allowed = max(allowed, allowed_difference(whole, relative))
        rows.append(users * len(cutoffs) + column)
        cut.append(again)
    if not worst <= allowed:
        raise _depends_on_later(scorer.provider, worst, allowed)
    if not rows:
        return PastSample(np.empty(0, np.int64), np.empty((0, 0), np.float32), 0.0, relative)
    return PastSample(np.concatenate(rows), np.concatenate(cut), worst, relative)


def check_written(sample: PastSample, matrix: Path) -> float:
    """Largest difference between the sample and what was written of it, in ``matrix`` and beside.

    Raises
    ------
    AdvpriorError
        ``PRI011`` where a row says something else.
    """
    if not len(sample.rows):
        return 0.0
    priors, expected = open_matrix(matrix)[sample.rows], sample.priors
    beside = matrix.with_name(TOP_INDEX_FILE)
    if matrix_path(beside):
        top = open_matrix(beside)[sample.rows].astype(np.int64)
        expected = np.take_along_axis(expected, top, axis=1)
    worst, allowed = largest_difference(priors, expected), allowed_difference(expected, sample.relative)
    if not worst <= allowed:
        raise _depends_on_later(str(matrix), worst, allowed)
    return worst


def _depends_on_later(where: str, worst: float, allowed: float) -> AdvpriorError:
    return AdvpriorError(
        "PRI011",
        "a prior depends on what came after its snapshot",
        where=where,
        actual=f"{worst:.1e} in log-prob against the history cut at the snapshot",
        expected=f"at most {allowed:.1e}, for log-probs of this size",
        fix="advprior export RUN --force, then score again",
    )
