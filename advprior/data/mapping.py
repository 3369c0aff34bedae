"""Bring your own tables: a short YAML says which file and column is which; the rest is checked, not guessed.

Conversions are those that lose nothing: numeric ids become text, times become UTC microseconds. A time without zone
is refused unless the YAML states its zone, because a wrong guess moves events across the split and leaks answers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from zoneinfo import ZoneInfo

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from advprior.store.contract import (
    AD_ID,
    ADS,
    ADVERTISER_ID,
    CONTEXT_PREFIX,
    EVENTS,
    IMPRESSION_ID,
    IMPRESSIONS,
    LABEL,
    PREDICTOR_ONLY,
    PROFILE_PREFIX,
    SHOWN_TABLES,
    SLATE_ID,
    TABLES,
    TIMESTAMP,
    VALUE,
    TimePlan,
)
from advprior.store.errors import AdvpriorError
from advprior.store.runs import MANIFEST, is_current, new_run, read_manifest, run_key, sha256_file
from advprior.store.tables import read_parquet, write_parquet

if TYPE_CHECKING:
    import pandas as pd

    from advprior.store.schemas import Problem

CODE_VERSION = 1
#: Columns that `_complete` makes when neither the file has them nor the mapping names them.
MADE = {(EVENTS, VALUE), (IMPRESSIONS, IMPRESSION_ID), (IMPRESSIONS, ADVERTISER_ID)}
#: Told when tables without ads and impressions pass: right for a predictor, and a surprise for who forgot them.
ONLY_A_PREDICTOR = "no ads and no impressions: the tables measure a predictor, `advprior rank` refuses them"


# -- the YAML ----------------------------------------------------------------------------------------
def _duration(value: object) -> object:
    """``7d``, ``12h`` or ``30m`` as a length of time; anything else is left to pydantic.

    >>> _duration("7d")
    datetime.timedelta(days=7)
    """
    match = re.fullmatch(r"\s*(\d+)\s*([dhm])\s*", value) if isinstance(value, str) else None
    if match is None:
        return value
    return timedelta(**{{"d": "days", "h": "hours", "m": "minutes"}[match[2]]: int(match[1])})


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
    """Impressions, with what was known of the request: name -> column in the file."""

    context: dict[str, str] = Field(default_factory=dict)


class TablesMapping(_Strict):
    """The files: five, or three where only a predictor is measured."""

    users: UsersMapping
    advertisers: TableMapping
    ads: TableMapping | None = None
    events: TableMapping
    impressions: ImpressionsMapping | None = None

    def there(self) -> tuple[str, ...]:
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
    time_plan: TimePlanMapping
    folder: str = "."
    timezone: str | None = None

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
    def _columns_are_known(cls, tables: TablesMapping) -> TablesMapping:
        absent = [name for name in SHOWN_TABLES if name not in tables.there()]
        if len(absent) == 1:
            raise ValueError(f"{absent[0]} is missing; ads and impressions come together or not at all")
        for name in tables.there():
            unknown = set(getattr(tables, name).columns) - _canonical_columns(name)
            if unknown:
                known = ", ".join(sorted(_canonical_columns(name)))
                raise ValueError(f"{name}.columns: unknown {', '.join(sorted(unknown))}; known are {known}")
        return tables


def _canonical_columns(table: str) -> set[str]:
    from advprior.store.schemas import COLUMNS, OPTIONAL_COLUMNS

    return {*COLUMNS[table], *OPTIONAL_COLUMNS.get(table, {})}


def read_mapping(path: Path) -> DataMapping:
    """Read and check a ``mapping.yaml``.

    Raises
    ------
    AdvpriorError
        ``CFG001`` when the file is missing or is no YAML mapping, ``CFG002`` for unknown keys and wrong values.
    """
    import yaml

    path = Path(path)
    fix = "advprior init DIR writes a commented configs/mapping.yaml to start from"
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())
        raise AdvpriorError("CFG001", "the mapping cannot be read", where=str(path), actual=found, fix=fix) from error
    if not isinstance(raw, dict):
        raise AdvpriorError(
            "CFG001", "the mapping is no YAML mapping", where=str(path), actual=type(raw).__name__, fix=fix
        )
    try:
        return DataMapping.model_validate(raw)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise AdvpriorError(
            "CFG002", "the mapping has settings that do not fit", where=str(path), actual=found, fix=fix
        ) from error


# -- tables ------------------------------------------------------------------------------------------
class Mapped(NamedTuple):
    """A user's tables under canonical names and types, not yet validated."""

    #: A column that is not there is left out, one of a wrong type is left as it is.
    tables: dict[str, pd.DataFrame]
    #: (table, column) -> where it came from, for messages
    sources: dict[tuple[str, str], str]
    #: columns that the files lack, told by the files' own names
    missing: list[Problem]


def load_mapped(mapping: DataMapping, base: Path) -> Mapped:
    """Read the user's files under canonical names and types.

    Parameters
    ----------
    mapping : DataMapping
        What is where.
    base : Path
        Folder that ``mapping.folder`` is relative to: the YAML's own.

    Returns
    -------
    Mapped

    Raises
    ------
    AdvpriorError
        ``DAT001`` for a missing file, ``DAT002`` for one that cannot be read.
    """
    from advprior.store.schemas import COLUMNS, missing_column

    tables: dict[str, pd.DataFrame] = {}
    sources: dict[tuple[str, str], str] = {}
    missing: list[Problem] = []
    for name in mapping.tables.there():
        path = _file(mapping, base, name)
        wanted = _wanted(mapping, name)
        raw = read_parquet(path)
        taken = {column: source for column, source in wanted.items() if source in raw.columns}
        # one source column may feed two canonical ones, so columns are copied, not renamed
        table = raw[list(taken.values())].set_axis(list(taken), axis=1)
        for column in table:
            table[column] = _converted(str(column), table[column], mapping.timezone)
        tables[name] = table
        for column, source in wanted.items():
            if source != column or column not in taken:
                sources[name, column] = f"from column {source!r} of {path.name}"
        stated = {*getattr(mapping.tables, name).columns, *(c for c in wanted if c not in COLUMNS[name])}
        missing += [
            missing_column(name, column, raw.columns)
            for column in wanted
            # what the mapping names must be there; what it leaves out may be made
            if column not in taken and (column in stated or (name, column) not in MADE)
        ]
    _complete(tables)
    return Mapped(tables, sources, missing)


def _file(mapping: DataMapping, base: Path, name: str) -> Path:
    file: str = getattr(mapping.tables, name).file
    return Path(base) / mapping.folder / file


def _wanted(mapping: DataMapping, name: str) -> dict[str, str]:
    """Canonical column -> column of the user's file, in canonical order."""
    from advprior.store.schemas import COLUMNS

    table = getattr(mapping.tables, name)
    wanted = {column: table.columns.get(column, column) for column in COLUMNS[name]}
    wanted |= {column: source for column, source in table.columns.items() if column not in wanted}
    wanted |= {PROFILE_PREFIX + key: source for key, source in getattr(table, "profile", {}).items()}
    wanted |= {CONTEXT_PREFIX + key: source for key, source in getattr(table, "context", {}).items()}
    return wanted


def _converted(name: str, column: pd.Series, zone: str | None) -> pd.Series:
    """The column in its canonical type where nothing is lost by it; else as it is, for the check to tell."""
    import numpy as np
    import pandas as pd

    from advprior.store.schemas import is_text

    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    kind = column.dtype.kind
    if name == TIMESTAMP:
        if kind != "M":
            return column
        if getattr(column.dtype, "tz", None) is None:
            if zone is None:
                return column
            # in the hour that clocks repeat, take the second; in the hour they skip, the next valid moment
            twice = np.zeros(len(column), dtype=bool)
            column = column.dt.tz_localize(zone, ambiguous=twice, nonexistent="shift_forward")
        times: pd.Series = column.dt.tz_convert("UTC").astype("datetime64[us, UTC]")
        return times
    if name == LABEL:
        if kind in "iubf" and column.isin([0, 1]).all():
            return column.astype("int8")
        return column
    if name == SLATE_ID and is_text(column) and column.notna().all():
        return pd.Series(pd.factorize(column)[0].astype("int64"), column.index)
    if name in (IMPRESSION_ID, SLATE_ID):
        return column.astype("int64") if kind in "iu" and column.notna().all() else column
    if name == VALUE:
        return column.astype("float64") if kind in "iuf" else column
    if name.startswith(CONTEXT_PREFIX):
        return column
    return _as_text(column)


def _as_text(column: pd.Series) -> pd.Series:
    """Text as objects; whole numbers (ids) and their floats, which missing values make of them, as text too."""
    import numpy as np
    import pandas as pd

    if column.dtype.kind == "f":
        known = column.dropna()
        if not (np.isfinite(known) & (known == np.floor(known)) & (known.abs() < 2**53)).all():
            return column
        column = column.astype("Int64")
    if column.dtype.kind in "iu" or isinstance(column.dtype, pd.StringDtype):
        text = column.astype("string").astype(object)
        text[text.isna()] = None
        return text
    return column


def _complete(tables: dict[str, pd.DataFrame]) -> None:
    """Make the columns of `MADE` where they are not."""
    import numpy as np

    events = tables[EVENTS]
    if VALUE not in events:
        events[VALUE] = 1.0
    if IMPRESSIONS not in tables:
        return
    shown, ads = tables[IMPRESSIONS], tables[ADS]
    if IMPRESSION_ID not in shown:
        shown.insert(0, IMPRESSION_ID, np.arange(len(shown), dtype="int64"))
    if ADVERTISER_ID not in shown and AD_ID in shown and {AD_ID, ADVERTISER_ID} <= set(ads):
        owner = ads.drop_duplicates(AD_ID).set_index(AD_ID)[ADVERTISER_ID]
        shown[ADVERTISER_ID] = shown[AD_ID].map(owner)


def resolve_time_plan(mapping: DataMapping, tables: Mapping[str, pd.DataFrame], where: str) -> TimePlan:
    """The mapping's time plan, with ``start`` and ``end`` from the data where it has none.

    Raises
    ------
    AdvpriorError
        ``DAT009`` for a time without zone, ``CFG002`` for times out of order.
    """
    plan = mapping.time_plan
    times = [tables[name][TIMESTAMP] for name in (EVENTS, IMPRESSIONS) if name in tables]
    moments = {
        "start": plan.start or min(t.min() for t in times).to_pydatetime(),
        "finetune_end": plan.finetune_end,
        "train_end": plan.train_end,
        "valid_end": plan.valid_end,
        "end": plan.end or max(t.max() for t in times).to_pydatetime() + timedelta(seconds=1),
    }
    zone = ZoneInfo(mapping.timezone) if mapping.timezone else None
    for key, moment in moments.items():
        if moment.tzinfo is None:
            if zone is None:
                raise AdvpriorError(
                    "DAT009",
                    "a time of the time plan has no zone",
                    where=f"{where}: time_plan.{key}",
                    actual=moment.isoformat(),
                    expected="a zone, e.g. 2024-05-01T00:00:00Z",
                    fix="write the zone",
                )
            moment = moment.replace(tzinfo=zone)
        moments[key] = moment.astimezone(UTC)
    try:
        return TimePlan(**moments, snapshot_every=plan.snapshot_every, lag=plan.lag)
    except ValueError as error:
        found = ", ".join(f"{key} {moment.isoformat()}" for key, moment in moments.items())
        raise AdvpriorError(
            "CFG002",
            "the time plan does not fit",
            where=f"{where}: time_plan",
            actual=found,
            expected=str(error),
            fix="mend time_plan in the mapping",
        ) from error


# -- the two checks ----------------------------------------------------------------------------------
def check_mapping(path: Path, out: Path | None = None, *, force: bool = False) -> tuple[dict[str, Any], bool]:
    """Check a user's own tables through their mapping; write them in canonical form when ``out`` is given.

    Parameters
    ----------
    path : Path
        The ``mapping.yaml``.
    out : Path, optional
        Run folder to write, as a whole or not at all.
    force : bool
        Write even when ``out`` is up to date.

    Returns
    -------
    facts : dict
        ``rows`` by table, ``time_plan``, ``warnings`` and more; ``purpose`` where there are no impressions.
    made : bool
        False when ``out`` was up to date and left alone.

    Raises
    ------
    AdvpriorError
        What `read_mapping`, `load_mapped`, `resolve_time_plan` and `advprior.store.schemas.validate_tables` raise.
    """
    path = Path(path)
    mapping = read_mapping(path)
    config = {"mapping": mapping.model_dump(mode="json")}
    inputs: dict[str, str] = {}
    key = ""
    if out is not None:
        files = {name: _file(mapping, path.parent, name) for name in mapping.tables.there()}
        if any(Path(out).resolve() in file.resolve().parents for file in [path, *files.values()]):
            raise AdvpriorError(
                "DAT044",
                "--out would replace your own files",
                where=str(out),
                actual=f"{path} reads from there",
                expected="another folder",
                fix="choose another --out",
            )
        for name, file in files.items():
            if not file.is_file():
                read_parquet(file, fix="mend `folder` or `file` in the mapping")  # raises the coded error
            inputs[name] = sha256_file(file)
        key = run_key("data", config, inputs, CODE_VERSION)
        if not force and is_current(out, key):
            return dict(read_manifest(out)["facts"]), False

    from advprior.store.schemas import table_warnings, validate_tables

    tables, sources, missing = load_mapped(mapping, path.parent)
    fix = "mend the tables or the mapping, then run the command again"
    validate_tables(tables, where=str(path), fix=fix, sources=sources, also=missing)
    plan = resolve_time_plan(mapping, tables, str(path))
    facts: dict[str, Any] = {
        "source": str(path.name),
        "time_plan": plan.to_json(),
        "rows": {name: len(table) for name, table in tables.items()},
        "warnings": table_warnings(tables, plan),
    }
    if IMPRESSIONS in tables:
        facts["positives"] = int(tables[IMPRESSIONS][LABEL].sum())
        facts["slates"] = int(tables[IMPRESSIONS][SLATE_ID].nunique())
    else:
        facts["purpose"] = PREDICTOR_ONLY
        facts["warnings"].append(ONLY_A_PREDICTOR)
    if out is not None:
        with new_run(out, "data", config=config, inputs=inputs, key=key) as run:
            for name, table in tables.items():
                write_parquet(table, run.path / f"{name}.parquet")
            run.facts.update(facts)
    return facts, True


def check_folder(folder: Path) -> dict[str, Any]:
    """Check a folder of tables that are canonical already.

    Parameters
    ----------
    folder : Path
        Holds ``<table>.parquet`` for each table (ads and impressions may both be absent); with a manifest, times are
        compared with its time plan.

    Returns
    -------
    dict
        ``rows`` by table and ``warnings``.
    """
    from advprior.store.schemas import validate_tables
    from advprior.store.tables import load_time_plan, predictor_only, tables_there

    folder = Path(folder)
    fix = "advprior data check --mapping mapping.yaml --out DIR converts names and types"
    # what the manifest promises is read; without one, the files tell
    promised = (folder / MANIFEST).is_file() and not predictor_only(folder)
    names = TABLES if promised else tables_there(folder)
    tables = {name: read_parquet(folder / f"{name}.parquet", fix=fix) for name in names}
    plan = load_time_plan(folder) if (folder / MANIFEST).is_file() else None
    warnings = validate_tables(tables, plan=plan, where=str(folder), fix=fix)
    if names != TABLES:
        warnings.append(ONLY_A_PREDICTOR)
    if plan is None:
        warnings.append(
            f"{folder} has no manifest.json, so other commands refuse it; write one with "
            "advprior data check --mapping mapping.yaml --out DIR"
        )
    return {"rows": {name: len(table) for name, table in tables.items()}, "warnings": warnings}
