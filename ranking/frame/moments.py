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

from advprior.store.arrays import Int

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
    moments: set[int] = set()
    for place, name in enumerate(dict.fromkeys(names)):
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
