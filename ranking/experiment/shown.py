"""Features of what was shown, in the exposure log and back: what the ranker really read online, to measure drift on.

A block has one row a slot. A feature that is the same in all slots, as a user's are, is written once; categories are
written as the text that they stand for, so that they compare with a training frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from advprior.store.contract import AD_ID, TIMESTAMP, USER_ID

#: Keys of an exposure's record: the block, and when the rows behind it became available, microseconds by view.
FEATURES, AS_OF = "features", "as_of"
#: Columns of `to_frame`.
EXPOSURE = "exposure"


def to_record(
    block: npt.NDArray[np.float32], names: Sequence[str], categories: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """A slate's features for the log: a value, or a list by slot, of each.

    Parameters
    ----------
    block : float32 [slots, features]
        As the ranker takes it: NaN for what is missing, a place among its categories for text.

    Examples
    --------
    >>> block = np.array([[1.0, 0.5, 1.0], [1.0, np.nan, 0.0]], dtype=np.float32)
    >>> to_record(block, ["a", "b", "c"], {"c": ["front", "back"]})
    {'a': 1.0, 'b': [0.5, None], 'c': ['back', 'front']}
    """
    record: dict[str, Any] = {}
    for name, column in zip(names, block.T.tolist(), strict=True):
        values = [_value(v, categories.get(name)) for v in column]
        record[name] = values[0] if all(v == values[0] for v in values) else values
    return record


def _value(value: float, texts: Sequence[str] | None) -> Any:
    if not np.isfinite(value):
        return None
    return float(f"{value:.7g}") if texts is None else texts[int(value)]  # a float32 has no more digits


def to_frame(exposures: Iterable[Mapping[str, Any]], ranker: str) -> pd.DataFrame:
    """Rows of what was shown, a slot each: exposure, user_id, ad_id, timestamp and the ranker's features.

    Parameters
    ----------
    exposures : records of the exposure log
        Those without features, and those of another ranker, are passed over.
    ranker : str
        Digest of its manifest.
    """
    columns: dict[str, list[Any]] = {EXPOSURE: [], USER_ID: [], AD_ID: [], TIMESTAMP: []}
    for record in exposures:
        if record.get("ranker") == ranker and record.get(FEATURES):
            keys = {EXPOSURE: record.get("exposure_id"), USER_ID: record["user_id"], TIMESTAMP: record["time"]}
            own = {**keys, AD_ID: [slot[0] for slot in record["slots"]], **record[FEATURES]}
            for name, value in own.items():
                columns.setdefault(name, []).extend(
                    value if isinstance(value, list) else [value] * len(record["slots"])
                )
    whole = pd.DataFrame({name: _column(values) for name, values in columns.items()})
    whole[TIMESTAMP] = pd.to_datetime(whole[TIMESTAMP], utc=True, format="ISO8601")
    return whole


def _column(values: list[Any]) -> npt.NDArray[Any]:
    """Text where there is some, else numbers with NaN for what is missing."""
    return np.array(values, dtype=object if any(isinstance(v, str) for v in values) else np.float64)
