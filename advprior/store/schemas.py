"""What the five canonical tables must look like, and one error that names everything that is not so.

Someone who brings their own tables meets this file first. Each rule is a pandera check, so the schemas
can be read and reused; `validate_tables` runs them all, adds the rules between tables, and reports every
problem at once by table, column and row, in place of the first one. Vectorised: seconds for millions of rows.

pandera and pandas are imported inside functions: the command line imports this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

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
    LABEL,
    NAME,
    PROFILE_PREFIX,
    SHOWN_TABLES,
    SLATE_ID,
    TABLES,
    TEXT,
    TIMESTAMP,
    USER_ID,
    USERS,
    VALUE,
    TimePlan,
)
from advprior.store.errors import AdvpriorError

if TYPE_CHECKING:
    import pandas as pd

#: Every way a table can be wrong. Codes are stable. DAT001 (file missing) and DAT002 (file unreadable)
#: come from `advprior.store.tables`; DAT020 is the error that carries problems of more than one class; DAT04x are
#: raised by `advprior.data` (040 package missing, 041 unknown data set, 042 impossible size,
#: 043 the source is not as expected, 044 the output would replace its own source, 046 a cut-off outside the data);
#: DAT045 (a ranker asked of tables without impressions) comes from `advprior.store.tables`.
PROBLEMS = {
    "DAT003": "missing column",
    "DAT004": "wrong type",
    "DAT005": "missing value",
    "DAT006": "duplicate key",
    "DAT007": "empty table",
    "DAT008": "advertiser without a name",
    "DAT009": "timestamps without a time zone",
    "DAT010": "label is not 0 or 1",
    "DAT011": "unknown reference",
    "DAT012": "advertiser differs from the ad's",
    "DAT013": "value is not finite",
    "DAT014": "missing table",
}
SEVERAL = "DAT020"

#: How many rows and values of a problem are shown; the rest is counted.
SHOWN = 5


@dataclass(frozen=True)
class Problem:
    """One class of problem in one column.

    Parameters
    ----------
    code : str
        Key of `PROBLEMS`.
    table, column : str
        Where; an empty column means the whole table.
    what : str
        The problem in words, with the first values found.
    rows : tuple of int
        First row numbers, counted from 0; empty when the problem is not one of rows.
    count : int
        Number of rows concerned (0 when not one of rows).
    """

    code: str
    table: str
    column: str
    what: str
    rows: tuple[int, ...] = ()
    count: int = 0

    def __str__(self) -> str:
        place = f"{self.table}.{self.column}" if self.column else self.table
        line = f"{place}: {self.what}"
        if self.count:
            more = ", …" if self.count > len(self.rows) else ""
            noun = "row" if self.count == 1 else "rows"
            line += f" [{self.count:,} {noun}: {', '.join(map(str, self.rows))}{more}]"
        return line


class TablesError(AdvpriorError):
    """All that is wrong with a set of tables; `problems` holds the parts."""

    def __init__(self, problems: Sequence[Problem], *, where: str | None = None, fix: str | None = None) -> None:
        self.problems = tuple(problems)
        codes = {problem.code for problem in problems}
        if len(problems) == 1:
            code, what = problems[0].code, f"{PROBLEMS[problems[0].code]}: {problems[0]}"
        else:
            code = codes.pop() if len(codes) == 1 else SEVERAL
            lines = [f"\n    {p.code} {PROBLEMS[p.code]}: {p}" for p in problems]
            what = f"{len(problems)} problems in the tables (rows are counted from 0)" + "".join(lines)
        super().__init__(code, what, where=where, fix=fix)


# -- rules of one column -----------------------------------------------------------------------------
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


def _infinite(column: pd.Series) -> pd.Series:
    import numpy as np

    infinite: pd.Series = np.isinf(column)
    return infinite


TEXT_TYPE = Rule("DAT004", lambda s: not is_text(s), "text", whole=True)
INTEGER_TYPE = Rule("DAT004", lambda s: not _is_integer(s), "an integer", whole=True)
NUMBER_TYPE = Rule("DAT004", lambda s: not _is_number(s), "a number", whole=True)
TIME_TYPE = Rule("DAT004", lambda s: not _is_time(s), "datetime64[us, UTC]", whole=True)
TIME_ZONE = Rule("DAT009", _is_naive_time, "datetime64[us, UTC]", whole=True)
PRESENT = Rule("DAT005", lambda s: s.isna(), "a value is missing")
NOT_BLANK = Rule("DAT005", _blank, "a value is missing or blank")
NAMED = Rule("DAT008", _blank, "no name, or a blank one")
UNIQUE = Rule("DAT006", lambda s: s.duplicated(), "the same key again")
ZERO_ONE = Rule("DAT010", lambda s: ~s.isin([0, 1]), "neither 0 nor 1")
FINITE = Rule("DAT013", _infinite, "infinite")

KEY = (TEXT_TYPE, NOT_BLANK, UNIQUE)
REFERENCE = (TEXT_TYPE, NOT_BLANK)
OPTIONAL_TEXT = (TEXT_TYPE,)
TIME = (TIME_TYPE, TIME_ZONE, PRESENT)

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
#: Columns that may be there: exact names, and name prefixes.
OPTIONAL_COLUMNS: dict[str, dict[str, tuple[Rule, ...]]] = {
    ADVERTISERS: {TEXT: OPTIONAL_TEXT},
    EVENTS: {TEXT: OPTIONAL_TEXT},
}
OPEN_COLUMNS: dict[str, tuple[str, tuple[Rule, ...]]] = {
    USERS: (PROFILE_PREFIX, OPTIONAL_TEXT),
    IMPRESSIONS: (CONTEXT_PREFIX, ()),
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

    # one failure case is enough: `_column_problem` counts the rows and shows the first ones
    return pa.Check(holds, name=f"{rule.code} {rule.what}", n_failure_cases=1, ignore_na=False)


# -- validation --------------------------------------------------------------------------------------
def validate_tables(
    tables: Mapping[str, pd.DataFrame],
    *,
    plan: TimePlan | None = None,
    where: str | None = None,
    fix: str | None = None,
    sources: Mapping[tuple[str, str], str] | None = None,
    also: Sequence[Problem] = (),
) -> list[str]:
    """Check all canonical tables, alone and against each other.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        All five tables by name; ads and impressions may both be absent where only a predictor is measured.
        A table that is there must have rows.
    plan : TimePlan, optional
        Times outside it give a warning.
    where, fix : str, optional
        Passed on to the error.
    sources : mapping, optional
        ``(table, column)`` -> where a mapping took the column from, shown beside its problems.
    also : sequence of Problem
        Problems found on the way here, to be reported with the others.

    Returns
    -------
    list of str
        Warnings: what is allowed but worth a look.

    Raises
    ------
    TablesError
        With every problem found. Its code is the problems' own when they share one, else ``DAT020``.
    """
    problems = list(also)
    told = {(p.code, p.table, p.column) for p in also}
    for name in TABLES:
        if name in tables:
            problems += [p for p in _table_problems(name, tables[name]) if (p.code, p.table, p.column) not in told]
        elif name not in SHOWN_TABLES or any(shown in tables for shown in SHOWN_TABLES):
            problems.append(
                Problem(
                    "DAT014",
                    name,
                    "",
                    "ads and impressions come together or not at all"
                    if name in SHOWN_TABLES
                    else "every data set has it",
                )
            )
    broken = {(p.table, p.column) for p in problems if p.code in ("DAT003", "DAT004", "DAT007")}
    broken |= {(p.table, p.column) for p in problems if p.code == "DAT006" and p.table == ADS}
    problems += _reference_problems(tables, broken)
    if problems:
        notes = sources or {}
        problems = [
            Problem(p.code, p.table, p.column, f"{p.what} ({notes[p.table, p.column]})", p.rows, p.count)
            if (p.table, p.column) in notes
            else p
            for p in problems
        ]
        raise TablesError(problems, where=where, fix=fix)
    return table_warnings(tables, plan)


def _table_problems(name: str, table: pd.DataFrame) -> list[Problem]:
    """Run the pandera schema of one table and turn what failed into problems."""
    from pandera.errors import SchemaErrors

    missing = [column for column in COLUMNS[name] if column not in table.columns]
    problems = [missing_column(name, column, table.columns) for column in missing]
    if len(table) == 0:
        return [*problems, Problem("DAT007", name, "", "no rows")]
    try:
        schema(name).validate(table, lazy=True)
    except SchemaErrors as errors:
        # a missing column is told above, with the columns that are there
        known = {f"{rule.code} {rule.what}": rule for rules in _all_rules(name) for rule in rules}
        cases = errors.failure_cases
        for column, check in dict.fromkeys(zip(cases["column"], cases["check"], strict=True)):
            if check in known:
                problems.append(_column_problem(name, table[column], known[check]))
            elif column not in missing and check != "column_in_dataframe":
                problems.append(Problem("DAT004", name, str(column), str(check)))
    return problems


def missing_column(table: str, column: str, there: Iterable[object]) -> Problem:
    """The problem of a column that is not among those ``there``."""
    return Problem("DAT003", table, column, f"no such column; there are {', '.join(map(str, there)) or 'none'}")


def _all_rules(table: str) -> list[tuple[Rule, ...]]:
    rules = [*COLUMNS[table].values(), *OPTIONAL_COLUMNS.get(table, {}).values()]
    if table in OPEN_COLUMNS:
        rules.append(OPEN_COLUMNS[table][1])
    return rules


def _column_problem(table: str, column: pd.Series, rule: Rule) -> Problem:
    import pandas as pd

    name = str(column.name)
    if rule.whole:
        found = str(column.dtype)
        if column.dtype == object:
            found = f"{pd.api.types.infer_dtype(column, skipna=True)} objects"
        return Problem(rule.code, table, name, f"found {found}, expected {rule.what}")
    return _rows_problem(rule.code, table, column, rule.bad(column), rule.what)


def _rows_problem(code: str, table: str, column: pd.Series, bad: pd.Series, what: str) -> Problem:
    import numpy as np

    rows = np.flatnonzero(np.asarray(bad, dtype=bool))
    values = list(dict.fromkeys(repr(v) for v in column.iloc[rows[:SHOWN]].tolist()))
    return Problem(
        code, table, str(column.name), f"{what}: {', '.join(values)}", tuple(map(int, rows[:SHOWN])), len(rows)
    )


def _reference_problems(tables: Mapping[str, pd.DataFrame], broken: set[tuple[str, str]]) -> list[Problem]:
    """Rules between tables, where both sides are sound enough to compare."""

    def sound(table: str, *columns: str) -> bool:
        return (
            table in tables and (table, "") not in broken and all((table, column) not in broken for column in columns)
        )

    problems = []
    for (name, column), target in REFERENCES.items():
        if not (sound(name, column) and sound(target, column)):
            continue
        values = tables[name][column]
        bad = values.notna() & ~values.isin(tables[target][column])
        if bad.any():
            problems.append(_rows_problem("DAT011", name, values, bad, f"not in {target}"))
    if sound(ADS, AD_ID, ADVERTISER_ID) and sound(IMPRESSIONS, AD_ID, ADVERTISER_ID):
        ads, shown = tables[ADS], tables[IMPRESSIONS]
        owner = shown[AD_ID].map(ads.set_index(AD_ID)[ADVERTISER_ID])
        bad = owner.notna() & shown[ADVERTISER_ID].notna() & (owner != shown[ADVERTISER_ID])
        if bad.any():
            problems.append(
                _rows_problem("DAT012", IMPRESSIONS, shown[ADVERTISER_ID], bad, "ads has another advertiser")
            )
    return problems


def table_warnings(tables: Mapping[str, pd.DataFrame], plan: TimePlan | None) -> list[str]:
    """What is allowed in valid tables but rarely meant; times are compared with ``plan`` when given."""
    found = []
    there = [name for name in TABLES if name in tables]
    for name in there:
        known = {*COLUMNS[name], *OPTIONAL_COLUMNS.get(name, {})}
        prefix = OPEN_COLUMNS[name][0] if name in OPEN_COLUMNS else None
        extra = [c for c in tables[name] if c not in known and not (prefix and str(c).startswith(prefix))]
        if extra:
            found.append(f"{name}: unknown columns are ignored: {', '.join(map(str, extra))}")
    doubled = int(tables[ADVERTISERS][NAME].duplicated().sum())
    if doubled:
        found.append(
            f"advertisers.name: {doubled:,} names occur again; a language model cannot tell their owners apart"
        )
    if plan is None:
        return found
    for name in (EVENTS, IMPRESSIONS):
        if name not in there:
            continue
        times = tables[name][TIMESTAMP]
        outside = int(((times < plan.start) | (times >= plan.end)).sum())
        if outside:
            found.append(
                f"{name}.{TIMESTAMP}: {outside:,} of {len(times):,} rows lie outside the time plan "
                f"[{plan.start.isoformat()}, {plan.end.isoformat()}); the data span {times.min()} to {times.max()}"
            )
    if IMPRESSIONS not in there:
        return found
    times = tables[IMPRESSIONS][TIMESTAMP]
    spans = {
        "train": (plan.finetune_end, plan.train_end),
        "validation": (plan.train_end, plan.valid_end),
        "test": (plan.valid_end, plan.end),
    }
    for split, (begin, end) in spans.items():
        if not ((times >= begin) & (times < end)).any():
            found.append(f"impressions: none in the {split} period [{begin.isoformat()}, {end.isoformat()})")
    return found
