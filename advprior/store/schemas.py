"""What the five canonical tables must look like, and one error that names everything that is not so.

Someone who brings their own tables meets this file first. `validate_tables` runs the rules of
`advprior.store.columns`, adds those between tables, and reports every problem at once by table, column and row,
in place of the first one. Vectorised: seconds for millions of rows.

pandera and pandas are imported inside functions: the command line imports this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from advprior.store.columns import (
    COLUMN_NAME,
    COLUMNS,
    OPEN_COLUMNS,
    OPTIONAL_COLUMNS,
    REFERENCES,
    Rule,
    schema,
)
from advprior.store.contract import (
    AD_ID,
    ADS,
    ADVERTISER_ID,
    ADVERTISERS,
    EVENTS,
    IMPRESSIONS,
    NAME,
    SHOWN_TABLES,
    SLATE_ID,
    TABLES,
    TIMESTAMP,
    USER_ID,
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
    "DAT015": "column name that a store cannot take",
    "DAT016": "slate of several users",
    "DAT017": "time that stands for another thing",
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
        The problem in words, with the first values that have it.
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
        Problems of an earlier step, to be reported with the others.

    Returns
    -------
    list of str
        Warnings: what is allowed but worth a look.

    Raises
    ------
    TablesError
        With every problem. Its code is the problems' own when they share one, else ``DAT020``.
    """
    problems = list(also)
    reported = {(p.code, p.table, p.column) for p in also}
    for name in TABLES:
        if name in tables:
            problems += [p for p in _table_problems(name, tables[name]) if (p.code, p.table, p.column) not in reported]
        elif name not in SHOWN_TABLES or any(shown in tables for shown in SHOWN_TABLES):
            together = name in SHOWN_TABLES
            what = "ads and impressions come together or not at all" if together else "every data set has it"
            problems.append(Problem("DAT014", name, "", what))
    broken = {(p.table, p.column) for p in problems if p.code in ("DAT003", "DAT004", "DAT007")}
    broken |= {(p.table, p.column) for p in problems if p.code == "DAT006" and p.table == ADS}
    problems += _reference_problems(tables, broken)
    if problems:
        raise TablesError([_with_source(p, sources or {}) for p in problems], where=where, fix=fix)
    return table_warnings(tables, plan)


def _with_source(problem: Problem, sources: Mapping[tuple[str, str], str]) -> Problem:
    """The problem with the file and column that a mapping took it from, where one did."""
    source = sources.get((problem.table, problem.column))
    return replace(problem, what=f"{problem.what} ({source})") if source else problem


def _table_problems(name: str, table: pd.DataFrame) -> list[Problem]:
    """Run the pandera schema of one table and turn what failed into problems."""
    from pandera.errors import SchemaErrors

    missing = [column for column in COLUMNS[name] if column not in table.columns]
    problems = [missing_column(name, column, table.columns) for column in missing]
    problems += _name_problems(name, table)
    if len(table) == 0:
        return [*problems, Problem("DAT007", name, "", "no rows")]
    try:
        schema(name).validate(table, lazy=True)
    except SchemaErrors as errors:
        # a missing column is reported above, with the columns that the table has
        rules_by_check = {f"{rule.code} {rule.what}": rule for rules in _all_rules(name) for rule in rules}
        cases = errors.failure_cases
        for column, check in dict.fromkeys(zip(cases["column"], cases["check"], strict=True)):
            if check in rules_by_check:
                problems.append(_column_problem(name, table[column], rules_by_check[check]))
            elif column not in missing and check != "column_in_dataframe":
                problems.append(Problem("DAT004", name, str(column), str(check)))
    return problems


def _name_problems(name: str, table: pd.DataFrame) -> list[Problem]:
    """Names of profile and context columns that the store or a ranker would refuse later."""
    prefix = OPEN_COLUMNS[name][0] if name in OPEN_COLUMNS else None
    what = "its name must be letters, digits and single underscores; give it another one on the left in the mapping"
    return [
        Problem("DAT015", name, str(column), what)
        for column in table.columns
        if prefix and str(column).startswith(prefix) and not COLUMN_NAME.fullmatch(str(column))
    ]


def missing_column(table: str, column: str, present: Iterable[object]) -> Problem:
    """The problem of a column that is not among those ``present``."""
    return Problem("DAT003", table, column, f"no such column; there are {', '.join(map(str, present)) or 'none'}")


def _all_rules(table: str) -> list[tuple[Rule, ...]]:
    rules = [*COLUMNS[table].values(), *OPTIONAL_COLUMNS.get(table, {}).values()]
    if table in OPEN_COLUMNS:
        rules.append(OPEN_COLUMNS[table][1])
    return rules


def _column_problem(table: str, column: pd.Series, rule: Rule) -> Problem:
    import pandas as pd

    name = str(column.name)
    if rule.whole:
        is_object = column.dtype == object
        kind = f"{pd.api.types.infer_dtype(column, skipna=True)} objects" if is_object else str(column.dtype)
        return Problem(rule.code, table, name, f"found {kind}, expected {rule.what}")
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
    if sound(IMPRESSIONS, SLATE_ID, USER_ID):
        shown = tables[IMPRESSIONS]
        bad = shown[USER_ID] != shown.groupby(SLATE_ID)[USER_ID].transform("first")
        if bad.any():
            what = "another user's slate has this id (number them over all users, or make one text of user and slate)"
            problems.append(_rows_problem("DAT016", IMPRESSIONS, shown[SLATE_ID], bad, what))
    return problems


def table_warnings(tables: Mapping[str, pd.DataFrame], plan: TimePlan | None) -> list[str]:
    """What is allowed in valid tables but rarely meant; times are compared with ``plan`` when given."""
    warnings = _unknown_columns(tables)
    doubled = int(tables[ADVERTISERS][NAME].duplicated().sum())
    if doubled:
        warnings.append(
            f"advertisers.name: {doubled:,} names occur again; a language model cannot tell their owners apart"
        )
    return warnings if plan is None else warnings + _time_warnings(tables, plan)


def _unknown_columns(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    warnings = []
    for name in (name for name in TABLES if name in tables):
        canonical = {*COLUMNS[name], *OPTIONAL_COLUMNS.get(name, {})}
        prefix = OPEN_COLUMNS[name][0] if name in OPEN_COLUMNS else None
        extra = [c for c in tables[name] if c not in canonical and not (prefix and str(c).startswith(prefix))]
        if extra:
            warnings.append(f"{name}: unknown columns are ignored: {', '.join(map(str, extra))}")
    return warnings


def _time_warnings(tables: Mapping[str, pd.DataFrame], plan: TimePlan) -> list[str]:
    """Rows outside the plan, and splits without impressions."""
    warnings = []
    for name in (name for name in (EVENTS, IMPRESSIONS) if name in tables):
        times = tables[name][TIMESTAMP]
        outside = int(((times < plan.start) | (times >= plan.end)).sum())
        if outside:
            warnings.append(
                f"{name}.{TIMESTAMP}: {outside:,} of {len(times):,} rows lie outside the time plan "
                f"[{plan.start.isoformat()}, {plan.end.isoformat()}); the data span {times.min()} to {times.max()}"
            )
    if IMPRESSIONS not in tables:
        return warnings
    times = tables[IMPRESSIONS][TIMESTAMP]
    spans = {
        "train": (plan.finetune_end, plan.train_end),
        "validation": (plan.train_end, plan.valid_end),
        "test": (plan.valid_end, plan.end),
    }
    for split, (begin, end) in spans.items():
        if not ((times >= begin) & (times < end)).any():
            warnings.append(f"impressions: none in the {split} period [{begin.isoformat()}, {end.isoformat()})")
    return warnings
