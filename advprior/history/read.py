"""Histories straight from canonical tables, with little more memory than they need themselves.

Only the columns that histories hold are read, and ids arrive as codes: a string object for each of many million
events would take more than all the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from advprior.history.catalog import Catalog
from advprior.history.histories import Histories, build_histories, without_events
from advprior.store.contract import (
    ADVERTISER_ID,
    ADVERTISERS,
    ARRIVED,
    CATEGORY,
    EVENTS,
    TEXT,
    TIMESTAMP,
    USER_ID,
    USERS,
    VALUE,
)
from advprior.store.tables import TABLES_FIX, load_tables, read_parquet

if TYPE_CHECKING:
    import pandas as pd

#: What histories are made of; other columns of events stay on disk.
EVENT_COLUMNS = (USER_ID, TIMESTAMP, ARRIVED, ADVERTISER_ID, CATEGORY, TEXT, VALUE)
_CODED = (USER_ID, ADVERTISER_ID, CATEGORY, TEXT)


def load_histories(tables: Path, of: Catalog | None = None) -> tuple[Histories, Catalog]:
    """Histories and catalog of finished canonical tables.

    Parameters
    ----------
    tables : Path
    of : Catalog, optional
        Whom histories are of: events of other advertisers are left out. The tables' own catalog by default.

    Raises
    ------
    AdvpriorError
        As `advprior.store.tables.load_tables`.
    """
    loaded = load_tables(tables, USERS, ADVERTISERS)
    catalog = Catalog.from_table(loaded[ADVERTISERS])
    return build_histories(loaded[USERS], _events(tables / f"{EVENTS}.parquet"), catalog if of is None else of), catalog


def load_catalog(tables: Path) -> Catalog:
    """The catalog of finished canonical tables.

    Raises
    ------
    AdvpriorError
        As `advprior.store.tables.load_tables`.
    """
    return Catalog.from_table(load_tables(tables, ADVERTISERS)[ADVERTISERS])


def load_people(tables: Path, catalog: Catalog) -> Histories:
    """The users of finished canonical tables and what is known of them, without their events.

    Raises
    ------
    AdvpriorError
        As `advprior.store.tables.load_tables`.
    """
    return without_events(load_tables(tables, USERS)[USERS], catalog)


def _events(path: Path) -> pd.DataFrame:
    """Events with ids, categories and texts as pandas categories."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns_there = set(pq.read_schema(path).names)
    except (OSError, pa.ArrowException):
        columns_there = set(EVENT_COLUMNS)  # let the reader say what is wrong
    columns = [name for name in EVENT_COLUMNS if name in columns_there]
    return read_parquet(path, columns=columns, coded=[c for c in columns if c in _CODED], fix=TABLES_FIX)
