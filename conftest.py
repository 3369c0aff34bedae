"""What every test and doctest shares: UTC, no hub, one thread unless told. Set before anything heavy is imported."""

from __future__ import annotations

import atexit
import os
import time
import warnings

os.environ.update(
    TZ="UTC",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
)
# the suite may share its cores: more threads than cores make small matrices slower, not faster; from outside, e.g.
# OMP_NUM_THREADS=4 make test, another number is tried
os.environ.setdefault("OMP_NUM_THREADS", "1")
if hasattr(time, "tzset"):  # not on Windows
    time.tzset()


def _ignore_open_files() -> None:
    """Feast's metrics keep files open; the interpreter takes a filter over only when something warns."""
    warnings.simplefilter("ignore", ResourceWarning)
    warnings.warn("files of prometheus_client stay open", ResourceWarning, stacklevel=1)


def pytest_unconfigure() -> None:
    """Leave quietly: what Feast still holds at exit would be listed after the tests' last line."""
    atexit.register(_ignore_open_files)
