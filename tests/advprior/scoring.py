"""`advprior score` as tests call it: options by name, Spark by its master."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from advprior.pipeline.score import ScoreOptions
from advprior.pipeline.score import score as score_run


def score(run: Path, tables: Path, out: Path, *, spark: str | None = None, **options: Any) -> bool:
    cluster = None
    if spark is not None:
        from advprior.spark.cluster import open_cluster

        cluster = partial(open_cluster, spark, run, options.get("device", "auto"), options.get("threads"))
    return score_run(run, tables, out, ScoreOptions(**options), cluster=cluster)
