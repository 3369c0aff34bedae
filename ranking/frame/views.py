"""Which views a frame joins, which of their features reach a ranker, and what these are called in the frame."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from advprior.store.contract import (
    AD_STATS_VIEW,
    CATALOG_VERSION,
    HISTORY_ROW,
    MODEL_CUTOFF,
    PRIOR_ROW,
    PRIOR_VIEW_PREFIX,
    PROFILE_PREFIX,
    SNAPSHOT,
    USER_HISTORY_VIEW,
    USER_PROFILE_VIEW,
)
from advprior.store.features import Dtype, Feature

BASELINE_VIEWS = (USER_PROFILE_VIEW, USER_HISTORY_VIEW, AD_STATS_VIEW)
#: Our own views: the group of their features, and how the names of their columns begin.
_OURS = {
    USER_PROFILE_VIEW: ("profile", PROFILE_PREFIX),
    USER_HISTORY_VIEW: ("activity", "activity_"),
    AD_STATS_VIEW: ("ad", "ad_"),
}
#: In our views and priors: of use to a service, but noise to a ranker that sees the ad's own log-probability.
NOT_JOINED = (CATALOG_VERSION, "top1_index", "top1_log_prob")
#: In our views and priors: followed or checked after the join.
POINTERS = (HISTORY_ROW, PRIOR_ROW, SNAPSHOT, MODEL_CUTOFF)


def view_folder(repo: Path, view: str) -> Path:
    """Published folder of a view."""
    return Path(repo) / "data" / view


def is_ours(view: str) -> bool:
    """Whether a view is published by advprior: the baseline's and priors.

    >>> is_ours("ad_stats"), is_ours("prior_llm"), is_ours("ad_quality")
    (True, True, False)
    """
    return view in _OURS or view.startswith(PRIOR_VIEW_PREFIX)


def is_pointer(view: str, feature: str) -> bool:
    """Whether a joined column is no feature of its own but leads to some, or is checked.

    >>> is_pointer("user_history", "snapshot"), is_pointer("ad_quality", "snapshot")
    (True, False)
    """
    return is_ours(view) and feature in POINTERS


def is_joined(view: str, feature: str) -> bool:
    """Whether the join takes a scalar of a view.

    >>> is_joined("prior_llm", "top1_index"), is_joined("prior_llm", "entropy"), is_joined("mine", "top1_index")
    (False, True, True)
    """
    return not (is_ours(view) and feature in NOT_JOINED)


def column_name(view: str, feature: str) -> str:
    """Name of a joined feature in the frame: ours keep their own, any other stands behind its view's.

    >>> column_name("ad_stats", "ad_rate_4w"), column_name("prior_llm", "entropy"), column_name("ad_quality", "score")
    ('ad_rate_4w', 'prior_llm_entropy', 'ad_quality__score')
    """
    if view.startswith(PRIOR_VIEW_PREFIX):
        return f"{view}_{feature}"
    ours = view in _OURS and feature.startswith(_OURS[view][1])
    return feature if ours else f"{view}__{feature}"


def group_of_view(view: str) -> str:
    """Group of the features joined from a view: a prior and a user's own view are groups of their own.

    >>> group_of_view("ad_stats"), group_of_view("prior_text_pair"), group_of_view("ad_quality")
    ('ad', 'prior_text_pair', 'ad_quality')
    """
    return _OURS[view][0] if view in _OURS else view


def stale_group(predictor: str, weeks: int) -> str:
    """Group of what a predictor said some weeks before.

    >>> stale_group("llm", 4)
    'prior_stale4w_llm'
    """
    return f"{PRIOR_VIEW_PREFIX}stale{weeks}w_{predictor}"


class Columns:
    """Feature columns of a frame as they come in, and what each of them is.

    Attributes
    ----------
    arrays : dict of str to array or Series
        By the column's name, in the frame's order; float32 or categorical.
    features : list of Feature
        In the same order.
    """

    def __init__(self) -> None:
        self.arrays: dict[str, Any] = {}
        self.features: list[Feature] = []

    def add(self, group: str, source: str, columns: Mapping[str, Any]) -> None:
        """Take the columns of one group that come from one source."""
        for name, array in columns.items():
            dtype: Dtype = "category" if str(array.dtype) == "category" else "float32"
            self.features.append(Feature(name, group, source, dtype))
            self.arrays[name] = array

    def names(self) -> Iterable[str]:
        """Names of the columns, in order."""
        return self.arrays.keys()
