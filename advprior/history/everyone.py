"""Everyone's histories, some users at a time: in memory, or on a disk where no process holds more than it works on.

`advprior.history.histories.Histories` holds all of them and is its own answer; `advprior.history.stored` reads from
files what is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from advprior.history.histories import Histories
from advprior.store.arrays import Int


class Everyone(Protocol):
    """Histories of U users.

    Attributes
    ----------
    users : tuple of str
        Ids of all of them, in order.
    """

    @property
    def users(self) -> tuple[str, ...]:
        """Ids of all users, in order."""

    def __len__(self) -> int: ...

    def of(self, users: Int) -> tuple[Histories, Int]:
        """Histories that hold some users [n], ascending, and their numbers there [n].

        What is known of everyone comes with them (`advprior.history.subset.Part`).
        """

    def blocks(self) -> Iterator[Histories]:
        """All histories in the order of users, some users at a time."""
