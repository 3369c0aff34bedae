"""A user's own counts: their history row turned into the ranker's features, by the catalog that numbers it.

The counterpart of `ranking.frame.gather.gather_history`; a test holds both to equal numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from advprior.store.arrays import Int
from advprior.store.contract import CATALOG_VERSION, SNAPSHOT
from advprior.store.times import DAY_US
from ranking.frame.streams import STREAMS, Stream
from ranking.service.catalogs import Catalogs, HistoryCatalog
from ranking.service.rows import Row, ViewRow, floats

#: Between the ids of two lists that are searched as one: more than any id, which is an int32.
_APART = 2**32


def history_values(
    row: ViewRow, lists: Sequence[tuple[Stream, str]], wanted: Int, now_us: int
) -> npt.NDArray[np.float32]:
    """`ranking.frame.gather.gather_history` on one user's own lists, all of one width at once.

    Counts (0 where nothing is there), days since the last (NaN then); all NaN where the ad has no id at this level.
    Recency counts to now, not to the snapshot.

    Parameters
    ----------
    lists : sequence of (Stream, level)
        Of streams with equally many quantities.
    wanted : int64 [lists, candidates]
        Id of each candidate in each list; −1: none.

    Returns
    -------
    float32 [lists, candidates, quantities]
    """
    width = len(lists[0][0].quantities)
    keys, stored = [], []
    for number, (stream, level) in enumerate(lists):
        ids_name, values_name = stream.online(level)
        ids_message, values_message = row.values.get(ids_name), row.values.get(values_name)
        if ids_message is not None and values_message is not None and len(ids_message.int32_list_val.val):
            keys.append(np.array(ids_message.int32_list_val.val, dtype=np.int64) + number * _APART)
            stored.append(floats(values_message.float_list_val).reshape(-1, width))
    nothing = np.zeros((1, width), dtype=np.float32)
    nothing[0, -1] = np.nan
    # one search for all lists: their ids stand apart, so that the whole is ascending
    held = np.concatenate([*keys, [len(lists) * _APART]])
    sought = wanted + np.arange(len(lists))[:, None] * _APART
    at = np.searchsorted(held, sought)
    at[held[at] != sought] = len(held) - 1
    values: npt.NDArray[np.float32] = np.concatenate([*stored, nothing])[at]
    since = row.time_us(SNAPSHOT)
    # float64 of both, then float32: the order of the frame
    values[..., -1] += np.nan if since is None else np.float64(now_us - since) / DAY_US
    values[wanted < 0] = np.nan
    return values


def history_fits(row: ViewRow) -> bool:
    """Whether each id of a history has its values."""
    for stream in STREAMS:
        for level in stream.levels:
            ids, values = (row.values.get(name) for name in stream.online(level))
            count = 0 if ids is None else len(ids.int32_list_val.val)
            if count and (values is None or len(values.float_list_val.val) != count * len(stream.quantities)):
                return False
    return True


def history_catalog(row: Row, catalogs: Catalogs) -> HistoryCatalog | None:
    """The catalog that a user's own counts are numbered by; None when it is not published here."""
    version = row.text(CATALOG_VERSION) if isinstance(row, ViewRow) else None
    return None if version is None else catalogs.histories.get(version)
