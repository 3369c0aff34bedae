"""Why an ad stands where it stands: contributions to its score, and how old the rows behind it are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from advprior.store.contract import PRIOR_VIEW_PREFIX
from ranking.service.loading import Loaded
from ranking.service.rows import Matrix, Row, ServedView, ViewRow, in_time
from ranking.service.slate import Prepared


def contributions(loaded: Loaded, block: Matrix) -> list[dict[str, Any]]:
    """Contributions of each row, largest first, in log-odds before calibration: exact TreeSHAP.

    Parameters
    ----------
    block : float32 [ads, features]

    Returns
    -------
    list of dict
        ``base`` and ``raw_score``, ``features`` by name without those of zero, their sum over priors ``prior``, and
        ``prior_share``: the priors' part of all contributions, by size.
    """
    names = loaded.plan.features
    of_prior = np.array([name.startswith(PRIOR_VIEW_PREFIX) for name in names])
    explained = []
    for row in loaded.predictor.contributions(block):
        own, size = row[:-1], np.abs(row[:-1])
        total = float(size.sum())
        explained.append(
            {
                "base": float(row[-1]),
                "raw_score": float(row.sum()),
                "prior": float(own[of_prior].sum()),
                "prior_share": float(size[of_prior].sum()) / total if total else 0.0,
                "features": {names[i]: float(own[i]) for i in np.argsort(-size, kind="stable") if own[i]},
            }
        )
    return explained


def rows_in_time(rows: Mapping[str, Row], views: Mapping[str, ServedView], now_us: int) -> dict[str, Row]:
    """Rows as the join would take them: None for one that is too early or too old."""
    return {
        name: row if isinstance(row, ViewRow) and in_time(row.available_us, views[name], now_us) is None else None
        for name, row in rows.items()
    }


def as_of(ready: Prepared, views: Mapping[str, ServedView]) -> dict[str, list[int]]:
    """When the rows behind a request became available, microseconds, by view; empty for a view without one in time."""
    moments: dict[str, list[int]] = {}
    for name, row in rows_in_time(ready.user.rows, views, ready.now_us).items():
        moments[name] = [row.available_us] if isinstance(row, ViewRow) else []
    for name, available in ready.table.available_us.items():
        of_ads = np.unique(available[ready.ads]).tolist()
        moments[name] = [m for m in of_ads if m >= 0 and in_time(m, views[name], ready.now_us) is None]
    return moments
