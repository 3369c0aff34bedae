"""The YAML of a user's own tables: which file and column is which, and where the time plan splits.

Unknown keys are refused. `advprior.data.conversion` reads the files that it names, `advprior.data.check` checks them.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from advprior.data.lookups import KEYS, LOOKUPS, PRODUCT_ID, SAYS
from advprior.store.contract import EVENTS, SHOWN_TABLES, TABLES
from advprior.store.errors import AdvpriorError
from advprior.store.keys import explain


def _duration(value: object) -> object:
    """``7d``, ``12h`` or ``30m`` as a length of time; anything else is left to pydantic.

    >>> _duration("7d")
    datetime.timedelta(days=7)
    """
    match = re.fullmatch(r"\s*(\d+)\s*([dhm])\s*", value) if isinstance(value, str) else None
    if match is None:
        return value
    try:
        return timedelta(**{{"d": "days", "h": "hours", "m": "minutes"}[match[2]]: int(match[1])})
    except OverflowError as error:
        raise ValueError("longer than any time") from error


Duration = Annotated[timedelta, BeforeValidator(_duration)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TableMapping(_Strict):
    """One file: canonical column -> column in the file."""

    file: str
    columns: dict[str, str] = Field(default_factory=dict)


class UsersMapping(TableMapping):
    """Users, with their profile fields: name shown -> column in the file."""

    profile: dict[str, str] = Field(default_factory=dict)


class ImpressionsMapping(TableMapping):
    """Impressions, with the context of the request: name -> column in the file."""

    context: dict[str, str] = Field(default_factory=dict)


class TablesMapping(_Strict):
    """The files: five, or three where only a predictor is measured; beside them what events and ads are joined with."""

    users: UsersMapping
    advertisers: TableMapping
    ads: TableMapping | None = None
    events: TableMapping
    impressions: ImpressionsMapping | None = None
    products: TableMapping | None = None
    categories: TableMapping | None = None

    def lookups(self) -> tuple[str, ...]:
        """Names of the tables that are joined to others and are no canonical ones."""
        return tuple(name for name in LOOKUPS if getattr(self, name) is not None)

    def present(self) -> tuple[str, ...]:
        """Names of the tables that the mapping has, in canonical order."""
        return tuple(name for name in TABLES if getattr(self, name) is not None)


class TimePlanMapping(_Strict):
    """Splits; ``start`` and ``end`` come from the data when left out."""

    finetune_end: datetime
    train_end: datetime
    valid_end: datetime
    start: datetime | None = None
    end: datetime | None = None
    snapshot_every: Duration = timedelta(days=7)
    lag: Duration = timedelta(hours=1)


class DataMapping(_Strict):
    """The whole ``mapping.yaml``."""

    tables: TablesMapping
    time_plan: TimePlanMapping | None = None
    label_delay: Duration | None = None
    folder: str = "."
    timezone: str | None = None

    @field_validator("label_delay")
    @classmethod
    def _delay_is_not_negative(cls, value: timedelta | None) -> timedelta | None:
        if value is not None and value < timedelta(0):
            raise ValueError("a label cannot be complete before its impression; write it like 7d")
        return value

    @field_validator("timezone")
    @classmethod
    def _zone_exists(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                ZoneInfo(value)
            except (OSError, ValueError, KeyError) as error:
                raise ValueError("no such time zone; write it like UTC or Europe/Berlin") from error
        return value

    @field_validator("tables")
    @classmethod
    def _columns_are_canonical(cls, tables: TablesMapping) -> TablesMapping:
        absent = [name for name in SHOWN_TABLES if name not in tables.present()]
        if len(absent) == 1:
            raise ValueError(f"{absent[0]} is missing; ads and impressions come together or not at all")
        if tables.products is not None and PRODUCT_ID not in tables.events.columns:
            raise ValueError(f"events.columns: products are joined by {PRODUCT_ID}; say which column of events has it")
        for name in (*tables.present(), *tables.lookups()):
            canonical = _canonical_columns(name)
            unknown = set(getattr(tables, name).columns) - canonical
            if unknown:
                raise ValueError(
                    f"{name}.columns: unknown {', '.join(sorted(unknown))}; known are {', '.join(sorted(canonical))}"
                )
        return tables


def _canonical_columns(table: str) -> set[str]:
    from advprior.store.columns import COLUMNS, OPTIONAL_COLUMNS

    if table in LOOKUPS:
        return {KEYS[table], *SAYS[table]}
    further = {PRODUCT_ID} if table == EVENTS else set()
    return {*COLUMNS[table], *OPTIONAL_COLUMNS.get(table, {}), *further}


def read_mapping(path: Path) -> DataMapping:
    """Read and check a ``mapping.yaml``.

    Raises
    ------
    AdvpriorError
        ``CFG001`` when the file is missing or is no YAML mapping, ``CFG002`` for unknown keys and wrong values.
    """
    import yaml

    path = Path(path)
    fix = "advprior init DIR writes a commented mapping.yaml to start from"
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problem = "no such file" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())
        raise AdvpriorError("CFG001", "the mapping cannot be read", where=str(path), actual=problem, fix=fix) from error
    if not isinstance(raw, dict):
        raise AdvpriorError(
            "CFG001", "the mapping is no YAML mapping", where=str(path), actual=type(raw).__name__, fix=fix
        )
    try:
        return DataMapping.model_validate(raw)
    except ValidationError as error:
        raise AdvpriorError(
            "CFG002",
            "the mapping has settings that do not fit",
            where=str(path),
            actual=explain(error, DataMapping),
            fix=fix,
        ) from error
