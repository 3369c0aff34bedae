"""A user's own counts: their history row turned into the ranker's features, by the catalog that numbers it.

The counterpart of `ranking.frame.gather.gather_history`; a test holds both to equal numbers.
"""

from __future__ import annotations

import numpy as np

from advprior.store.arrays import Int
from advprior.store.contract import CATALOG_VERSION, SNAPSHOT
from advprior.store.times import DAY_US
from ranking.frame.streams import STREAMS, Stream
from ranking.service.catalogs import Catalogs, HistoryCatalog
from ranking.service.rows import Matrix, Row, ViewRow, floats


def history_values(row: ViewRow, stream: Stream, level: str, wanted: Int, now_us: int) -> Matrix:
    """`ranking.frame.gather.gather_history` on one user's own lists: float32 [candidates, values].

    Counts (0 where nothing is there), days since the last (NaN then); all NaN where the ad has no id at this level.
    Recency counts to now, not to the snapshot.
    """
    ids_name, values_name = stream.online(level)
    values = np.zeros((len(wanted), len(stream.quantities)), dtype=np.float32)
    values[:, -1] = np.nan
    ids_message, values_message = row.values.get(ids_name), row.values.get(values_name)
    if ids_message is not None and values_message is not None and len(ids_message.int32_list_val.val):
        ids = np.array(ids_message.int32_list_val.val, dtype=np.int64)
        stored = floats(values_message.float_list_val).reshape(len(ids), len(stream.quantities))
        at = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
        hit = ids[at] == wanted
        values[hit] = stored[at[hit]]
    since = row.time_us(SNAPSHOT)
    # float64 of both, then float32: the order of the frame
    values[:, -1] += np.nan if since is None else np.float64(now_us - since) / DAY_US
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
