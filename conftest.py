"""What every test and doctest shares: UTC, no hub, one thread unless told. Set before anything heavy is imported."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import time
import warnings

from advprior.store.scratch import scratch_folder

os.environ.update(
    TZ="UTC",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
)
# encodings of this run's code alone; removed when it ends, or by the next run where it was killed
if "ADVPRIOR_ENCODINGS" not in os.environ:
    os.environ["ADVPRIOR_ENCODINGS"] = str(scratch_folder("encodings"))
# the suite may share its cores: more threads than cores make small matrices slower, not faster; from outside, e.g.
# OMP_NUM_THREADS=4 make test, another number is tried
os.environ.setdefault("OMP_NUM_THREADS", "1")
# threads that spin while they wait double the CPU time of two (measured), and stall each other on a busy machine
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if hasattr(time, "tzset"):  # not on Windows
    time.tzset()


def _ignore_open_files() -> None:
    """Feast's metrics keep files open; the interpreter takes a filter over only when something warns."""
    warnings.simplefilter("ignore", ResourceWarning)
    warnings.warn("files of prometheus_client stay open", ResourceWarning, stacklevel=1)


def _clear_duckdb() -> None:
    """Let duckdb drop what it holds of Python while there is a Python.

    It does so when its module goes; where something keeps the module to the end, its C++ destructors come after the
    interpreter, and on Python 3.14 abort the process (duckdb-python issue 531).
    """
    for name in ("duckdb", "_duckdb"):
        if name in sys.modules:
            vars(sys.modules[name]).pop("_clean_default_connection", None)


def pytest_configure() -> None:
    """Examples that take long to draw or to run on a busy machine are no fault of a test: no deadline by the clock."""
    from hypothesis import HealthCheck, settings

    # before Feast, which makes whoever is imported after it count in files that all services of a process share
    with contextlib.suppress(ImportError):
        import prometheus_client  # noqa: F401

    settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("busy")


def pytest_unconfigure() -> None:
    """Leave quietly: what Feast still holds at exit would be listed after the tests' last line."""
    atexit.register(_ignore_open_files)
    atexit.register(_clear_duckdb)
