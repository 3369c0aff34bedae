"""Where the workers of one service keep their metrics for each other: a folder that goes when the service ends.

prometheus_client reads its place from the environment when it is imported. A service that was killed could not tidy up:
the next one to start does.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_PREFIX = "advprior-metrics-"


@contextmanager
def metrics_folder(workers: int) -> Iterator[None]:
    """Set the folder for several workers, where nobody has set one; remove it at the end."""
    if workers == 1 or VARIABLE in os.environ:
        yield
        return
    root = Path(tempfile.gettempdir())
    for folder in root.glob(f"{_PREFIX}*"):
        owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists() and Path("/proc").is_dir():
            shutil.rmtree(folder, ignore_errors=True)
    own = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-")
    os.environ[VARIABLE] = own
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        shutil.rmtree(own, ignore_errors=True)
