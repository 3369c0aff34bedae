"""What can be wrong with canonical tables, and the one error that names all of it.

`advprior.store.schemas` finds the problems of one table, `advprior.store.relations` those between columns and tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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
    "DAT010": "neither 0 nor 1",
    "DAT011": "unknown reference",
    "DAT012": "advertiser differs from the ad's",
    "DAT013": "value is not finite",
    "DAT014": "missing table",
    "DAT015": "column name that a store cannot take",
    "DAT016": "slate of several users",
    "DAT017": "time that stands for another thing",
    "DAT018": "times in the wrong order",
    "DAT019": "label time that does not fit its label",
    "DAT021": "text that no request can hold",
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


@dataclass(frozen=True)
class Earlier:
    """What the step before the check knows of the columns.

    Parameters
    ----------
    sources : mapping
        ``(table, column)`` -> where a mapping took the column from, shown beside its problems.
    problems : tuple of Problem
        Reported with the others.
    """

    sources: Mapping[tuple[str, str], str] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


EARLIER = Earlier()


def rows_problem(code: str, table: str, column: pd.Series, bad: pd.Series, what: str) -> Problem:
    """The problem of the rows that ``bad`` marks in a column, with their first numbers and values."""
    import numpy as np

    rows = np.flatnonzero(np.asarray(bad, dtype=bool))
    values = list(dict.fromkeys(repr(v) for v in column.iloc[rows[:SHOWN]].tolist()))
    return Problem(
        code, table, str(column.name), f"{what}: {', '.join(values)}", tuple(map(int, rows[:SHOWN])), len(rows)
    )
