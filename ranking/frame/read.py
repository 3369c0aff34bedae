"""Reading a finished frame: its rows, and what each of its features is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from advprior.store.errors import AdvpriorError
from advprior.store.features import Feature, features_from_json
from advprior.store.runs import MANIFEST, read_manifest

if TYPE_CHECKING:
    import pandas as pd

STEP = "rank frame"
FRAME_FILE = "frame.parquet"  # a folder of parts, in the order of time; one file in frames of format 1
FRAME_FORMAT = (
    2  # ``facts["frame_format"]``; a frame without it is of format 1. Readers of Parquet take both for a table
)
PART_FILE = "part-{:05d}.parquet"
ROW_GROUP = 1 << 17  # rows of a part that a reader of some columns holds at a time
SPLITS = ("train", "valid", "test")
FRAME_FIX = "advprior rank frame --tables TABLES --repo FEATURE_REPO --out FRAME"


def load_frame(folder: Path) -> pd.DataFrame:
    """The rows of a finished ``advprior rank frame`` run: keys, label, split, segments and features.

    Raises
    ------
    AdvpriorError
        ``RUN001`` … ``RUN003``, ``DAT001``, ``DAT002``; ``RNK027`` when a split is empty.
    """
    return load_rows(folder)


def load_rows(folder: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """As `load_frame`, some columns alone."""
    from advprior.store.tables import read_parquet

    read_manifest(folder, step=STEP, fix=FRAME_FIX)
    path = Path(folder) / FRAME_FILE
    names = None if columns is None else list(dict.fromkeys([*columns, "split"]))
    frame = read_parquet(path, columns=names, fix=FRAME_FIX)
    empty = [name for name in SPLITS if not (frame["split"] == name).any()]
    if empty:
        raise AdvpriorError(
            "RNK027",
            "a split of the frame has no rows",
            where=str(path),
            actual=", ".join(empty),
            expected="rows in train, valid and test",
            fix="move the cuts of the time plan, then build the frame again",
        )
    return frame if columns is None else frame[list(columns)]


def column_names(folder: Path) -> list[str]:
    """Columns of a finished frame, without reading a row; none where there is no frame."""
    import pyarrow.dataset as ds

    path = Path(folder) / FRAME_FILE
    return list(ds.dataset(path, format="parquet").schema.names) if path.exists() else []


def load_features(folder: Path) -> list[Feature]:
    """The features of a finished frame, in the order of its columns.

    Raises
    ------
    AdvpriorError
        ``RUN001`` … ``RUN003``; ``RNK029`` when the manifest does not say what the features are.
    """
    manifest = read_manifest(folder, step=STEP, fix=FRAME_FIX)
    try:
        return features_from_json(manifest["facts"]["features"])
    except (KeyError, ValueError) as error:
        raise AdvpriorError(
            "RNK029",
            "the frame does not say what its features are",
            where=str(Path(folder) / MANIFEST),
            actual=str(error),
            expected="facts.features: a list of name, group, source, dtype",
            fix=f"{FRAME_FIX} --force",
        ) from error
