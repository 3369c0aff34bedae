"""Giving memory back after a refresh: what was read once to look at it must not stay until the process ends.

A refresh reads tables and compiles trees, which takes tens of megabytes for a moment, on a thread of its own. Freed,
they stay with the allocators (glibc's arenas by thread, Arrow's pool), in pieces, and a service that runs for a year
would hold a little more each time. On the simulated year Arrow's default pool (mimalloc) kept 11 to 19 MB of a refresh,
up to some 210.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache


def settle() -> None:
    """Let Arrow allocate from the system in this process: what its own pools free, they keep.

    Call it before Arrow is imported: it reads the variable once, and its scans of files follow nothing else. Where it
    is set, somebody has chosen.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


def release_freed() -> None:
    """Hand freed memory back to the system, where the allocators can be asked to; takes some milliseconds."""
    with suppress(ImportError):
        import pyarrow as pa

        pa.default_memory_pool().release_unused()
    if (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's; None with another C library."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return trim  # type: ignore[no-any-return]
