"""DuckDB's errors: a full disk is one as anywhere else, whatever lacks memory stays DuckDB's own."""

from __future__ import annotations

import errno
from pathlib import Path

import duckdb
import pytest

from advprior.store import duck

SORT = "COPY (SELECT hash(range) AS a, CAST(a AS VARCHAR) AS b FROM range(500000) ORDER BY a) TO '{}' (FORMAT parquet)"


def sort(folder: Path, *settings: str) -> None:
    with duck.connected(folder, "20MB") as connection:
        for setting in ("threads = 1", *settings):
            connection.execute(f"SET {setting}")
        connection.execute(SORT.format(folder / "sorted.parquet"))


def test_a_full_disk_is_the_system_s_refusal(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as refused:
        sort(tmp_path, "max_temp_directory_size = '1MB'")  # of a disk: nine tenths of what is free
    assert refused.value.errno == errno.ENOSPC
    assert refused.value.filename == str(tmp_path)


def test_too_little_memory_is_not_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(duckdb.OutOfMemoryException):
        sort(tmp_path, "temp_directory = ''")
