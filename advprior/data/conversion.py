"""Read a user's own files under canonical names and types, as their mapping says.

Conversions are those that lose nothing (`advprior.data.conversion_types`): numeric ids become text, decimals numbers,
times UTC microseconds. A time without zone is refused unless the YAML states its zone, because a wrong guess moves
events across the split and leaks answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from zoneinfo import ZoneInfo

from advprior.data.conversion_types import canonical_column
from advprior.data.lookups import PRODUCTS, canonical_lookup, look_up
from advprior.data.mapping import DataMapping
from advprior.store.contract import (
    AD_ID,
    ADS,
    ADVERTISER_ID,
    ADVERTISERS,
    CATEGORY,
    CONTEXT_PREFIX,
    EVENTS,
    IMPRESSION_ID,
    IMPRESSIONS,
    NAME,
    PROFILE_PREFIX,
    TIMESTAMP,
    VALUE,
    TimePlan,
)
from advprior.store.errors import AdvpriorError
from advprior.store.tables import read_parquet

if TYPE_CHECKING:
    import pandas as pd

    from advprior.store.problems import Problem

#: Columns that `_complete` makes when neither the file has them nor the mapping names them.
MADE = {
    (ADVERTISERS, NAME),
    (ADS, CATEGORY),
    (EVENTS, CATEGORY),
    (EVENTS, VALUE),
    (IMPRESSIONS, IMPRESSION_ID),
    (IMPRESSIONS, ADVERTISER_ID),
}
#: More snapshots than hours in three years are not meant: 1m is a minute, not a month.
MOST_SNAPSHOTS = 30_000
#: The category of every ad where the files have none.
ONE_CATEGORY = "all"


class Mapped(NamedTuple):
    """A user's tables under canonical names and types, not yet validated."""

    #: A column that the file lacks is left out, one of a wrong type is left as it is.
    tables: dict[str, pd.DataFrame]
    #: (table, column) -> where it came from, for messages
    sources: dict[tuple[str, str], str]
    #: columns that the files lack, by the files' own names
    missing: list[Problem]
    #: what was made in the place of columns that the files lack
    warnings: list[str]


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
    from advprior.store.columns import COLUMNS
    from advprior.store.schemas import missing_column

    tables: dict[str, pd.DataFrame] = {}
    sources: dict[tuple[str, str], str] = {}
    missing: list[Problem] = []
    for name in mapping.tables.present():
        path = table_file(mapping, base, name)
        wanted = _wanted(mapping, name)
        raw = _with_keys(read_parquet(path))
        taken = {column: source for column, source in wanted.items() if source in raw.columns}
        # one source column may feed two canonical ones, so columns are copied, not renamed
        table = raw[list(taken.values())].set_axis(list(taken), axis=1)
        for column in table:
            table[column] = canonical_column(str(column), table[column], mapping.timezone)
        tables[name] = table
        for column, source in wanted.items():
            if source != column or column not in taken:
                sources[name, column] = f"from column {source!r} of {path.name}"
        stated = {*getattr(mapping.tables, name).columns, *(c for c in wanted if c not in COLUMNS[name])}
        missing += [
            missing_column(name, column, raw.columns)
            for column in wanted
            # what the mapping names must exist; what it leaves out may be made
            if column not in taken and (column in stated or (name, column) not in MADE)
        ]
    lookups = {}
    for name in mapping.tables.lookups():
        raw = _with_keys(read_parquet(table_file(mapping, base, name)))
        lookups[name], problems = canonical_lookup(name, raw, getattr(mapping.tables, name).columns)
        missing += problems
    missing = [p for p in missing if not (p.table == EVENTS and p.column in _said(lookups))]
    look_up(tables, lookups)
    return Mapped(tables, sources, missing, _complete(tables))


def _with_keys(raw: pd.DataFrame) -> pd.DataFrame:
    """A key that pandas wrote as its index is a column of the file like any other."""
    return raw.reset_index(level=[key for key in raw.index.names if key is not None and key not in raw.columns])


def _said(lookups: Mapping[str, pd.DataFrame]) -> set[str]:
    """Columns of events that a table of products gives."""
    return {str(column) for column in lookups.get(PRODUCTS, {})}


def table_file(mapping: DataMapping, base: Path, name: str) -> Path:
    """The user's file of one table."""
    file: str = getattr(mapping.tables, name).file
    return Path(base) / mapping.folder / file


def _wanted(mapping: DataMapping, name: str) -> dict[str, str]:
    """Canonical column -> column of the user's file, in canonical order."""
    from advprior.store.columns import COLUMNS

    table = getattr(mapping.tables, name)
    wanted = {column: table.columns.get(column, column) for column in COLUMNS[name]}
    wanted |= {column: source for column, source in table.columns.items() if column not in wanted}
    wanted |= {PROFILE_PREFIX + key: source for key, source in getattr(table, "profile", {}).items()}
    wanted |= {CONTEXT_PREFIX + key: source for key, source in getattr(table, "context", {}).items()}
    return wanted


def _complete(tables: dict[str, pd.DataFrame]) -> list[str]:
    """Make the columns of `MADE` that are missing; warnings where less can be learned for it."""
    import numpy as np

    from advprior.store.columns import is_text

    events, advertisers, warnings = tables[EVENTS], tables[ADVERTISERS], []
    if VALUE not in events:
        events[VALUE] = 1.0
    if NAME not in advertisers and ADVERTISER_ID in advertisers:
        advertisers[NAME] = advertisers[ADVERTISER_ID]
        warnings.append("advertisers: no names, so their ids stand for them; a language model learns nothing of an id")
    warnings += _complete_categories(tables)
    if IMPRESSIONS not in tables:
        return warnings
    shown, ads = tables[IMPRESSIONS], tables[ADS]
    if IMPRESSION_ID not in shown:
        shown.insert(0, IMPRESSION_ID, np.arange(len(shown), dtype="int64"))
    if ADVERTISER_ID not in shown and AD_ID in shown and {AD_ID, ADVERTISER_ID} <= set(ads):
        if is_text(ads[AD_ID]) and is_text(shown[AD_ID]):
            owner = ads.drop_duplicates(AD_ID).set_index(AD_ID)[ADVERTISER_ID]
            shown[ADVERTISER_ID] = shown[AD_ID].map(owner)
        else:  # the ids' own problem is reported
            shown[ADVERTISER_ID] = None
    return warnings


def _complete_categories(tables: dict[str, pd.DataFrame]) -> list[str]:
    """One category for everything where ads have none; no category of events where only they have none."""
    events, warnings = tables[EVENTS], []
    if ADS in tables and CATEGORY not in tables[ADS]:
        tables[ADS][CATEGORY] = ONE_CATEGORY
        warnings.append(
            f"ads: no category, so all of them are of one, {ONE_CATEGORY!r}; priors by advertiser and category say no "
            "more than those by advertiser"
        )
        if CATEGORY not in events:
            events[CATEGORY] = ONE_CATEGORY
    elif CATEGORY not in events:
        events[CATEGORY] = None
        if ADS in tables:
            warnings.append("events: no category; priors by advertiser and category have nothing to learn from")
    return warnings


def resolve_time_plan(mapping: DataMapping, tables: Mapping[str, pd.DataFrame], where: str) -> TimePlan:
    """The mapping's time plan, with ``start`` and ``end`` from the data where it has none; without one, a proposal.

    Raises
    ------
    AdvpriorError
        ``DAT009`` for a time without zone, ``CFG002`` for times out of order, ``DAT051`` where none can be proposed.
    """
    plan = mapping.time_plan
    if plan is None:
        return _proposed(tables, where)
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
                    fix="write the zone, or where you know it `timezone: UTC` (or another) in the mapping",
                )
            moment = moment.replace(tzinfo=zone)
        moments[key] = moment.astimezone(UTC)
    try:
        resolved = TimePlan(**moments, snapshot_every=plan.snapshot_every, lag=plan.lag)
    except ValueError as error:
        times_given = ", ".join(f"{key} {moment.isoformat()}" for key, moment in moments.items())
        raise AdvpriorError(
            "CFG002",
            "the time plan does not fit",
            where=f"{where}: time_plan",
            actual=times_given,
            expected=str(error),
            fix="correct time_plan in the mapping",
        ) from error
    count = (resolved.end - resolved.start) / resolved.snapshot_every
    if count > MOST_SNAPSHOTS:
        raise AdvpriorError(
            "CFG002",
            "the time plan has too many snapshots",
            where=f"{where}: time_plan.snapshot_every",
            actual=f"{count:,.0f} snapshots, one each {resolved.snapshot_every}",
            expected=f"{MOST_SNAPSHOTS:,} at most: everyone is scored at each",
            fix="write days or hours, 7d or 12h; m stands for minutes",
        )
    return resolved


def _proposed(tables: Mapping[str, pd.DataFrame], where: str) -> TimePlan:
    """A time plan that fits the data's own span."""
    from advprior.data.spans import propose_time_plan

    times = {name: tables[name][TIMESTAMP] for name in (EVENTS, IMPRESSIONS) if name in tables}
    after = timedelta(seconds=1)
    start = min(t.min() for t in times.values()).to_pydatetime()
    end = max(t.max() for t in times.values()).to_pydatetime() + after
    shown = times.get(IMPRESSIONS, times[EVENTS])
    shown_span = shown.min().to_pydatetime(), shown.max().to_pydatetime() + after
    return propose_time_plan((start, end), shown_span, lag=timedelta(hours=1), where=where)
