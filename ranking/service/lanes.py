"""Worker threads with a bounded queue: what would have to wait too long is refused at once, not answered too late.

A burst may wait, as many calls as the queue has room for. Where more comes than the threads can do, and goes on to
come, a full queue would only make everybody wait: next to nothing may wait then, so that who is accepted is answered in
time.
Ranking, explanations and probes have lanes of their own, so that neither waits behind the others.
"""

from __future__ import annotations

import math
import time
from asyncio import get_running_loop
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.exceptions import HTTPException

T = TypeVar("T")
#: Seconds after which a refused client may try again: a full queue is empty long before.
_RETRY_AFTER_S = 1
#: Calls that may wait for each thread under overload, once the queue is half full and more comes than threads can do.
_OVERLOADED = 1
#: What came is forgotten at this rate: a shorter burst is none of overload.
_MEMORY_S = 0.5
#: Share of a call's time in the mean of calls' times; one call counts as so many usual ones at most.
_SHARE, _STALLED = 0.1, 4.0


def no_room() -> HTTPException:
    """429, and when to come again."""
    return HTTPException(429, "too many requests wait already", headers={"Retry-After": str(_RETRY_AFTER_S)})


class Demand:
    """How much is asked of threads, as a share of what they can do: above 1, the queue can only grow.

    Parameters
    ----------
    threads : int
        That work.
    now : callable
        A clock, in seconds.

    Examples
    --------
    >>> demand = Demand(1, lambda: 0.0)
    >>> demand.took(0.01)
    >>> for _ in range(40):
    ...     demand.came()
    >>> round(demand.share(), 2)
    0.8
    """

    def __init__(self, threads: int, now: Callable[[], float] = time.monotonic) -> None:
        self._threads, self._now = threads, now
        self._calls, self._at, self._seconds = 0.0, now(), 0.0

    def came(self) -> None:
        """Count a call, whether it is accepted or not."""
        self._calls = self._faded() + 1.0
        self._at = self._now()

    def took(self, seconds: float) -> None:
        """Take in how long a call took; one that hung, as for a store that does not answer, counts as a few."""
        if not self._seconds:
            self._seconds = seconds
        self._seconds += _SHARE * (min(seconds, _STALLED * self._seconds) - self._seconds)

    def share(self) -> float:
        """Seconds of work that come in a second, for each thread."""
        return self._faded() * self._seconds / (_MEMORY_S * self._threads)

    def _faded(self) -> float:
        return self._calls * math.exp((self._at - self._now()) / _MEMORY_S)


class Lane:
    """Threads that take calls in turn.

    Parameters
    ----------
    name : str
        Of the threads.
    threads : int
        Calls at a time.
    waiting : int, optional
        Calls that may wait; one more is refused. Any number by default.
    """

    def __init__(self, name: str, threads: int, waiting: int | None = None) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"advprior-{name}")
        self._threads, self._waiting = threads, waiting
        self._demand = Demand(threads)
        self._inside, self._overloaded = 0, False  # read and written on the event loop alone

    @property
    def waiting(self) -> int:
        """Calls that wait for a thread."""
        return max(0, self._inside - self._threads)

    @property
    def demand(self) -> float:
        """What is asked of the threads, as a share of what they can do."""
        return self._demand.share()

    def refuses(self) -> bool:
        """Whether a call has to be refused; it is counted as one that came."""
        if not self._full():
            return False
        self._demand.came()
        return True

    def _full(self) -> bool:
        if self._waiting is None or self._inside < self._threads:
            return False
        self._overloaded = self._demand.share() >= 1.0 and (self._overloaded or 2 * self.waiting >= self._waiting)
        return self.waiting >= min(self._waiting, _OVERLOADED * self._threads if self._overloaded else math.inf)

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Call ``work`` in one of the threads.

        Raises
        ------
        HTTPException
            429, with Retry-After, where the queue is full.
        """
        if self.refuses():
            raise no_room()
        self._demand.came()
        self._inside += 1
        future = get_running_loop().run_in_executor(self._pool, self._timed, work, arguments)
        future.add_done_callback(self._left)  # also where the client has gone, and nobody awaits it
        return await future

    def close(self) -> None:
        """End once what is inside is done."""
        self._pool.shutdown()

    def _timed(self, work: Callable[..., T], arguments: tuple[Any, ...]) -> T:
        begin = time.perf_counter()
        try:
            return work(*arguments)
        finally:
            self._demand.took(time.perf_counter() - begin)

    def _left(self, _: object) -> None:
        self._inside -= 1
