"""When what the store says of a key can change: so that one join serves every impression in between.

A row of a view is joined from its ``event_timestamp`` (and ``created_timestamp``) on, and until its time to live is
over. Between two such moments of a view's whole table, every time of one user, or ad, gets the same row. Snapshots are
days apart and impressions are not: an ad that is shown a thousand times a week is asked of once.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from advprior.store.arrays import Int
from advprior.store.contract import EVENT_TIMESTAMP
from advprior.store.times import micros

#: More moments than this are no snapshots: such a view is joined at the very time of each impression.
MOST = 5_000


def changes(view: Any) -> Int | None:
    """Microseconds from which what a view gives can be another, ascending; None where nobody can tell.

    Each moment stands with the microsecond after it, whichever side of an edge Feast counts it to.

    Parameters
    ----------
    view : feast.FeatureView
        Of a local Parquet file or folder; of any other source nothing is told.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if (local := _local_table(view)) is None:
        return None
    table, names = local
    moments: set[int] = set()
    for place, name in enumerate(names):
        of_column: set[int] = set()
        for batch in table.to_batches(columns=[name]):
            # whole microseconds, downwards: the one after each stands in the list as well
            times = pc.unique(batch[name]).drop_null().cast(pa.timestamp("us"), safe=False).cast(pa.int64())
            of_column.update(times.to_pylist())
            if len(of_column) > MOST:
                return None
        moments |= of_column
        if place == 0 and view.ttl:
            lives = view.ttl // timedelta(microseconds=1)
            moments |= {moment + lives for moment in of_column}
    return np.unique([edge for moment in moments for edge in (moment, moment + 1)]).astype(np.int64)


def available(view: Any, entities: pd.DataFrame) -> npt.NDArray[np.datetime64] | None:
    """When the row that a join gives each of some entity rows became available: its ``event_timestamp``.

    Parameters
    ----------
    view : feast.FeatureView
    entities : DataFrame
        The view's join keys, and ``event_timestamp``.

    Returns
    -------
    datetime64[us] array [entities] or None
        NaT where no row is joined; None where the view's table is not at hand, or its keys are not.
    """
    import pyarrow.compute as pc

    keys = sorted(column.name for column in view.entity_columns)
    local = _local_table(view)
    if local is None or not keys or not {*keys} <= {*entities.columns} or not {*keys} <= {*local[0].schema.names}:
        return None
    table, times = local
    asked = entities[keys].astype(dict.fromkeys(keys, str)).reset_index(drop=True)
    asked["at"] = _micros(entities[EVENT_TIMESTAMP])
    first = pc.field(keys[0]).cast("string").isin(asked[keys[0]].unique().tolist())
    rows = table.to_table(columns=[*keys, *times], filter=first).to_pandas()
    rows = rows.astype(dict.fromkeys(keys, str)).dropna(subset=times)
    moments = np.column_stack([_micros(rows[name]) for name in times])
    rows = rows[keys].assign(event=moments[:, 0], at=moments.max(axis=1)).sort_values("at", kind="stable")
    # of the rows that are there by then, the newest is joined, whichever was written last
    rows["event"] = rows.groupby(keys)["event"].cummax()
    asked = asked.assign(place=np.arange(len(asked))).sort_values("at", kind="stable")
    joined = pd.merge_asof(asked, rows, on="at", by=keys).sort_values("place")
    event, at = joined["event"].to_numpy(np.float64), joined["at"].to_numpy(np.int64)
    gone = np.isnan(event)
    event = np.where(gone, 0.0, event)
    if view.ttl:
        gone |= event < at - view.ttl // timedelta(microseconds=1)
    moments_of: npt.NDArray[np.datetime64] = event.astype(np.int64).astype("datetime64[us]")
    moments_of[gone] = np.datetime64("NaT")
    return moments_of


def _micros(times: pd.Series[Any]) -> Int:
    return micros(pd.to_datetime(times, utc=True))


def _local_table(view: Any) -> tuple[Any, list[str]] | None:
    """A view's Parquet as a dataset, and its columns of time, the event's first; None where it is not at hand."""
    import pyarrow as pa
    import pyarrow.dataset as ds

    source = view.batch_source
    path = Path(str(getattr(source, "path", "") or "").removeprefix("file://"))
    if not path.name or not path.exists():
        return None
    try:
        table = ds.dataset(path, format="parquet")
    except (pa.ArrowInvalid, OSError):  # a table of another format
        return None
    original = {new: old for old, new in (source.field_mapping or {}).items()}
    names = [original.get(name, name) for name in (source.timestamp_field, source.created_timestamp_column) if name]
    if not set(names) <= set(table.schema.names):
        return None
    if any(not pa.types.is_timestamp(table.schema.field(name).type) for name in names):
        return None
    return table, list(dict.fromkeys(names))
