"""What every test and doctest shares: UTC, no hub, one thread. Set before anything heavy is imported."""

from __future__ import annotations

import os
import time

os.environ.update(
    TZ="UTC",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    # the suite may share its cores: more threads than cores make small matrices slower, not faster
    OMP_NUM_THREADS="1",
    MPLBACKEND="Agg",
)
if hasattr(time, "tzset"):  # not on Windows
    time.tzset()
