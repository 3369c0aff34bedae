"""What all tests share."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """Modules and collected tests stay to the end: no later search for garbage looks through them again."""
    gc.collect()
    gc.freeze()
