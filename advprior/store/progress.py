"""How far a long loop is: a bar where there is a terminal, else a forecast and a line a minute with the time left.

A log file, a notebook's server or a scheduler shows no bar, and a fit of half an hour without a line looks like one
that hangs. Every loop that may last goes through here, in both packages.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

MINUTE = 60.0  # seconds between two lines
MEASURED = 5.0  # seconds of a loop that tell how long the rest will take
LONG = 30.0  # seconds: a loop that takes less is not announced

Item = TypeVar("Item")


def duration(seconds: float) -> str:
    """A length of time in words.

    >>> duration(8), duration(75), duration(119.7), duration(290), duration(8000)
    ('8 s', '1 min 15 s', '2 min 0 s', '5 min', '2 h 13 min')
    """
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 180:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class Progress:
    """A loop of known length, as a context manager: `update` after each part.

    Parameters
    ----------
    total : int
        Parts.
    what : str
        What the loop does.
    unit : str
        What a part is.
    initial : int
        Parts that were done by an earlier process.
    every : float
        Seconds between two lines where there is no terminal.
    shown : bool
        False: count in silence.

    Examples
    --------
    >>> with Progress(3, "encode", "text") as progress:
    ...     for _ in range(3):
    ...         progress.update()
    >>> progress.done
    3
    """

    def __init__(
        self, total: int, what: str, unit: str, *, initial: int = 0, every: float = MINUTE, shown: bool = True
    ) -> None:
        from tqdm.auto import tqdm

        self.total, self.done = total, initial
        self._what, self._unit, self._every = what, unit, every
        self._initial, self._started = initial, time.monotonic()
        self._bar = tqdm(total=total, initial=initial, desc=what, unit=unit, disable=None if shown else True)
        self._announced, self._over = False, threading.Event()
        self._notes = ""
        self._teller: threading.Thread | None = None
        if self._bar.disable and shown:  # no terminal
            self._teller = threading.Thread(target=self._tell, name="progress", daemon=True)
            self._teller.start()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, parts: int = 1) -> None:
        """So many parts more are done."""
        self.done += parts
        self._bar.update(parts)
        left = self.left()
        if self._teller is None or self._announced or left is None or self.elapsed < min(MEASURED, self._every):
            return
        self._announced = True
        whole = self.elapsed + left
        if whole >= min(LONG, self._every):
            self._print(f"about {duration(whole)} in all, by the first {self.done:,} of {self.total:,} ({self._unit})")

    def note(self, text: str = "", **figures: float) -> None:
        """Show a text and figures beside the loop's progress."""
        parts = [*([text] if text else []), *(f"{name} {value:.3f}" for name, value in figures.items())]
        self._notes = "".join(f", {part}" for part in parts)
        self._bar.set_postfix_str(", ".join(parts))

    @property
    def elapsed(self) -> float:
        """Seconds since the loop began in this process."""
        return time.monotonic() - self._started

    def left(self) -> float | None:
        """Seconds that the rest will take, by what was done in this process; None where nothing was."""
        done = self.done - self._initial
        return None if done <= 0 else self.elapsed * max(self.total - self.done, 0) / done

    def close(self) -> None:
        """The loop is over, whole or not."""
        self._over.set()
        if self._teller is not None:
            self._teller.join()
        self._bar.close()

    def _tell(self) -> None:
        while not self._over.wait(self._every):
            left = self.left()
            rest = "; the time left is not measured yet" if left is None else f"; about {duration(left)} left"
            self._print(f"{self.done:,} of {self.total:,} ({self._unit}) after {duration(self.elapsed)}{rest}")

    def _print(self, text: str) -> None:
        print(f"  … {self._what}: {text}{self._notes}", file=sys.stderr, flush=True)


def tracked(items: Iterable[Item], what: str, unit: str, *, total: int | None = None) -> Iterator[Item]:
    """The items, with `Progress` on them; ``total`` where they have no length.

    >>> list(tracked([1, 2], "count", "number"))
    [1, 2]
    """
    sized: Any = items
    with Progress(len(sized) if total is None else total, what, unit) as progress:
        for item in items:
            yield item
            progress.update()
