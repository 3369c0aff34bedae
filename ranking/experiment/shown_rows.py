"""Rows of what was shown, from a log of any length: one pass over it, a file a ranker, read back column by column.

A record with features is some ten kilobytes of JSON and twenty in memory; a day of a busy service has millions. So rows
go to disk as they are read, as a frame's are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from advprior.store.arrays import Int
from advprior.store.contract import AD_ID, TIMESTAMP, USER_ID
from advprior.store.errors import AdvpriorError
from advprior.store.times import moment_us
from ranking.experiment.shown import AS_OF, EXPOSURE, FEATURES
from ranking.frame.row_blocks import InFiles

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

#: Columns beside those of features: an exposure's number in the log, what its answer lacked, when its rows became
#: available (JSON: microseconds by view).
DEGRADED = "degraded"
_ROWS = 1 << 12  # of Python's objects, until they are arrays
_GROUP = 1 << 16  # rows of a row group
Categories = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Window:
    """Which exposures are read.

    Parameters
    ----------
    start, end : datetime, optional
        From then on, and up to then.
    limit : int, optional
        Only so many, the newest.
    """

    start: datetime | None = None
    end: datetime | None = None
    limit: int | None = None

    def holds(self, time: datetime) -> bool:
        """Whether a moment lies within."""
        return (self.start is None or time >= self.start) and (self.end is None or time < self.end)


@dataclass(frozen=True)
class ShownRows:
    """What one ranker showed.

    Attributes
    ----------
    rows : InFiles
        A row a slot, in the order of the log: exposure, user_id, ad_id, timestamp, degraded, as_of and the ranker's
        features; text as text, numbers as float64.
    exposures : int
        In the window.
    places : int array [n]
        Rows of the window's exposures, rising.
    ranker : str
        Digest of its manifest.
    """

    rows: InFiles
    exposures: int
    places: Int
    ranker: str

    def required(self, log: Path) -> ShownRows:
        """The same, which has a row.

        Raises
        ------
        AdvpriorError
            ``SRV021``.
        """
        if not len(self.places):
            raise AdvpriorError(
                "SRV021",
                "no exposure says what the ranker read",
                where=str(log),
                actual=f"none with features of ranker {self.ranker}",
                expected="a log of a service that runs with --log-features",
                fix="advprior rank serve … --exposures DIR --log-features 0.01",
            )
        return self


def spool(
    records: Iterable[Mapping[str, Any]], rankers: Mapping[str, Categories], folder: Path, window: Window | None = None
) -> dict[str, ShownRows]:
    """Rows of what each of some rankers showed, by digest; the log is gone through once.

    Parameters
    ----------
    records : records of the exposure log
        Those without features, those of other rankers and those outside the window are passed over.
    rankers : mapping of str to mapping of str to sequence of str
        Categories of each ranker's text features.
    folder : Path
        Existing; files of this call lie there for as long as the rows are read.
    window : Window, optional
    """
    window = window or Window()
    files = {digest: _File(folder / f"{digest}.parquet", categories) for digest, categories in rankers.items()}
    for record in records:
        file = files.get(str(record.get("ranker")))
        if file is not None and record.get(FEATURES):
            time = datetime.fromisoformat(str(record["time"]))
            if window.holds(time):
                file.add(record, moment_us(time))
    return {digest: file.close(digest, window.limit) for digest, file in files.items()}


@dataclass
class _File:
    """One ranker's rows on their way to disk."""

    path: Path
    categories: Categories
    times: list[int] = field(default_factory=list)  # of each exposure
    slots: list[int] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(default_factory=dict)
    tables: list[pa.Table] = field(default_factory=list)
    writer: pq.ParquetWriter | None = None

    def add(self, record: Mapping[str, Any], time: int) -> None:
        """One exposure."""
        count = len(record["slots"])
        own = {
            EXPOSURE: len(self.times),
            USER_ID: record["user_id"],
            AD_ID: [slot[0] for slot in record["slots"]],
            TIMESTAMP: time,
            DEGRADED: ", ".join(record.get("degraded", ())),
            AS_OF: json.dumps(record.get(AS_OF, {})),
            **record[FEATURES],
        }
        for name, value in own.items():
            self.columns.setdefault(name, []).extend(value if isinstance(value, list) else [value] * count)
        self.times.append(time)
        self.slots.append(count)
        if len(self.columns[EXPOSURE]) >= _ROWS:
            self._close_block()

    def _close_block(self) -> None:
        """Values become arrays; many of them a row group."""
        import pyarrow as pa

        if self.columns:
            self.tables.append(pa.table({name: self._array(name, values) for name, values in self.columns.items()}))
            self.columns = {}
        if sum(map(len, self.tables)) >= _GROUP:
            self._write()

    def _array(self, name: str, values: list[Any]) -> pa.Array:
        import pyarrow as pa

        if name == TIMESTAMP:
            return pa.array(values, pa.int64()).cast(pa.timestamp("us", tz="UTC"))
        if name == EXPOSURE:
            return pa.array(values, pa.int64())
        if name in (USER_ID, AD_ID, DEGRADED, AS_OF) or name in self.categories:
            return pa.array(values, pa.string())
        try:
            return pa.array(np.array(values, dtype=np.float64))  # None is no number: NaN
        except ValueError as error:
            raise AdvpriorError("RNK023", "a feature is text that was a number in training", where=name) from error

    def _write(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.concat_tables([one.select(self.tables[0].column_names) for one in self.tables])
        self.tables = []
        if self.writer is None:
            text = [field.name for field in table.schema if pa.types.is_string(field.type)]
            self.writer = pq.ParquetWriter(self.path, table.schema, use_dictionary=text, compression="zstd")
        self.writer.write_table(table.select(self.writer.schema.names), row_group_size=_GROUP)

    def close(self, ranker: str, limit: int | None) -> ShownRows:
        """What was added, or of it the newest exposures."""
        self._close_block()
        if self.tables:
            self._write()
        if self.writer is not None:
            self.writer.close()
        chosen = np.ones(len(self.times), np.bool_)
        if limit is not None:
            chosen[np.argsort(self.times, kind="stable")[:-limit]] = False
        places = np.flatnonzero(np.repeat(chosen, np.asarray(self.slots, np.int64)))
        rows = InFiles([self.path] if self.writer is not None else [])
        return ShownRows(rows, int(chosen.sum()), places, ranker)
