"""Do priors see the past only? A sample is scored again from histories that end at the snapshot."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from advprior.history.histories import Histories
from advprior.predictors.base import Scorer
from advprior.runtime.parity import RELATIVE, allowed_difference, largest_difference
from advprior.store.arrays import Int
from advprior.store.contract import TOP_INDEX_FILE
from advprior.store.errors import AdvpriorError

PAST_FP16 = 4e-3  # of the largest log-prob: half precision rounds by the shape of the batch; a leak is far larger
PAST_SAMPLE = 12  # priors that are checked so


def check_past_only(
    scorer: Scorer, histories: Histories, cutoffs: Int, matrix: Path, relative: float = RELATIVE
) -> float:
    """Largest difference between priors as scored and scored again from histories cut at their snapshot.

    The backfill gives all snapshots of a user from one long forward; this takes a sample of them one by one,
    as if nothing later had happened yet.

    Raises
    ------
    AdvpriorError
        ``PRI011`` above ``relative`` of the priors' size (see `advprior.runtime.parity`).
    """
    if not len(histories) or not len(cutoffs):
        return 0.0
    priors = np.load(matrix, mmap_mode="r")
    beside = matrix.with_name(TOP_INDEX_FILE)
    top = np.load(beside, mmap_mode="r") if beside.is_file() else None
    rng = np.random.default_rng(0)
    worst, allowed = 0.0, 0.0
    for column in rng.choice(len(cutoffs), min(3, len(cutoffs)), replace=False):
        past = histories.before(int(cutoffs[column]))
        users = np.sort(rng.choice(len(histories), min(PAST_SAMPLE // 3, len(histories)), replace=False))
        again = scorer.score(past, users.astype(np.int64), cutoffs[column : column + 1])[:, 0]
        rows = users * len(cutoffs) + column
        if top is not None:
            again = np.take_along_axis(again, top[rows].astype(np.int64), axis=1)
        worst = max(worst, largest_difference(again, priors[rows]))
        allowed = max(allowed, allowed_difference(priors[rows], relative))
    if not worst <= allowed:
        raise AdvpriorError(
            "PRI011",
            "a prior depends on what came after its snapshot",
            where=str(matrix),
            actual=f"{worst:.1e} in log-prob against the history cut at the snapshot",
            expected=f"at most {allowed:.1e}, for log-probs of this size",
            fix="advprior export RUN --force, then score again",
        )
    return worst
