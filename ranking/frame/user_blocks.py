"""A log in blocks of users on disk: sorted there once, then counted block by block by whoever is free.

DuckDB sorts events and impressions in bounded memory. A user's rows all lie in one block, in the order in which the log
has them; a block's tables are what canonical tables of these users alone would be.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from advprior.store import duck
from advprior.store.contract import USER_ID, USERS
from advprior.store.errors import AdvpriorError
from advprior.store.progress import tracked
from advprior.store.tables import write_parquet

BLOCK_USERS = 4_096  # a few hundred thousand rows: little memory in each process, and work for many
_BLOCK = "advprior_block"


@dataclass(frozen=True)
class UserBlocks:
    """Blocks of users and their rows, in files of a folder.

    Attributes
    ----------
    folder : Path
    users : int
        All of them.
    size : int
        Users of a block; the last may have fewer.
    coded : tuple of str
        Columns of text that come as categories.
    """

    folder: Path
    users: int
    size: int
    coded: tuple[str, ...]

    def __len__(self) -> int:
        """Number of blocks."""
        return -(-self.users // self.size)

    def first_user(self, number: int) -> int:
        """Place of a block's first user among all; of the next block, that after its last."""
        return min(number * self.size, self.users)

    def sort(self, tables: Path, users: pd.DataFrame, columns: Mapping[str, Sequence[str]]) -> None:
        """Sort the log; what an earlier call has finished stays.

        Parameters
        ----------
        tables : Path
            Canonical tables.
        users : DataFrame
            In the order of their rows; kept as it is.
        columns : mapping of str to sequence of str
            Which to take of a table.

        Raises
        ------
        AdvpriorError
            ``DAT001``, ``DAT002`` where a table cannot be read.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        write_parquet(users, self._path(USERS), row_group_size=self.size)
        for name, wanted in tracked(columns.items(), "features, sort", "table"):
            if not self._path(name).is_file():
                self._sort(duck.require(Path(tables) / f"{name}.parquet"), users[USER_ID], wanted, self._path(name))

    def load(self, number: int, columns: Mapping[str, Sequence[str]]) -> dict[str, pd.DataFrame]:
        """Users of a block and their rows of some tables, by name; columns as they were sorted.

        Raises
        ------
        AdvpriorError
            ``STO025`` where the sorted log is not to be seen.
        """
        import pyarrow.dataset as ds
        import pyarrow.parquet as pq

        if not self._path(USERS).is_file():
            raise AdvpriorError(
                "STO025",
                "a worker does not see the log that it is to count",
                where=str(self.folder),
                actual="no such folder",
                expected="the feature repository's data at the same path on every machine",
                fix="keep the repository on a disk that all machines share",
            )
        with pq.ParquetFile(self._path(USERS)) as file:
            tables = {USERS: file.read_row_group(number).to_pandas()}
        ids = tables[USERS][USER_ID]
        for name, wanted in columns.items():
            reading = ds.ParquetReadOptions(dictionary_columns=[c for c in self.coded if c in wanted])
            rows = ds.dataset(self._path(name), format=ds.ParquetFileFormat(read_options=reading))
            table = rows.to_table(list(wanted), filter=ds.field(_BLOCK) == number).unify_dictionaries().to_pandas()
            place = table[USER_ID].to_numpy(np.int64) - self.first_user(number)
            # a user that no table lists is none of the block's
            owner = pd.Categorical.from_codes(np.where(place < 0, -1, place), categories=ids)
            tables[name] = table.assign(**{USER_ID: owner})
        return tables

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.parquet"

    def _sort(self, rows: str, users: pd.Series[str], wanted: Sequence[str], path: Path) -> None:
        import pyarrow as pa

        people = pa.table({"person": pa.array(users, pa.string()), "place": np.arange(len(users), dtype=np.int64)})
        beside = path.with_name(f".{path.name}")
        columns = "".join(f', e."{name}"' for name in wanted if name != USER_ID)
        with duck.connected(self.folder, duck.FEW_COLUMNS) as connection:
            connection.register("people", people)
            connection.execute(
                f"COPY (SELECT coalesce(place, -1) AS {USER_ID}, coalesce(place // {self.size}, 0) AS {_BLOCK}"
                f"{columns} FROM {rows} e LEFT JOIN people ON CAST(e.{USER_ID} AS VARCHAR) = person "
                f"ORDER BY {_BLOCK}, file_index, file_row_number) TO {duck.literal(str(beside))} (FORMAT parquet)"
            )
        os.replace(beside, path)
