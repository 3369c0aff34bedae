"""Reading and writing Parquet with a clear error in place of a library's traceback."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advprior.store.contract import EVENTS, LABEL_DELAY, PREDICTOR_ONLY, SHOWN_TABLES, TABLES, TimePlan
from advprior.store.errors import AdvpriorError
from advprior.store.runs import read_manifest

if TYPE_CHECKING:
    import pandas as pd

TABLES_FIX = (
    "advprior data build complete_journey --out TABLES, or advprior data check --mapping mapping.yaml --out TABLES"
)


def read_parquet(
    path: Path, *, columns: Sequence[str] | None = None, coded: Sequence[str] = (), fix: str | None = None
) -> pd.DataFrame:
    """Read one Parquet file, or a folder of parts; text columns in ``coded`` of a file come as categories.

    Raises
    ------
    AdvpriorError
        ``DAT001`` when it is missing, ``DAT002`` when it cannot be read (truncated, not Parquet, a device or a pipe).
    """
    import pandas as pd
    import pyarrow as pa

    path = Path(path)
    if not path.exists():
        raise AdvpriorError("DAT001", "a file is missing", where=str(path), expected="a Parquet file", fix=fix)
    try:
        if path.is_dir():
            return _read_parts(path, columns)
        if not path.is_file():  # a pipe would be waited for, a device may never end
            raise OSError("neither a file nor a folder")
        options: dict[str, Any] = {"read_dictionary": list(coded)} if coded else {}
        return pd.read_parquet(path, "pyarrow", None if columns is None else list(columns), **options)
    except (pa.ArrowInvalid, pa.ArrowException, OSError) as error:
        raise AdvpriorError(
            "DAT002",
            "a Parquet file cannot be read",
            where=str(path),
            actual=str(error).splitlines()[0][:200],
            expected="a whole Parquet file",
            fix=fix or "write the file again; it may be truncated",
        ) from error


def parquet_columns(path: Path) -> list[str]:
    """Columns of a Parquet file, or of all parts of a folder together."""
    import pyarrow.parquet as pq

    path = Path(path)
    return list(_parts(path).schema.names if path.is_dir() else pq.read_schema(path).names)


def _read_parts(folder: Path, columns: Sequence[str] | None) -> pd.DataFrame:
    table: pd.DataFrame = _parts(folder).to_table(None if columns is None else list(columns)).to_pandas()
    return table


def _parts(folder: Path) -> Any:
    """All parts of a folder, as Spark, Hive and DuckDB write them, under the columns of all of them.

    By default the first part decides: a column that it lacks, or that is empty in it, would be lost in all others.
    """
    import pyarrow as pa
    import pyarrow.dataset as ds

    layout = ds.HivePartitioning.discover(infer_dictionary=True)
    first = ds.dataset(folder, format="parquet", partitioning=layout)
    schemas = [first.schema, *(part.physical_schema for part in first.get_fragments())]
    schema = pa.unify_schemas(schemas, promote_options="permissive").with_metadata(first.schema.metadata)
    return ds.dataset(folder, schema=schema, format="parquet", partitioning=layout)


def write_parquet(frame: pd.DataFrame, path: Path, **options: Any) -> None:
    """Write beside ``path``, then rename. Times are kept in microseconds, UTC.

    A column of lists in Arrow's own dtype is written without pandas' metadata, whose name for it pandas itself
    cannot read back.
    """

    write_parquet_parts([frame], path, **options)


def write_parquet_parts(frames: Iterable[Any], path: Path, **options: Any) -> int:
    """As `write_parquet`, of a table that comes part by part; the first decides on the types. Returns its rows.

    Parameters
    ----------
    frames : iterable of DataFrame or pyarrow.Table
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    times: dict[str, Any] = {"coerce_timestamps": "us", "allow_truncated_timestamps": True}
    group = {"row_group_size": options.pop("row_group_size")} if "row_group_size" in options else {}
    writer, rows = None, 0
    for frame in frames:
        table = frame if isinstance(frame, pa.Table) else _to_arrow(frame)
        writer = writer or pq.ParquetWriter(beside, table.schema, **times, **options)
        writer.write_table(table.cast(writer.schema), **group)
        rows += len(table)
    assert writer is not None
    writer.close()
    os.replace(beside, path)
    return rows


def write_batches(frames: Iterable[pd.DataFrame], path: Path) -> None:
    """Write tables that are soon read again, one after the other: Arrow's own file, at a third of Parquet's CPU.

    Each is one record batch, an empty one too; their bytes are those that zstd leaves of Parquet.
    """
    import pyarrow as pa

    options, writer = pa.ipc.IpcWriteOptions(compression="zstd"), None
    with pa.OSFile(str(path), "wb") as sink:
        for frame in frames:
            table = _to_arrow(frame).combine_chunks()
            writer = writer or pa.ipc.new_file(sink, table.schema, options=options)
            columns = [column.chunk(0) if column.num_chunks else pa.array([], column.type) for column in table.columns]
            writer.write_batch(pa.record_batch(columns, schema=table.schema))
        assert writer is not None
        writer.close()


def read_batch(path: Path, number: int) -> Any:
    """One of the tables that `write_batches` wrote."""
    import pyarrow as pa

    with pa.OSFile(str(path)) as source:
        return pa.Table.from_batches([pa.ipc.open_file(source).get_batch(number)])


def _to_arrow(frame: pd.DataFrame) -> Any:
    import pandas as pd
    import pyarrow as pa

    table = pa.Table.from_pandas(frame, preserve_index=False)
    if any(isinstance(dtype, pd.ArrowDtype) for dtype in frame.dtypes):
        table = table.replace_schema_metadata(None)
    # a text that is missing in every row keeps its type: Feast cannot read Arrow's type of nothing
    fields = [field.with_type(pa.string()) if pa.types.is_null(field.type) else field for field in table.schema]
    return table.cast(pa.schema(fields, metadata=table.schema.metadata))


def load_tables(folder: Path, *names: str) -> dict[str, pd.DataFrame]:
    """Canonical tables of a finished ``advprior data`` run (all there are, or those named).

    Raises
    ------
    AdvpriorError
        ``RUN001`` for a folder that no run finished, ``DAT001`` and ``DAT002`` as `read_parquet`, ``DAT045`` when ads
        or impressions are asked of tables without them.
    """
    if set(names) & set(SHOWN_TABLES):
        require_impressions(folder)
    wanted = names or (present_tables(folder) if predictor_only(folder) else TABLES)
    read_manifest(folder, fix=TABLES_FIX)
    return {name: read_parquet(Path(folder) / f"{name}.parquet", fix=TABLES_FIX) for name in wanted}


def present_tables(folder: Path) -> tuple[str, ...]:
    """Tables that the files of a folder make up: without ads and impressions where neither has a file, else all five.

    One of the two without the other is no whole; it is listed, so that reading it tells what is missing.
    """
    without = not any((Path(folder) / f"{name}.parquet").exists() for name in SHOWN_TABLES)
    return tuple(name for name in TABLES if not (without and name in SHOWN_TABLES))


def predictor_only(folder: Path) -> bool:
    """Whether a finished ``advprior data`` run holds no ads and no impressions, by its manifest."""
    return bool(read_manifest(folder, fix=TABLES_FIX)["facts"].get("purpose") == PREDICTOR_ONLY)


def require_impressions(folder: Path) -> None:
    """Refuse tables that can measure a predictor, but not a ranker.

    Raises
    ------
    AdvpriorError
        ``DAT045``.
    """
    if predictor_only(folder):
        raise AdvpriorError(
            "DAT045",
            "a ranker needs ads and impressions, and this data has neither: it measures a predictor only",
            where=str(folder),
            actual=f"purpose {PREDICTOR_ONLY!r} in its manifest, no {' and no '.join(SHOWN_TABLES)}",
            expected=f"{' and '.join(SHOWN_TABLES)} beside {EVENTS}: what was shown, and its label",
            fix="finetune, score and publish work on it; to rank, bring impressions (complete_journey has some)",
        )


def load_time_plan(folder: Path) -> TimePlan:
    """The time plan that the tables were built with."""
    return TimePlan.from_json(read_manifest(folder)["facts"]["time_plan"])


def load_label_delay(folder: Path) -> timedelta:
    """How long after its impression a label is complete, as the tables' manifest states it; else the default."""
    seconds = read_manifest(folder)["facts"].get("label_delay_s")
    return LABEL_DELAY if seconds is None else timedelta(seconds=float(seconds))
