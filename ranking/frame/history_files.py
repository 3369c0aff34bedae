"""The files of a user's own counts: sorted arrays of each level, appended to, beside the catalog of their ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from advprior.store.arrays import Int
from advprior.store.runs import write_json
from ranking.frame.appended import AppendedArray
from ranking.frame.numbering import HISTORY_IDS, HistoryIds
from ranking.frame.standing import StandingHistory, StandingRows
from ranking.frame.streams import Stream


class LevelFiles:
    """The sorted arrays of one level of a stream, appended to.

    Parameters
    ----------
    stream : Stream
    level : str
    folder : Path
    """

    def __init__(self, stream: Stream, level: str, folder: Path) -> None:
        self.stream, self.level, self.numbering = stream, level, stream.levels[level]
        keys, values = stream.files(level)
        self._keys = AppendedArray(folder / keys, np.dtype(np.int64))
        self._values = AppendedArray(folder / values, np.dtype(np.float32), len(stream.quantities))

    def append(self, keys: Int, values: Any) -> None:
        """Counts of further rows, ascending."""
        self._keys.append(keys)
        self._values.append(values)

    def take_over(self, rows: StandingRows) -> None:
        """Append the counts of published rows."""
        for keys, values in rows.counts(self.stream.files(self.level), self.numbering):
            self.append(keys, values)

    def append_rows(self, folder: Path, start: int, stop: int) -> None:
        """Append the counts of other files whose keys are in [start, stop)."""
        keys, values = (np.load(folder / name, mmap_mode="r") for name in self.stream.files(self.level))
        rows = slice(*np.searchsorted(keys, [start, stop]))
        self.append(keys[rows], values[rows])

    def close(self) -> None:
        """Say how many counts there are."""
        self._keys.close()
        self._values.close()


@contextmanager
def level_files(streams: Iterable[Stream], ids: HistoryIds, folder: Path) -> Iterator[list[LevelFiles]]:
    """Empty files of every level of some streams, closed at the end."""
    with ExitStack() as stack:
        files = [LevelFiles(stream, level, folder) for stream in streams for level in stream.levels_in(ids.sizes)]
        for of_level in files:
            stack.callback(of_level.close)
        yield files


def write_catalog(ids: HistoryIds, streams: Sequence[Stream], folder: Path) -> str:
    """Write the catalog of ids that lies beside the files; its version."""
    catalog = ids.to_json(streams)
    write_json(folder / HISTORY_IDS, catalog)
    return str(catalog["version"])


def standing_parts(
    standing: StandingHistory, version: str, streams: Sequence[Stream], files: Sequence[LevelFiles]
) -> Iterator[Any]:
    """Rows of the snapshots that stand, as Arrow tables; their counts go into the files."""
    for table, rows in standing.parts(version, streams):
        for of_level in files:
            of_level.take_over(rows)
        yield table
