"""Worker threads with a bounded queue: what would have to wait too long is refused at once, not answered too late.

Ranking, explanations and probes have lanes of their own, so that neither waits behind the others.
"""

from __future__ import annotations

from asyncio import get_running_loop
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.exceptions import HTTPException

T = TypeVar("T")
#: Seconds after which a refused client may try again: a full queue is empty long before.
_RETRY_AFTER_S = 1


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
        self._room = None if waiting is None else threads + waiting
        self._threads = threads
        self._inside = 0  # read and written on the event loop alone

    @property
    def waiting(self) -> int:
        """Calls that wait for a thread."""
        return max(0, self._inside - self._threads)

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Call ``work`` in one of the threads.

        Raises
        ------
        HTTPException
            429, with Retry-After, where the queue is full.
        """
        if self._room is not None and self._inside >= self._room:
            raise HTTPException(429, "too many requests wait already", headers={"Retry-After": str(_RETRY_AFTER_S)})
        self._inside += 1
        future = get_running_loop().run_in_executor(self._pool, work, *arguments)
        future.add_done_callback(self._left)  # also where the client has gone, and nobody awaits it
        return await future

    def close(self) -> None:
        """End once what is inside is done."""
        self._pool.shutdown()

    def _left(self, _: object) -> None:
        self._inside -= 1
