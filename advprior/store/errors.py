"""One error for bad input: what, where, found against expected, and the command that fixes it.

The command line prints `AdvpriorError` without a traceback (unless ``--debug``) and exits
with `AdvpriorError.exit_code`. Codes are stable: docs and tests refer to them.
"""

from __future__ import annotations

from typing import Any


class AdvpriorError(Exception):
    """A problem that the user can fix.

    Parameters
    ----------
    code : str
        Stable code, e.g. ``DAT001`` (data), ``PRI001`` (predictors and priors),
        ``STO001`` (feature store), ``RNK001`` (ranking), ``RUN001`` (run folders), ``CFG001`` (configs).
    what : str
        What is wrong, in one sentence.
    where : str, optional
        File, table, column, row or option.
    actual, expected : str, optional
        What the input holds, and what it should hold; printed as ``found:`` and ``expected:``.
    fix : str, optional
        The command or edit that fixes it.

    Examples
    --------
    >>> print(AdvpriorError("DAT001", "a column is missing", where="events.parquet",
    ...       actual="user_id, advertiser_id", expected="timestamp", fix="map it in mapping.yaml"))
    DAT001: a column is missing
      where:    events.parquet
      found:    user_id, advertiser_id
      expected: timestamp
      fix:      map it in mapping.yaml
    """

    exit_code = 2

    def __init__(
        self,
        code: str,
        what: str,
        *,
        where: str | None = None,
        actual: str | None = None,
        expected: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.code = code
        self.what = what
        self.where = where
        self.actual = actual
        self.expected = expected
        self.fix = fix
        super().__init__(str(self))

    def __reduce__(self) -> tuple[Any, ...]:
        """As it goes to another process: made there without ``__init__``, which takes more than ``args`` holds."""
        return _made, (type(self), self.args), vars(self)

    def __str__(self) -> str:
        lines = [f"{self.code}: {self.what}"]
        details = {"where": self.where, "found": self.actual, "expected": self.expected, "fix": self.fix}
        for label, value in details.items():
            if value:
                lines.append(f"  {label + ':':<9} {value}")
        return "\n".join(lines)


def _made(kind: type[AdvpriorError], args: tuple[Any, ...]) -> AdvpriorError:
    return kind.__new__(kind, *args)
