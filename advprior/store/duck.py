"""DuckDB over canonical tables: what is sorted, grouped or joined of a whole log is so on disk, not in memory."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from advprior.store.tables import TABLES_FIX, read_parquet

MEMORY = "1500MB"  # beyond it DuckDB spills: 1.4M rows × 60 columns take 1.4 times as long in 1 GB as in 3
#: For keys and times, which are few columns: ten million rows are sorted in 14 CPU-seconds with this or with twice it.
FEW_COLUMNS = "750MB"
#: In DuckDB's errors on a full disk: while it writes a table, and while it spills, which ends at 90 % of what is free.
_FULL = ("No space left on device", "max_temp_directory_size")


def settle(connection: Any, spill: Path | str, memory: str = MEMORY) -> None:
    """What a connection may take, and where it spills: by default that is the working directory.

    Parameters
    ----------
    connection : duckdb.DuckDBPyConnection
    spill : Path or str
    memory : str
        As DuckDB writes it; the process takes some 0.2 GB beside.
    """
    connection.execute(f"SET temp_directory={literal(str(spill))}")
    connection.execute(f"SET memory_limit='{memory}'")
    # no order is promised where none is asked for: less memory
    connection.execute("SET preserve_insertion_order=false")


@contextmanager
def connected(spill: Path, memory: str = MEMORY) -> Iterator[Any]:
    """A DuckDB connection of one's own, closed at the end.

    Parameters
    ----------
    spill : Path
        An existing folder.
    memory : str
        See `settle`.

    Raises
    ------
    OSError
        ``ENOSPC`` on a full disk, as anything else that writes: DuckDB's own errors are none.
    """
    import duckdb

    try:
        with duckdb.connect() as connection:
            settle(connection, spill, memory)
            yield connection
    except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
        if not any(text in str(error) for text in _FULL):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(spill)) from error


def literal(text: str) -> str:
    """A text as SQL has it.

    >>> literal("it's")
    "'it''s'"
    """
    return "'" + text.replace("'", "''") + "'"


def parquet(path: Path) -> str:
    """A Parquet file, or a folder of parts, as a table of SQL.

    A folder may have any name: what stands for many files in a pattern stands for itself here.

    >>> parquet(Path("runs/a[1]/events.parquet"))
    "read_parquet('runs/a[[]1]/events.parquet')"
    """
    text = "".join(f"[{c}]" if c in "*?[" else c for c in str(path))
    if path.is_dir():
        return f"read_parquet({literal(text + '/**/*.parquet')}, union_by_name=true, hive_partitioning=true)"
    return f"read_parquet({literal(text)})"


def require(path: Path) -> str:
    """As `parquet`, of a file that must be there and be Parquet.

    Raises
    ------
    AdvpriorError
        ``DAT001`` when it is missing, ``DAT002`` when it cannot be read.
    """
    read_parquet(path, columns=[], fix=TABLES_FIX)
    return parquet(path)
