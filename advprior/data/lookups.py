"""What a user's own further tables say of products and of categories: words, categories and departments of events.

A log of events often holds a product's number and nothing else; the words, which catalog texts and prompts are made of,
stand in a table of products, and what a category belongs to in one of categories. Both are joined while a user's files
are read: canonical tables hold the result. Such a table has no times: bring it as it was known, for a category that was
renamed later is renamed in all of the past.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from advprior.data.conversion_types import canonical_column
from advprior.store.contract import ADS, ADVERTISER_ID, ADVERTISERS, CATEGORY, DEPARTMENT, EVENTS, TEXT
from advprior.store.problems import Problem

if TYPE_CHECKING:
    import pandas as pd

PRODUCTS, CATEGORIES = LOOKUPS = ("products", "categories")
PRODUCT_ID = "product_id"
#: Key of each table, and what it may say.
KEYS = {PRODUCTS: PRODUCT_ID, CATEGORIES: CATEGORY}
SAYS = {PRODUCTS: (TEXT, CATEGORY, DEPARTMENT), CATEGORIES: (DEPARTMENT,)}


def canonical_lookup(name: str, raw: pd.DataFrame, columns: dict[str, str]) -> tuple[pd.DataFrame, list[Problem]]:
    """One of the two tables under canonical names, and what is wrong with it.

    Parameters
    ----------
    name : str
    raw : DataFrame
        The user's file.
    columns : dict of str to str
        Canonical column -> column of the file; where one is left out, a column of that name is taken if it is there.

    Returns
    -------
    DataFrame
        Each key once, with what the table says of it.
    list of Problem
        A stated column that is missing (``DAT003``), a key that is missing (``DAT005``) or comes twice (``DAT006``).
    """
    from advprior.store.problems import rows_problem
    from advprior.store.schemas import missing_column

    key = KEYS[name]
    wanted = {column: columns.get(column, column) for column in (key, *SAYS[name])}
    required = {key, *columns}
    missing = [c for c, source in wanted.items() if c in required and source not in raw.columns]
    if missing:
        return raw[[]].iloc[:0], [missing_column(name, column, raw.columns) for column in missing]
    taken = {column: source for column, source in wanted.items() if source in raw.columns}
    table = raw[list(taken.values())].set_axis(list(taken), axis=1).reset_index(drop=True)
    for column in table:
        table[column] = canonical_column(str(column), table[column], None).astype(object)
    blank, twice = table[key].isna(), table[key].notna() & table[key].duplicated()
    problems = [rows_problem("DAT005", name, table[key], blank, "a value is missing")] if blank.any() else []
    problems += [rows_problem("DAT006", name, table[key], twice, "the same key again")] if twice.any() else []
    return table[~(blank | twice)].set_index(key), problems


def look_up(tables: dict[str, pd.DataFrame], lookups: dict[str, pd.DataFrame]) -> None:
    """Fill what events and ads lack, in place: of an event by its product, then of either by its category."""
    events = tables[EVENTS]
    if PRODUCTS in lookups and PRODUCT_ID in events:
        for column in lookups[PRODUCTS]:
            _fill(events, str(column), events[PRODUCT_ID].astype(object).map(lookups[PRODUCTS][column]))
    if PRODUCT_ID in events:
        tables[EVENTS] = events = events.drop(columns=PRODUCT_ID)
    if CATEGORIES in lookups:
        for table in (table for name, table in tables.items() if name in (EVENTS, ADS) and CATEGORY in table):
            _fill(table, DEPARTMENT, table[CATEGORY].astype(object).map(lookups[CATEGORIES][DEPARTMENT]))


def _fill(table: pd.DataFrame, column: str, values: pd.Series[Any]) -> None:
    """What a table says itself stands."""
    own = table[column].astype(object) if column in table else values
    table[column] = own.where(own.notna(), values).astype(object)


def coverage(tables: dict[str, pd.DataFrame]) -> dict[str, float]:
    """Shares of rows that texts and departments are made of, as far as the tables have any.

    >>> import pandas as pd
    >>> events = pd.DataFrame({"advertiser_id": ["a", "a", None], "text": ["Green Tea", None, "x"]})
    >>> coverage({"advertisers": pd.DataFrame({"advertiser_id": ["a"]}), "events": events})
    {'events.text': 0.5}
    """
    events = tables[EVENTS]
    parts = {EVENTS: events[events[ADVERTISER_ID].notna()], **{n: tables[n] for n in (ADVERTISERS, ADS) if n in tables}}
    columns = ((EVENTS, TEXT), (EVENTS, DEPARTMENT), (ADS, DEPARTMENT), (ADVERTISERS, TEXT), (ADVERTISERS, DEPARTMENT))
    return {
        f"{name}.{column}": float(_present(parts[name][column]).mean())
        for name, column in columns
        if name in parts and column in parts[name] and len(parts[name])
    }


def coverage_line(shares: dict[str, float]) -> str:
    """The same for a reader; empty where there is nothing to say.

    >>> coverage_line({"events.text": 0.5, "ads.department": 1.0})
    'texts and departments: events.text 50 %, ads.department 100 % of rows'
    """
    parts = [f"{name} {100 * share:.0f} %" for name, share in shares.items()]
    return f"texts and departments: {', '.join(parts)} of rows" if parts else ""


def coverage_warnings(tables: dict[str, pd.DataFrame], shares: dict[str, float]) -> list[str]:
    """A warning where events have departments and ads have none."""
    if ADS not in tables or not shares.get(f"{EVENTS}.{DEPARTMENT}") or shares.get(f"{ADS}.{DEPARTMENT}"):
        return []
    return [
        "events have departments and ads have none, so rankers count none: map a department of ads, or a table of "
        "categories"
    ]


def _present(column: pd.Series[Any]) -> pd.Series[Any]:
    """Neither missing nor blank."""
    return column.notna() & (column.astype(object).astype(str).str.strip() != "")
