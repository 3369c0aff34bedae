"""The table: a figure of the GPU, the CPU's of the same run beside it, and a bound where there is one."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Table:
    """Lines, each printed as soon as it is measured.

    Attributes
    ----------
    missed : list of str
        What did not keep its bound.
    """

    missed: list[str] = field(default_factory=list)

    def heading(self, title: str) -> None:
        """A line that opens a section."""
        print(f"\n{title:<66} {'GPU':>14} {'CPU':>14}   bound", flush=True)

    def row(self, what: str, gpu: str, cpu: str = "") -> None:
        """A figure without a bound."""
        print(f"{what:<66} {gpu:>14} {cpu:>14}", flush=True)

    def at_most(self, what: str, value: float, bound: float, cpu: str = "") -> None:
        """A figure that may not exceed a bound; one that is not a number misses it."""
        ok = value <= bound
        print(f"{what:<66} {value:>14.3g} {cpu:>14}   <= {bound:g} {'ok' if ok else 'MISSED'}", flush=True)
        if not ok:
            self.missed.append(what)
