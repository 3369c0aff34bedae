"""A frame's rows where they lie, in memory or in Parquet: some columns of some rows, block by block.

What trains and scores reads the columns that it needs, when it needs them, and holds no copy of the frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from advprior.store.arrays import Int
from ranking.frame.read import FRAME_FILE, FRAME_FIX, column_names, load_rows

BLOCK = 1 << 17  # rows


class FrameSource(Protocol):
    """Rows of a frame."""

    @property
    def names(self) -> list[str]:
        """Columns."""
        ...

    def read(self, columns: Sequence[str]) -> pd.DataFrame:
        """Some columns of all rows."""
        ...

    def blocks(self, columns: Sequence[str], rows: Int) -> Iterator[pd.DataFrame]:
        """Some columns of some rows, given by their places, rising: one block after the other, in their order."""
        ...

    def lengths(self, rows: Int) -> list[int]:
        """How many of the rows each of these blocks holds."""
        ...


@dataclass(frozen=True, eq=False)
class InMemory:
    """The rows of a frame made in Python."""

    frame: pd.DataFrame

    @property
    def names(self) -> list[str]:
        return [str(name) for name in self.frame.columns]

    def read(self, columns: Sequence[str]) -> pd.DataFrame:
        return self.frame[list(columns)]

    def blocks(self, columns: Sequence[str], rows: Int) -> Iterator[pd.DataFrame]:
        for start in range(0, len(rows), BLOCK):
            part = rows[start : start + BLOCK]
            whole = part[-1] - part[0] == len(part) - 1
            chosen = self.frame.iloc[part[0] : part[-1] + 1] if whole else self.frame.iloc[part]
            yield chosen[list(columns)]

    def lengths(self, rows: Int) -> list[int]:
        return [min(BLOCK, len(rows) - start) for start in range(0, len(rows), BLOCK)]


@dataclass(frozen=True, eq=False)
class InFiles:
    """The rows of some Parquet files of the same columns, one file after the other.

    Parameters
    ----------
    files : sequence of Path
    """

    files: Sequence[Path]

    @property
    def names(self) -> list[str]:
        import pyarrow.parquet as pq

        return list(pq.read_schema(self.files[0]).names) if self.files else []

    def read(self, columns: Sequence[str]) -> pd.DataFrame:
        return together(self, columns, np.arange(self._groups[-1][-1] if self._groups else 0))

    def blocks(self, columns: Sequence[str], rows: Int) -> Iterator[pd.DataFrame]:
        import pyarrow.parquet as pq

        for path, groups in groupby(self._groups, key=lambda group: group[0]):
            with pq.ParquetFile(path) as file:
                for _, group, first, stop in groups:
                    low, high = np.searchsorted(rows, [first, stop])
                    if low < high:
                        table = file.read_row_group(group, columns=list(columns))
                        places = rows[low:high] - first
                        chosen = table if len(places) == len(table) else table.take(places)
                        yield chosen.select(list(columns)).to_pandas()

    def lengths(self, rows: Int) -> list[int]:
        edges = np.searchsorted(rows, [0, *(stop for *_, stop in self._groups)])
        return [int(count) for count in np.diff(edges) if count]

    @cached_property
    def _groups(self) -> list[tuple[Path, int, int, int]]:
        """File, number, first row and end of each row group."""
        import pyarrow.parquet as pq

        groups, first = [], 0
        for path in self.files:
            metadata = pq.read_metadata(path)
            for group in range(metadata.num_row_groups):
                stop = first + metadata.row_group(group).num_rows
                groups.append((path, group, first, stop))
                first = stop
        return groups


@dataclass(frozen=True, eq=False)
class InParquet:
    """The rows of a finished frame.

    Parameters
    ----------
    folder : Path
        What ``advprior rank frame`` wrote, of this format or of the first.
    """

    folder: Path

    @property
    def names(self) -> list[str]:
        return column_names(self.folder)

    def read(self, columns: Sequence[str]) -> pd.DataFrame:
        return load_rows(self.folder, columns)

    def blocks(self, columns: Sequence[str], rows: Int) -> Iterator[pd.DataFrame]:
        return self._files.blocks(columns, rows)

    def lengths(self, rows: Int) -> list[int]:
        return self._files.lengths(rows)

    @cached_property
    def _files(self) -> InFiles:
        return InFiles(parts(self.folder))


@dataclass(frozen=True, eq=False)
class SomeRows:
    """Some rows of a frame, as if they were all of it.

    Parameters
    ----------
    source : FrameSource
    places : int array [rows]
        Rising.

    Examples
    --------
    >>> some = SomeRows(InMemory(pd.DataFrame({"a": [1, 2, 3, 4]})), np.array([0, 2, 3]))
    >>> len(some), some.read(["a"])["a"].tolist(), [block["a"].tolist() for block in some.blocks(["a"], np.array([1]))]
    (3, [1, 3, 4], [[3]])
    """

    source: FrameSource
    places: Int

    @classmethod
    def all_of(cls, frame: pd.DataFrame) -> SomeRows:
        """Every row of a table in memory."""
        return cls(InMemory(frame), np.arange(len(frame)))

    def __len__(self) -> int:
        return len(self.places)

    @property
    def names(self) -> list[str]:
        return self.source.names

    def read(self, columns: Sequence[str]) -> pd.DataFrame:
        return together(self.source, columns, self.places)

    def blocks(self, columns: Sequence[str], rows: Int) -> Iterator[pd.DataFrame]:
        return self.source.blocks(columns, self.places[rows])

    def lengths(self, rows: Int) -> list[int]:
        return self.source.lengths(self.places[rows])


def together(source: FrameSource, columns: Sequence[str], rows: Int) -> pd.DataFrame:
    """Some columns of some rows as one; a block may lack categories that another has, or have no value in a column."""
    import pyarrow as pa

    blocks = list(source.blocks(columns, rows)) or [source.read(columns).iloc[:0]]
    if len(blocks) == 1:
        return blocks[0].reset_index(drop=True)
    tables = [pa.Table.from_pandas(block, preserve_index=False) for block in blocks]
    del blocks
    whole: pd.DataFrame = pa.concat_tables(tables, promote_options="permissive").unify_dictionaries().to_pandas()
    return whole


def parts(folder: Path) -> list[Path]:
    """Files of a frame, in the order of its rows.

    Raises
    ------
    AdvpriorError
        ``DAT001`` when it is missing, ``DAT002`` when it cannot be read.
    """
    from advprior.store.tables import read_parquet

    path = Path(folder) / FRAME_FILE
    read_parquet(path, columns=[], fix=FRAME_FIX)
    return sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
