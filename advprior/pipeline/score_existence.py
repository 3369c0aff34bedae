"""No prior for a user before they exist: rows of a score run that no service could have asked for are taken out.

The arrays keep a place for every user and snapshot, which is what makes a stopped run go on; the table of rows says
which places hold a prior.
"""

from __future__ import annotations

from pathlib import Path

from advprior.pipeline.score_files import ROWS_FILE
from advprior.store.contract import SNAPSHOT, USER_ID


def keep_existing(folder: Path, tables: Path) -> dict[str, int]:
    """Take the rows of users who do not exist yet at their snapshot out of the table of rows.

    Parameters
    ----------
    folder : Path
        Of the score run, with its finished table.
    tables : Path
        The canonical tables that were scored.

    Returns
    -------
    dict
        ``rows`` that are left, and ``rows_before_user``: those taken out.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    from advprior.store.existence import load_users_exist_from
    from advprior.store.times import micros

    table = pq.read_table(folder / ROWS_FILE)
    users = pd.Index(table[USER_ID].to_pandas())
    ids = users.unique()
    exist_from = load_users_exist_from(tables, ids.tolist())
    exists = micros(table[SNAPSHOT].to_pandas()) >= exist_from[ids.get_indexer(users)]
    pq.write_table(table.filter(pa.array(exists)), folder / ROWS_FILE)
    return {"rows": int(exists.sum()), "rows_before_user": int((~exists).sum())}
