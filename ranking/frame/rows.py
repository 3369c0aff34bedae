"""Which impressions a ranker sees: from the end of fine-tuning on, split by the time plan, with their segments.

They are sorted on disk and handed out part by part, in the order of time, slate and id: a log of any length takes the
memory of one part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from advprior.store import duck
from advprior.store.arrays import Bool, Int
from advprior.store.contract import (
    AD_ID,
    ADS,
    ADVERTISER_ID,
    CATEGORY,
    CONTEXT_PREFIX,
    EVENTS,
    IMPRESSION_ID,
    IMPRESSIONS,
    LABEL,
    SLATE_ID,
    TIMESTAMP,
    USER_ID,
    TimePlan,
)
from advprior.store.errors import AdvpriorError
from advprior.store.runs import read_manifest
from advprior.store.tables import TABLES_FIX, require_impressions
from advprior.store.times import as_datetimes, micros, moment_us
from ranking.frame.read import SPLITS

if TYPE_CHECKING:
    import pyarrow as pa

PART_ROWS = 1_000_000  # a part of 150 float32 columns is 0.6 GB; each costs a second of plans that Feast makes
_CATEGORY, _NEVER_ADVERTISER, _NEVER_AD = (f"of_impression_{what}" for what in ("category", "never", "never_ad"))


@dataclass(frozen=True)
class FrameRows:
    """Impressions of a frame, in its order: by time, slate and id.

    Attributes
    ----------
    table : pandas.DataFrame
        Columns of canonical impressions.
    category : Series of str
        Category of each impression's ad.
    never_advertiser, never_ad : bool arrays
        The user had no event with the ad's advertiser (and category) before.
    """

    table: pd.DataFrame
    category: pd.Series[Any]
    never_advertiser: Bool
    never_ad: Bool

    @property
    def moments(self) -> Any:
        """Time of each, datetime64[us]."""
        return as_datetimes(micros(self.table[TIMESTAMP]))

    @property
    def label(self) -> Any:
        """Label of each."""
        return self.table[LABEL].to_numpy()

    def key_columns(self, split: Any) -> dict[str, Any]:
        """Columns of the frame that are no features."""
        table = self.table
        return {
            **{name: table[name] for name in (IMPRESSION_ID, SLATE_ID)},
            **{name: table[name].astype("category") for name in (USER_ID, AD_ID, ADVERTISER_ID)},
            TIMESTAMP: table[TIMESTAMP],
            LABEL: table[LABEL],
            "split": pd.Categorical(split, categories=list(SPLITS)),
            "segment_never_advertiser": self.never_advertiser,
            "segment_never_ad": self.never_ad,
        }


@dataclass(frozen=True, eq=False)
class SortedRows:
    """The impressions of a frame, sorted in a file.

    Attributes
    ----------
    path : Path
    moments : int array [rows]
        Time of each, microseconds since 1970.
    label : int8 array [rows]
    beyond : int
        Impressions at or after the plan's end, which are left out.
    """

    path: Path
    moments: Int
    label: Any
    beyond: int

    @classmethod
    def load(cls, tables: Path, plan: TimePlan, folder: Path) -> SortedRows:
        """Impressions in [finetune_end, end) of canonical tables, sorted into a file of ``folder``.

        Raises
        ------
        AdvpriorError
            ``RNK010`` when there is none; as `advprior.store.tables.load_tables` where a table is missing.
        """
        require_impressions(tables)
        read_manifest(tables, fix=TABLES_FIX)
        shown, ads, events = (duck.require(Path(tables) / f"{name}.parquet") for name in (IMPRESSIONS, ADS, EVENTS))
        path, start, end = folder / "impressions.parquet", moment_us(plan.finetune_end), moment_us(plan.end)
        with duck.connected(folder, duck.FEW_COLUMNS) as connection:
            connection.execute(
                f"COPY ({_rows_sql(shown, ads, events, start, end)} ORDER BY {TIMESTAMP}, {SLATE_ID}, {IMPRESSION_ID})"
                f" TO {duck.literal(str(path))} (FORMAT parquet)"
            )
            beyond = connection.execute(
                f"SELECT count(*) FROM {shown} WHERE epoch_us({TIMESTAMP}) >= {end}"
            ).fetchone()[0]
        import pyarrow.parquet as pq

        table = pq.read_table(path, columns=[TIMESTAMP, LABEL])
        if not len(table):
            raise AdvpriorError(
                "RNK010",
                "no impressions for the ranker",
                where=str(tables),
                actual="none from finetune_end to end",
                expected=f"impressions in [{plan.finetune_end}, {plan.end})",
                fix="give the tables a time plan that fits their data",
            )
        return cls(path, micros(table[TIMESTAMP].to_pandas()), table[LABEL].to_numpy().astype(np.int8), int(beyond))

    def __len__(self) -> int:
        return len(self.moments)

    def parts(self, rows: int = PART_ROWS) -> Iterator[FrameRows]:
        """The impressions in their order, so many at a time; text that tells no row apart comes as categories."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        waiting: list[pa.RecordBatch] = []
        with pq.ParquetFile(self.path, read_dictionary=_coded(self.path)) as file:
            for batch in file.iter_batches(batch_size=rows):
                waiting.append(batch)
                while sum(map(len, waiting)) >= rows:
                    table = pa.Table.from_batches(waiting)
                    yield _frame_rows(table.slice(0, rows))
                    waiting = table.slice(rows).to_batches()
        if sum(map(len, waiting)):
            yield _frame_rows(pa.Table.from_batches(waiting))


def read_rows(path: Path, start: int, stop: int) -> FrameRows:
    """Some of the sorted impressions, as `SortedRows.parts` gives them; a worker has no more than their file."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, read_dictionary=_coded(path)) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        edges = np.concatenate([[0], np.cumsum(sizes)])
        first, last = np.searchsorted(edges, start, side="right") - 1, np.searchsorted(edges, stop)
        table = file.read_row_groups(list(range(first, last)))
    return _frame_rows(table.slice(start - edges[first], stop - start))


def _coded(path: Path) -> list[str]:
    """Columns of text that are read as codes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    return [field.name for field in schema if pa.types.is_string(field.type) and _is_coded(field.name)]


def _is_coded(name: str) -> bool:
    return name in (USER_ID, AD_ID, ADVERTISER_ID, CATEGORY, _CATEGORY) or name.startswith(CONTEXT_PREFIX)


def _frame_rows(table: pa.Table) -> FrameRows:
    import pyarrow as pa

    # a number of one part must not be a text of another: decimals, which pandas holds as objects, become numbers
    fields = [f.with_type(pa.float64()) if pa.types.is_decimal(f.type) else f for f in table.schema]
    rows = table.unify_dictionaries().cast(pa.schema(fields)).to_pandas()
    category, never_advertiser, never_ad = (rows.pop(name) for name in (_CATEGORY, _NEVER_ADVERTISER, _NEVER_AD))
    return FrameRows(rows, category, never_advertiser.to_numpy(bool), never_ad.to_numpy(bool))


def _rows_sql(shown: str, ads: str, events: str, start: int, end: int) -> str:
    """Impressions of a span of microseconds with their ad's category, and what their user never had before.

    An event that lacks an advertiser, or a category, matches nothing; one at the impression's own time comes too late.
    """
    first = f"min(epoch_us({TIMESTAMP})) AS earliest FROM {events} WHERE {ADVERTISER_ID} IS NOT NULL"
    return f"""
        WITH of_advertiser AS (SELECT {USER_ID}, {ADVERTISER_ID}, {first} GROUP BY ALL),
        of_ad AS (SELECT {USER_ID}, {ADVERTISER_ID}, {CATEGORY}, {first} AND {CATEGORY} IS NOT NULL GROUP BY ALL)
        SELECT i.*, a.{CATEGORY} AS {_CATEGORY},
            coalesce(of_advertiser.earliest >= epoch_us(i.{TIMESTAMP}), true) AS {_NEVER_ADVERTISER},
            coalesce(of_ad.earliest >= epoch_us(i.{TIMESTAMP}), true) AS {_NEVER_AD}
        FROM {shown} i LEFT JOIN {ads} a ON i.{AD_ID} = a.{AD_ID}
        LEFT JOIN of_advertiser ON i.{USER_ID} = of_advertiser.{USER_ID}
            AND i.{ADVERTISER_ID} = of_advertiser.{ADVERTISER_ID}
        LEFT JOIN of_ad ON i.{USER_ID} = of_ad.{USER_ID} AND i.{ADVERTISER_ID} = of_ad.{ADVERTISER_ID}
            AND a.{CATEGORY} = of_ad.{CATEGORY}
        WHERE epoch_us(i.{TIMESTAMP}) >= {start} AND epoch_us(i.{TIMESTAMP}) < {end}
    """


def split_of(moments: Int, plan: TimePlan) -> Any:
    """``train``, ``valid`` or ``test`` of each impression, by the time plan.

    Parameters
    ----------
    moments : int array [impressions]
        Microseconds since 1970.
    plan : TimePlan
    """
    edges = np.array([moment_us(plan.train_end), moment_us(plan.valid_end)])
    return np.array(SPLITS, dtype=object)[np.searchsorted(edges, moments, side="right")]
