"""What the five canonical tables must look like, and one error that names everything that is not so.

Someone who brings their own tables meets this file first. `validate_tables` runs the rules of
`advprior.store.columns`, adds those between columns and tables (`advprior.store.relations`), and reports every
problem at once by table, column and row, in place of the first one. Vectorised: seconds for millions of rows.

pandera and pandas are imported inside functions: the command line imports this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from advprior.store.columns import (
    COLUMN_NAME,
    COLUMNS,
    OPEN_COLUMNS,
    OPTIONAL_COLUMNS,
    Rule,
    schema,
)
from advprior.store.contract import (
    ADS,
    ADVERTISERS,
    EVENTS,
    IMPRESSIONS,
    LABEL_DELAY,
    NAME,
    SHOWN_TABLES,
    TABLES,
    TIMESTAMP,
    TimePlan,
)
from advprior.store.problems import EARLIER, Earlier, Problem, TablesError, rows_problem
from advprior.store.relations import existence_warnings, relation_problems

if TYPE_CHECKING:
    import pandas as pd


def validate_tables(
    tables: Mapping[str, pd.DataFrame],
    *,
    plan: TimePlan | None = None,
    label_delay: timedelta = LABEL_DELAY,
    where: str | None = None,
    fix: str | None = None,
    earlier: Earlier = EARLIER,
) -> list[str]:
    """Check all canonical tables, alone and against each other.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        All five tables by name; ads and impressions may both be absent where only a predictor is measured.
        A table that is there must have rows.
    plan : TimePlan, optional
        Times outside it give a warning.
    label_delay : timedelta
        How long after its impression a label is complete; a ``label_time`` beyond it is a problem.
    where, fix : str, optional
        Passed on to the error.
    earlier : Earlier
        What an earlier step knows of the columns.

    Returns
    -------
    list of str
        Warnings: what is allowed but worth a look.

    Raises
    ------
    TablesError
        With every problem. Its code is the problems' own when they share one, else ``DAT020``.
    """
    problems = list(earlier.problems)
    reported = {(p.code, p.table, p.column) for p in problems}
    for name in TABLES:
        if name in tables:
            problems += [p for p in _table_problems(name, tables[name]) if (p.code, p.table, p.column) not in reported]
        elif name not in SHOWN_TABLES or any(shown in tables for shown in SHOWN_TABLES):
            together = name in SHOWN_TABLES
            what = "ads and impressions come together or not at all" if together else "every data set has it"
            problems.append(Problem("DAT014", name, "", what))
    broken = {(p.table, p.column) for p in problems if p.code in ("DAT003", "DAT004", "DAT007", "DAT009")}
    broken |= {(p.table, p.column) for p in problems if p.code == "DAT006" and p.table == ADS}
    problems += relation_problems(tables, broken, label_delay)
    if problems:
        raise TablesError([_with_source(p, earlier.sources) for p in problems], where=where, fix=fix)
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
    columns = [str(column) for column in table.columns if prefix and str(column).startswith(prefix)]
    what = "its name must be letters, digits and single underscores; give it another one on the left in the mapping"
    problems = [Problem("DAT015", name, column, what) for column in columns if not COLUMN_NAME.fullmatch(column)]
    what = "another column has this name but for upper and lower case, which a store takes for the same"
    lower = [column.lower() for column in columns]
    twice = [column for place, column in enumerate(columns) if column.lower() in lower[:place]]
    return problems + [Problem("DAT015", name, column, what) for column in twice]


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
    return rows_problem(rule.code, table, column, rule.bad(column), rule.what)


def table_warnings(tables: Mapping[str, pd.DataFrame], plan: TimePlan | None) -> list[str]:
    """What is allowed in valid tables but rarely meant; times are compared with ``plan`` when given."""
    warnings = _unknown_columns(tables)
    doubled = int(tables[ADVERTISERS][NAME].duplicated().sum())
    if doubled:
        warnings.append(
            f"advertisers.name: {doubled:,} names occur again; a language model cannot tell their owners apart"
        )
    warnings += existence_warnings(tables)
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
