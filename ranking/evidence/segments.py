"""Where a prior should matter: test rows by what else is known of the user and the advertiser.

The frame says exactly which impressions are of an advertiser or an ad new to the user. The rest is read off its
features, as of their snapshots and without labels: an absent feature, or one that splits nothing, gives no segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from advprior.store.arrays import Bool
from advprior.store.contract import ADVERTISER_ID, PROFILE_PREFIX, TIMESTAMP, USER_ID

if TYPE_CHECKING:
    import pandas as pd

SEGMENT_PREFIX = "segment_"
OCCASIONS, EVENTS = "activity_occasions_all", "ad_advertiser_events_all"
FEW_EVENTS = 0.25  # the share of users who count as having few events, as nearly as equal counts allow
LARGEST = 0.5  # a segment of more users than that does not tell few events from many
HEAD = 0.8  # the share of events that the advertisers outside the tail have at least


def segment_columns(names: Sequence[str]) -> list[str]:
    """Columns of a frame that `segments_of` reads.

    >>> segment_columns(["user_id", "label", "segment_never_ad", "profile_age", "ad_rate"])
    ['user_id', 'segment_never_ad', 'profile_age']
    """
    fixed = (USER_ID, ADVERTISER_ID, TIMESTAMP, OCCASIONS, EVENTS)
    return [name for name in names if name in fixed or name.startswith((SEGMENT_PREFIX, PROFILE_PREFIX))]


def segments_of(rows: pd.DataFrame) -> dict[str, Bool]:
    """Segments of a split's rows.

    Parameters
    ----------
    rows : DataFrame
        Of a frame, with its features.

    Returns
    -------
    dict of str to bool array [rows]
        The frame's own ``segment_…`` columns, prefix removed, and: ``few_events``, the users with the fewest events
        when first seen here, about a quarter of them; ``tail_advertiser``, advertisers outside those with four fifths
        of the events by then; ``profile_known`` and ``profile_unknown``. Users, or advertisers, with equal counts are
        never torn apart: where that leaves no quarter to speak of, the segment is left out.
    """
    own = {
        str(c).removeprefix(SEGMENT_PREFIX): rows[c].to_numpy(bool) for c in rows if str(c).startswith(SEGMENT_PREFIX)
    }
    derived: dict[str, Bool] = {}
    if OCCASIONS in rows:
        value, place = _first_seen(rows, USER_ID, OCCASIONS)
        derived["few_events"] = fewest(value)[place]
    if EVENTS in rows:
        value, place = _first_seen(rows, ADVERTISER_ID, EVENTS)
        derived["tail_advertiser"] = in_tail(value)[place]
    profile = [c for c in rows if str(c).startswith(PROFILE_PREFIX)]
    if profile:
        has_profile = rows[profile].notna().any(axis=1).to_numpy(bool)
        derived |= {"profile_known": has_profile, "profile_unknown": ~has_profile}
    return own | {name: mask for name, mask in derived.items() if mask.any() and not mask.all()}


def fewest(count: NDArray[np.float64]) -> Bool:
    """Which counts are the smallest: about `FEW_EVENTS` of them, none where equal ones leave no such part.

    >>> import numpy as np
    >>> fewest(np.array([0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0])).tolist()[:4]
    [True, True, True, False]
    >>> fewest(np.array([1.0, 1.0, 1.0, 1.0, 2.0])).any()  # the smallest are four of five
    np.False_
    """
    edge = np.quantile(count, FEW_EVENTS)
    parts = [part for part in (count <= edge, count < edge) if 0 < part.mean() <= LARGEST]
    return min(parts, key=lambda part: abs(part.mean() - FEW_EVENTS), default=np.zeros(len(count), dtype=bool))


def in_tail(count: NDArray[np.float64]) -> Bool:
    """Which counts are smaller than the largest ones that make up `HEAD` of their sum; equal counts stay together.

    >>> import numpy as np
    >>> in_tail(np.array([1.0, 80.0, 19.0])).tolist(), in_tail(np.array([2.0, 2.0, 2.0])).tolist()
    ([True, False, True], [False, False, False])
    """
    values, place = np.unique(-count, return_inverse=True)  # largest first
    sums = np.bincount(place, weights=count, minlength=len(values))
    tail: Bool = (np.cumsum(sums) - sums >= HEAD * count.sum())[place]
    return tail


def _first_seen(rows: pd.DataFrame, key: str, value: str) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """A feature at each key's earliest row, and the place of each row's key in it; missing is 0."""
    import pandas as pd

    place, _ = pd.factorize(rows[key].astype(str))
    order = np.argsort(rows[TIMESTAMP].to_numpy(), kind="stable")
    first = order[np.unique(place[order], return_index=True)[1]]
    return np.nan_to_num(rows[value].to_numpy(np.float64)[first]), place
