"""What a process has spent so far: time, processor time and memory, as the operating system counts them."""

from __future__ import annotations

import os
import resource
import sys
import time


class Stopwatch:
    """Wall and processor time since it was made."""

    def __init__(self) -> None:
        self._started, self._worked = time.time(), cpu_seconds()

    def spent(self) -> dict[str, float]:
        """``seconds`` and ``cpu_seconds`` so far, as a manifest holds them."""
        return {
            "seconds": round(time.time() - self._started, 2),
            "cpu_seconds": round(cpu_seconds() - self._worked, 2),
        }


def cpu_seconds() -> float:
    """Processor time so far of this process, all its threads, and the children that it waited for."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def peak_memory_mb() -> float:
    """Peak resident memory of this process so far, MB (Linux counts in KiB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def machine_memory_gb() -> float | None:
    """Memory of this machine, GB; None where it does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (ValueError, OSError, AttributeError):
        return None
