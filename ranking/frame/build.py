"""The point-in-time frame: one row per impression, every feature as it was then.

Feast joins scalars and pointers (`ranking.frame.join`); vectors and sparse counts are gathered by pointer afterwards
(`ranking.frame.columns`). All of it part by part, in the order of time: memory is that of a part. Then the leak checks
run over what all parts count: a frame that fails one is never written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advprior.store.contract import BASELINE_SERVICE
from advprior.store.scratch import scratch
from ranking.frame import checks
from ranking.frame.part import Request
from ranking.frame.parts import FrameParts
from ranking.frame.read import FRAME_FILE, PART_FILE, ROW_GROUP

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class FrameResult:
    """A frame and what is worth knowing of it."""

    frame: pd.DataFrame
    warnings: list[checks.Finding] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def build_frame(
    tables: Path, repo: Path, predictors: Sequence[str], *, service: str = BASELINE_SERVICE, stale: Sequence[int] = ()
) -> FrameResult:
    """The frame of every impression from ``finetune_end`` on, in memory.

    Parameters
    ----------
    tables : Path
        Canonical tables.
    repo : Path
        Feature repository, published and applied.
    predictors : sequence of str
        Whose priors to join, through their own services.
    service : str
        The baseline's service; whatever scalars it has become features, those of a user's own views too.
    stale : sequence of int
        Weeks: what the first predictor said so long before each impression becomes features too, for arms that ask
        what a prior is worth when it is old.

    Raises
    ------
    AdvpriorError
        ``STO00x`` before the join (`ranking.frame.preflight`), ``RNK00x`` after it (`ranking.frame.checks`).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with scratch("frame") as spill:
        parts = FrameParts.open(Request(tables, repo, tuple(predictors), service, tuple(stale)), spill)
        if parts.on_spark:
            out = spill / FRAME_FILE
            _write(parts, out)
            tables_of_parts = [pq.read_table(path) for path in sorted(out.iterdir())]
        else:
            tables_of_parts = list(parts)
        whole = pa.concat_tables(tables_of_parts)
    warnings, facts = parts.finish()
    return FrameResult(whole.unify_dictionaries().to_pandas(), warnings, facts)


def write_frame(
    tables: Path,
    repo: Path,
    predictors: Sequence[str],
    folder: Path,
    *,
    service: str = BASELINE_SERVICE,
    stale: Sequence[int] = (),
) -> tuple[list[checks.Finding], dict[str, Any]]:
    """The same frame as a folder of parts, ``<folder>/frame.parquet/part-00000.parquet`` and on, in the order of time.

    Readers of Parquet take such a folder for one table.

    Parameters
    ----------
    tables, repo, predictors, service, stale
        As `build_frame` takes them.
    folder : Path
        An existing run folder in the making: what a check refuses must not be kept.

    Returns
    -------
    list of Finding
        Warnings.
    dict
        Facts for the manifest.

    Raises
    ------
    AdvpriorError
        As `build_frame`.
    """
    with tempfile.TemporaryDirectory(prefix=".sorted-", dir=folder) as spill:
        parts = FrameParts.open(Request(tables, repo, tuple(predictors), service, tuple(stale)), Path(spill))
        _write(parts, folder / FRAME_FILE)
    return parts.finish()


def _write(parts: FrameParts, out: Path) -> None:
    """Write the parts of a frame: here, or on Spark's workers where the offline store is Spark."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out.mkdir()
    if parts.on_spark:
        from ranking.frame.on_spark import write_parts

        write_parts(parts, out)
        return
    for number, part in enumerate(parts):
        # no dictionary of numbers is tried: two thirds of the time, and zstd makes up for the size
        text = [field.name for field in part.schema if pa.types.is_dictionary(field.type)]
        options = {"use_dictionary": text, "compression": "zstd", "compression_level": 1}
        pq.write_table(part, out / PART_FILE.format(number), row_group_size=ROW_GROUP, **options)
