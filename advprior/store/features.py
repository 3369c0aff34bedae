"""What a feature of a frame is, as data: its name, its group, where it comes from, and what it holds.

The frame's manifest lists every feature, arms choose among them by group or by name, a ranker keeps the list that it
was trained on, and the service reads exactly that list. So nobody has to read a meaning out of a column's name.
Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from advprior.store.contract import CLUSTER, PRIOR_VIEW_PREFIX, USER_HISTORY_VIEW

#: Sources that are no Feast view: columns of the request, and what the time of an impression tells by itself.
REQUEST_SOURCE = "impressions"
CLOCK_SOURCE = "clock"

Dtype = Literal["float32", "category"]


@dataclass(frozen=True)
class Feature:
    """One feature column of a frame.

    Parameters
    ----------
    name : str
        Column of the frame.
    group : str
        What arms choose by: ``profile``, ``activity``, ``ad``, ``context``, ``history``, ``department``, ``cluster``,
        the published name of a prior such as ``prior_text_pair``, or the name of a user's own feature view.
    source : str
        Feast feature view that it is read or derived from; ``impressions`` for context that comes with the request,
        ``clock`` for what the time of the impression tells.
    dtype : "float32" or "category"
        Number or text.

    Examples
    --------
    >>> rank = Feature("prior_text_pair_rank", "prior_text_pair", "prior_text_pair")
    >>> rank.predictor, rank.quantity
    ('text_pair', 'rank')
    >>> Feature("ad_quality__score", "ad_quality", "ad_quality").predictor is None
    True
    """

    name: str
    group: str
    source: str
    dtype: Dtype = "float32"

    @property
    def predictor(self) -> str | None:
        """Whose prior it is; None for a feature of no prior."""
        return self.source.removeprefix(PRIOR_VIEW_PREFIX) if self.source.startswith(PRIOR_VIEW_PREFIX) else None

    @property
    def in_baseline(self) -> bool:
        """Whether every arm has it: all but priors and the counts by semantic cluster, which arms add by name."""
        return self.predictor is None and (self.group, self.source) != (CLUSTER, USER_HISTORY_VIEW)

    @property
    def quantity(self) -> str:
        """What it says, without the name of its group: ``rank``, ``log_prob``, ``entropy`` of a prior."""
        return self.name.removeprefix(f"{self.group}_")

    @property
    def is_text(self) -> bool:
        """Whether it holds text."""
        return self.dtype == "category"


def features_to_json(features: Iterable[Feature]) -> list[dict[str, str]]:
    """JSON form, as kept in manifests.

    >>> features_to_json([Feature("ad_rate", "ad", "ad_stats")])
    [{'name': 'ad_rate', 'group': 'ad', 'source': 'ad_stats', 'dtype': 'float32'}]
    """
    return [asdict(feature) for feature in features]


def features_from_json(data: Sequence[Mapping[str, Any]]) -> list[Feature]:
    """Read what `features_to_json` wrote.

    Raises
    ------
    ValueError
        When the data is no such list.

    Examples
    --------
    >>> features_from_json(features_to_json([Feature("ad_rate", "ad", "ad_stats")]))
    [Feature(name='ad_rate', group='ad', source='ad_stats', dtype='float32')]
    """
    if not isinstance(data, Sequence) or isinstance(data, str):
        raise ValueError("features are not a list")
    try:
        return [Feature(**entry) for entry in data]
    except TypeError as error:
        raise ValueError(f"a feature is not (name, group, source, dtype): {error}") from error


def groups_of(features: Iterable[Feature]) -> dict[str, list[Feature]]:
    """Features by group, in the order in which groups first occur."""
    groups: dict[str, list[Feature]] = {}
    for feature in features:
        groups.setdefault(feature.group, []).append(feature)
    return groups
