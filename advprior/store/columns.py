"""The columns of the canonical tables, and the rule of each: what a value must be, with the code of the problem if not.

Each rule is a pandera check too, so that the schemas can be read and reused without the rest of the package.

pandera and pandas are imported inside functions: the command line imports this module.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from advprior.store.contract import (
    AD_ID,
    ADS,
    ADVERTISER_ID,
    ADVERTISERS,
    ARRIVED,
    CATEGORY,
    CLICKED,
    CLUSTER,
    CONTEXT_PREFIX,
    DEPARTMENT,
    EVENTS,
    IMPRESSION_ID,
    IMPRESSIONS,
    KIND,
    KNOWN_FROM,
    LABEL,
    LABEL_TIME,
    NAME,
    PROFILE_PREFIX,
    SLATE_ID,
    TEXT,
    TIMESTAMP,
    USER_ID,
    USERS,
    VALUE,
)

if TYPE_CHECKING:
    import pandas as pd


class Rule(NamedTuple):
    """A rule that marks bad rows, or, with ``whole``, a whole column (its type)."""

    code: str
    bad: Callable[[pd.Series], Any]
    what: str
    whole: bool = False


def is_text(column: pd.Series) -> bool:
    """Whether a column is text: ``str`` objects or a string type, missing values allowed."""
    import pandas as pd

    if isinstance(column.dtype, pd.StringDtype):
        return True
    return column.dtype == object and pd.api.types.infer_dtype(column, skipna=True) in ("string", "empty")


def _is_integer(column: pd.Series) -> bool:
    return column.dtype.kind in "iu" and not _is_extension(column)


def _is_number(column: pd.Series) -> bool:
    return column.dtype.kind in "iuf" and not _is_extension(column)


def _is_extension(column: pd.Series) -> bool:
    import pandas as pd

    return isinstance(column.dtype, pd.api.extensions.ExtensionDtype)


def _is_naive_time(column: pd.Series) -> bool:
    return column.dtype.kind == "M" and getattr(column.dtype, "tz", None) is None


def _is_time(column: pd.Series) -> bool:
    return _is_naive_time(column) or str(column.dtype) == "datetime64[us, UTC]"


def _blank(column: pd.Series) -> pd.Series:
    """Missing or only white space; distinct values are looked at, not every row."""
    empty = [value for value in column.dropna().unique() if not value.strip()]
    return column.isna() | column.isin(empty) if empty else column.isna()


def _too_large(column: pd.Series) -> Any:
    """Numbers that float32, the type of a feature, or a sum of many in it, takes for infinite."""
    import pandas as pd

    if column.dtype.kind not in "iuf":
        return pd.Series(False, index=column.index)
    return column.abs() > LARGEST


def _too_long(column: pd.Series) -> Any:
    """Texts longer than what a request may hold; distinct values are looked at, not every row."""
    import pandas as pd

    if column.dtype.kind in "iufb":
        return pd.Series(False, index=column.index)
    long = [value for value in column.dropna().unique() if isinstance(value, str) and len(value) > LONGEST]
    return column.isin(long)


def _is_request_value(column: pd.Series) -> bool:
    """Numbers, flags, decimals or text: what a request can bring and a ranker takes."""
    import pandas as pd

    if column.dtype == object:
        return pd.api.types.infer_dtype(column, skipna=True) in ("string", "empty", "decimal", "boolean")
    if isinstance(column.dtype, pd.CategoricalDtype | pd.StringDtype):
        return True
    return column.dtype.kind in "iufb"


#: Times outside stand for "unknown" or "never" (1900-01-01, 1970-01-01, 9999-12-31), and would stretch the time plan.
YEARS = (1980, 2079)
#: Largest size of a number: a thousand million of them still fit into float32.
LARGEST = 1e29
#: Most characters of an id or a context value: what the service takes in a request.
LONGEST = 1024
#: Names of profile and context columns: every store, ranker and chart takes them. Two underscores are Feast's own.
COLUMN_NAME = re.compile(r"(?!.*__)[A-Za-z][A-Za-z0-9_]*")

TEXT_TYPE = Rule("DAT004", lambda s: not is_text(s), "text", whole=True)
INTEGER_TYPE = Rule("DAT004", lambda s: not _is_integer(s), "an integer", whole=True)
NUMBER_TYPE = Rule("DAT004", lambda s: not _is_number(s), "a number", whole=True)
TIME_TYPE = Rule("DAT004", lambda s: not _is_time(s), "datetime64[us, UTC]", whole=True)
TIME_ZONE = Rule(
    "DAT009",
    _is_naive_time,
    "datetime64[us, UTC]; write the zone, or where you know it `timezone: UTC` in the mapping",
    whole=True,
)
PRESENT = Rule("DAT005", lambda s: s.isna(), "a value is missing")
NOT_BLANK = Rule("DAT005", _blank, "a value is missing or blank")
NAMED = Rule("DAT008", _blank, "no name, or a blank one")
IN_RANGE = Rule(
    "DAT017", lambda s: s.notna() & ~s.dt.year.between(*YEARS), f"not in the years {YEARS[0]} to {YEARS[1]}"
)
SHORT = Rule("DAT021", _too_long, f"longer than {LONGEST:,} characters")
UNIQUE = Rule("DAT006", lambda s: s.duplicated(), "the same key again")
ZERO_ONE = Rule("DAT010", lambda s: ~s.isin([0, 1]), "neither 0 nor 1")
FINITE = Rule("DAT013", _too_large, f"infinite, or beyond {LARGEST:g}, which features cannot hold")
REQUEST_TYPE = Rule(
    "DAT004",
    lambda s: not _is_request_value(s),
    "a number, a flag or text; of a moment give the hours or days since something",
    whole=True,
)

KEY = (TEXT_TYPE, NOT_BLANK, UNIQUE, SHORT)
REFERENCE = (TEXT_TYPE, NOT_BLANK)
OPTIONAL_TEXT = (TEXT_TYPE,)
TIME = (TIME_TYPE, TIME_ZONE, PRESENT, IN_RANGE)
OPTIONAL_TIME = (TIME_TYPE, TIME_ZONE, IN_RANGE)

#: The canonical tables: column -> rules. Types come first: a rule of values runs only where they hold.
COLUMNS: dict[str, dict[str, tuple[Rule, ...]]] = {
    USERS: {USER_ID: KEY},
    ADVERTISERS: {ADVERTISER_ID: KEY, NAME: (TEXT_TYPE, NAMED)},
    ADS: {AD_ID: KEY, ADVERTISER_ID: REFERENCE, CATEGORY: (TEXT_TYPE, NOT_BLANK)},
    EVENTS: {
        USER_ID: REFERENCE,
        TIMESTAMP: TIME,
        ADVERTISER_ID: OPTIONAL_TEXT,
        CATEGORY: OPTIONAL_TEXT,
        VALUE: (NUMBER_TYPE, PRESENT, FINITE),
    },
    IMPRESSIONS: {
        IMPRESSION_ID: (INTEGER_TYPE, UNIQUE),
        SLATE_ID: (INTEGER_TYPE,),
        USER_ID: REFERENCE,
        AD_ID: REFERENCE,
        ADVERTISER_ID: REFERENCE,
        TIMESTAMP: TIME,
        LABEL: (INTEGER_TYPE, ZERO_ONE),
    },
}
#: Columns that a table may have: exact names, and name prefixes.
OPTIONAL_COLUMNS: dict[str, dict[str, tuple[Rule, ...]]] = {
    USERS: {KNOWN_FROM: OPTIONAL_TIME},
    ADVERTISERS: {TEXT: OPTIONAL_TEXT, DEPARTMENT: OPTIONAL_TEXT},
    ADS: {DEPARTMENT: OPTIONAL_TEXT, CLUSTER: OPTIONAL_TEXT, KNOWN_FROM: OPTIONAL_TIME},
    EVENTS: {
        DEPARTMENT: OPTIONAL_TEXT,
        CLUSTER: OPTIONAL_TEXT,
        ARRIVED: OPTIONAL_TIME,
        KIND: OPTIONAL_TEXT,
        TEXT: OPTIONAL_TEXT,
    },
    IMPRESSIONS: {CLICKED: (INTEGER_TYPE, ZERO_ONE), LABEL_TIME: OPTIONAL_TIME},
}
OPEN_COLUMNS: dict[str, tuple[str, tuple[Rule, ...]]] = {
    USERS: (PROFILE_PREFIX, OPTIONAL_TEXT),
    IMPRESSIONS: (CONTEXT_PREFIX, (REQUEST_TYPE, FINITE, SHORT)),
}
#: (table, column) -> table whose column of the same name must hold the value; missing values are left out.
REFERENCES = {
    (ADS, ADVERTISER_ID): ADVERTISERS,
    (EVENTS, USER_ID): USERS,
    (EVENTS, ADVERTISER_ID): ADVERTISERS,
    (IMPRESSIONS, USER_ID): USERS,
    (IMPRESSIONS, AD_ID): ADS,
    (IMPRESSIONS, ADVERTISER_ID): ADVERTISERS,
}


def schema(table: str) -> Any:
    """The pandera schema of one canonical table.

    Parameters
    ----------
    table : str
        One of `advprior.store.contract.TABLES`.

    Returns
    -------
    pandera.pandas.DataFrameSchema
        Checks are named by their code in `PROBLEMS`; validate with ``lazy=True`` to see all of them.
    """
    import pandera.pandas as pa

    def column(rules: tuple[Rule, ...], **options: Any) -> Any:
        return pa.Column(checks=[_check(rules, i) for i in range(len(rules))], nullable=True, **options)

    columns = {name: column(rules) for name, rules in COLUMNS[table].items()}
    for name, rules in OPTIONAL_COLUMNS.get(table, {}).items():
        columns[name] = column(rules, required=False)
    if table in OPEN_COLUMNS:
        prefix, rules = OPEN_COLUMNS[table]
        columns[f"^{prefix}"] = column(rules, required=False, regex=True)
    return pa.DataFrameSchema(columns, name=table)


def _check(rules: tuple[Rule, ...], index: int) -> Any:
    """Rule ``index`` as a pandera check that passes where an earlier rule on the type already failed."""
    import pandera.pandas as pa

    rule, before = rules[index], [r for r in rules[:index] if r.whole]

    def holds(column: pd.Series) -> Any:
        if any(r.bad(column) for r in before):
            return True
        return not rule.bad(column) if rule.whole else ~rule.bad(column)

    # one failure case is enough: `validate_tables` counts the rows and shows the first ones
    return pa.Check(holds, name=f"{rule.code} {rule.what}", n_failure_cases=1, ignore_na=False)
