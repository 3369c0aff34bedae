"""A user's prior: read off their row and checked, then turned into the ranker's features.

Each function has its counterpart in `ranking.frame`; a test holds both to equal numbers for the same user, ad and
moment.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from advprior.store.arrays import Int
from advprior.store.contract import (
    CATALOG_VERSION,
    INTEREST_LOG_PROBS,
    LOG_PROBS,
    PRIOR_ROW,
    PRIOR_VIEW_PREFIX,
    SNAPSHOT,
    TAIL_LOG_MASS,
    TOP_INDEX,
)
from advprior.store.times import DAY_US
from ranking.frame.gather import TOP
from ranking.service.catalogs import Catalogs
from ranking.service.rows import Broken, Matrix, Row, ServedView, ViewRow, floats, in_time

#: Features of a prior that are worked out from its vector; a view's scalars are read as they are.
DERIVED = ("log_prob", "log_ratio", "rank", "top20", "age_days", "interest_log_prob", "missing")
_TINY = np.finfo(np.float64).tiny
#: A vector whose probabilities sum to 1 within this is a distribution: float32 of 100,000 advertisers stays within it.
_SUMS_TO_ONE = 1e-3


@dataclass(frozen=True)
class Prior:
    """One user's prior, checked: log-probabilities in the order of their catalog."""

    view: str
    log_probs: Matrix
    version: str
    snapshot_us: int
    means: npt.NDArray[np.float64]
    advertisers: list[str]
    publication: str = ""
    interests: Matrix | None = None
    categories: list[str] = field(default_factory=list)

    @property
    def predictor(self) -> str:
        """Whose it is."""
        return self.view.removeprefix(PRIOR_VIEW_PREFIX)

    def age_days(self, now_us: int) -> float:
        """Days since the newest event it may have seen."""
        return (now_us - self.snapshot_us) / DAY_US


def decode_prior(row: Row, view: ServedView, catalogs: Catalogs, now_us: int) -> Prior | str:
    """A user's prior, or why there is none that can be used.

    Returns
    -------
    Prior or str
        ``prior_missing``, ``prior_stale``, ``prior_early`` (from the future: a clock is wrong), ``prior_corrupt``, or
        ``prior_catalog_unknown`` (of a catalog or snapshot that is not published here).
    """
    if row is None:
        return "prior_missing"
    if isinstance(row, Broken):
        return "prior_corrupt"
    if (late := in_time(row.available_us, view, now_us)) is not None:
        return f"prior_{late}"
    version, snapshot = row.text(CATALOG_VERSION), row.time_us(SNAPSHOT)
    vector = row.values.get(LOG_PROBS)
    if version is None or snapshot is None or vector is None or vector.WhichOneof("val") != "float_list_val":
        return "prior_corrupt"
    stored = floats(vector.float_list_val)
    catalog = catalogs.prior(view.name, version)
    published = catalogs.published(view.name, version, snapshot, row.number(PRIOR_ROW), stored)
    if catalog is None or published is None:
        return "prior_catalog_unknown"
    size = len(catalog.advertisers)
    log_probs = whole(row, stored, size)
    # exp and a sum of the whole vector: microseconds, against serving noise with conviction
    if log_probs is None or len(log_probs) != size or not abs(float(np.exp(log_probs).sum()) - 1.0) < _SUMS_TO_ONE:
        return "prior_corrupt"
    interests = None
    message = row.values.get(INTEREST_LOG_PROBS)
    if message is not None and message.WhichOneof("val") == "float_list_val":
        interests = floats(message.float_list_val)
        if len(interests) != len(catalog.interests):
            return "prior_corrupt"
    return Prior(
        view.name,
        log_probs,
        version,
        snapshot,
        published.mean,
        catalog.advertisers,
        published.publication,
        interests,
        catalog.interests,
    )


def whole(row: ViewRow, stored: Matrix, size: int) -> Matrix | None:
    """The whole vector of a row that may hold only its likeliest advertisers (`ranking.frame.gather.PriorFiles.row`).

    None when the two parts do not fit each other.
    """
    top, tail = row.values.get(TOP_INDEX), row.number(TAIL_LOG_MASS)
    if top is None:
        return stored
    places = np.array(top.int64_list_val.val, dtype=np.int64)
    if tail is None or len(places) != len(stored) or not 0 < len(stored) < size:
        return None
    if places.min() < 0 or places.max() >= size:
        return None
    full = np.full(size, np.float32(tail) - np.log(size - len(stored)), np.float32)
    full[places] = np.maximum(stored, np.nextafter(full[0], np.float32(np.inf)))
    return full


def prior_columns(prior: Prior, advertisers: Int, categories: Int, now_us: int) -> dict[str, Matrix]:
    """The derived features of `ranking.frame.columns.PriorColumns`, by place of advertiser and category."""
    listed = advertisers >= 0
    at = np.where(listed, advertisers, 0)
    log_prob = prior.log_probs[at]
    better = len(prior.log_probs) - np.searchsorted(np.sort(prior.log_probs), log_prob, side="right")
    rank = (better + 1).astype(np.float32)
    log_ratio = (log_prob - np.log(np.maximum(prior.means[at], _TINY))).astype(np.float32)
    nan = np.float32(np.nan)
    return {
        "log_prob": np.where(listed, log_prob, nan),
        "log_ratio": np.where(listed, log_ratio, nan),
        "rank": np.where(listed, rank, nan),
        "top20": np.where(listed, (rank <= TOP).astype(np.float32), nan),
        "interest_log_prob": _at(prior.interests, categories),
        "age_days": np.full(len(at), prior.age_days(now_us), dtype=np.float32),
        "missing": (~listed).astype(np.float32),
    }


def _at(values: Matrix | None, places: Int) -> Matrix:
    """``values[places]``, NaN for −1 and where there are no values."""
    if values is None or not len(values):
        return np.full(len(places), np.nan, dtype=np.float32)
    return np.where(places >= 0, values[np.maximum(places, 0)], np.float32(np.nan))


def no_prior_columns(count: int) -> dict[str, Matrix]:
    """What the frame holds where a user has no prior."""
    nan = np.full(count, np.nan, dtype=np.float32)
    return dict.fromkeys(DERIVED[:-1], nan) | {"missing": np.ones(count, dtype=np.float32)}
