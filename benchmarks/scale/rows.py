"""What every row of `make bench-scale` shares: lines of figure and bound, and what a child process cost.

    rows = Rows("frame")
    cost = run_child([sys.executable, "-m", "advprior", "rank", "frame", ...])
    rows.at_most("peak memory of 10 million impressions", cost.peak_gb, 6, "GB")
    sys.exit(rows.exit_code)

Memory and CPU-seconds are the operating system's own: what `os.wait4` says of a child that has ended, with the children
that it waited for in its CPU-seconds. The peak is that of the largest single process among them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# Linux counts ru_maxrss in KiB, macOS in bytes
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024
# A child starts with the peak of who started it, until it is another program: a bare interpreter stands in between.
_LAUNCHER = """\
import json, os, sys
job = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(job, 0)
with os.fdopen(int(sys.argv[1]), "w") as pipe:
    json.dump([usage.ru_maxrss, usage.ru_utime + usage.ru_stime, os.waitstatus_to_exitcode(status)], pipe)
"""


@dataclass
class Rows:
    """Checks of one row of the table, each printed as it is made.

    Parameters
    ----------
    name : str
        Stands first in every line.
    """

    name: str
    missed: list[str] = field(default_factory=list)

    def check(self, what: str, figure: str, bound: str, ok: bool) -> bool:
        """Print ``NAME  what  figure  bound  ok|MISSED``; returns ``ok``."""
        print(f"{self.name:<12}  {what:<64}  {figure:>16}  {bound:>16}  {'ok' if ok else 'MISSED'}", flush=True)
        if not ok:
            self.missed.append(what)
        return ok

    def at_most(self, what: str, value: float, bound: float, unit: str = "") -> bool:
        """A figure that may not exceed a bound; one that is not a number misses it."""
        return self.check(what, f"{value:.3g} {unit}".strip(), f"<= {bound:.3g} {unit}".strip(), value <= bound)

    def at_least(self, what: str, value: float, bound: float, unit: str = "") -> bool:
        """A figure that may not fall below a bound; one that is not a number misses it."""
        return self.check(what, f"{value:,.5g} {unit}".strip(), f">= {bound:,.5g} {unit}".strip(), value >= bound)

    def note(self, what: str, figure: str) -> None:
        """A figure without a bound, for the reader."""
        print(f"{self.name:<12}  {what:<64}  {figure:>16}", flush=True)

    @property
    def exit_code(self) -> int:
        """1 where a check was missed."""
        return int(bool(self.missed))


@dataclass(frozen=True)
class Cost:
    """What a child process cost.

    Attributes
    ----------
    peak_gb : float
        Peak resident memory of 1e9 bytes, of the largest process among the child and those it waited for.
    cpu_s : float
        User and system time.
    exit_code : int
        Negative: ended by that signal, as by the kernel for want of memory.
    """

    peak_gb: float
    cpu_s: float
    exit_code: int = 0


def run_child(
    command: Sequence[object], *, env: Mapping[str, str] | None = None, check: bool = True, quiet: bool = True
) -> Cost:
    """Run a command in a process of its own and measure it.

    Parameters
    ----------
    command : sequence
        Program and arguments; anything that is not text is made text.
    env : mapping, optional
        Added to the environment.
    check : bool
        Raise where it fails; else the caller looks at `Cost.exit_code`.
    quiet : bool
        Drop its standard output; errors are always shown.

    Raises
    ------
    subprocess.CalledProcessError
        When it fails and ``check`` is set.

    Examples
    --------
    >>> cost = run_child([sys.executable, "-c", "bytearray(200_000_000)"])
    >>> cost.exit_code, cost.peak_gb > 0.2
    (0, True)
    """
    words = [str(word) for word in command]
    sys.stdout.flush()
    reader, writer = os.pipe()
    launcher = [sys.executable, "-S", "-E", "-c", _LAUNCHER, str(writer), *words]
    output = subprocess.DEVNULL if quiet else None
    with os.fdopen(reader) as pipe:
        try:
            subprocess.run(launcher, check=True, stdout=output, env={**os.environ, **(env or {})}, pass_fds=[writer])
        finally:
            os.close(writer)
        maxrss, cpu, code = json.load(pipe)
    if check and code:
        raise subprocess.CalledProcessError(code, words)
    return Cost(maxrss * _MAXRSS_UNIT / 1e9, cpu, code)
