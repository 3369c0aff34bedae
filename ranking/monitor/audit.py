"""The frame is what was served: each feature that a ranker read online, against the frame that is built of it later.

A ranker learns from frames and is fed by the store. Where the two differ it learns something that it never sees, and no
metric offline tells. The service logs what it read of some exposures; here the same features are joined for the same
users, ads and moments, and compared cell by cell. What differs is named: the column, and why, as far as the log tells.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.arrays import Bool, Float, Int
from advprior.store.contract import AD_ID, TIMESTAMP, USER_ID
from advprior.store.features import CLOCK_SOURCE, REQUEST_SOURCE, Feature
from advprior.store.runs import manifest_digest
from advprior.store.scratch import scratch
from advprior.store.tables import write_parquet_parts
from ranking.experiment.exposures import read_exposures
from ranking.experiment.shown import AS_OF
from ranking.experiment.shown_rows import DEGRADED, ShownRows, Window, spool
from ranking.frame.read import ROW_GROUP
from ranking.frame.row_blocks import InFiles, InParquet, SomeRows, together
from ranking.frame.served import Served, ServedColumns, rows_of
from ranking.models.encoder import Encoder
from ranking.models.ranker import Ranker
from ranking.monitor.drift import frame_drifts
from ranking.monitor.findings import Drift

#: Rows whose frame is built at a time.
PART = 1 << 17
#: Of the largest value of a column: what seven digits in the log and another order of sums leave. float32 has 1.2e-7.
TOLERANCE = 2e-6
#: A difference that no row's time and no degraded answer explains.
VALUES = "other values at the same time"


@dataclass(frozen=True)
class AuditedColumn:
    """One feature, read online and joined later.

    Attributes
    ----------
    unequal : int
        Cells that differ, of ``cells``.
    largest : float
        Difference, among cells that both have.
    causes : dict of str to int
        Unequal cells by why.
    """

    name: str
    source: str
    cells: int
    unequal: int
    largest: float
    causes: dict[str, int]


@dataclass(frozen=True)
class Audit:
    """All columns of one ranker's exposures, those that differ most first."""

    ranker: str
    exposures: int
    columns: list[AuditedColumn]
    drift: list[dict[str, Any]] = field(default_factory=list)

    @property
    def cells(self) -> int:
        """Compared."""
        return sum(column.cells for column in self.columns)

    @property
    def unequal(self) -> int:
        """That differ."""
        return sum(column.unequal for column in self.columns)

    @property
    def unexplained(self) -> list[AuditedColumn]:
        """Columns with other values at the same time: a skew."""
        return [column for column in self.columns if column.causes.get(VALUES)]

    def to_json(self) -> dict[str, Any]:
        """For ``audit.json``."""
        return {
            "ranker": self.ranker,
            "exposures": self.exposures,
            "cells": self.cells,
            "unequal": self.unequal,
            "columns": [asdict(column) for column in self.columns if column.unequal],
            "equal_columns": sorted(column.name for column in self.columns if not column.unequal),
            "drift": self.drift,
        }

    def text(self) -> list[str]:
        """A few lines to read."""
        share = 1 - self.unequal / max(self.cells, 1)
        lines = [f"{self.exposures:,} exposures of ranker {self.ranker}: {share:.4%} of {self.cells:,} cells are equal"]
        for column in [one for one in self.columns if one.unequal][:10]:
            why = "; ".join(f"{count:,} {cause}" for cause, count in column.causes.items())
            lines.append(f"  {column.name}: {column.unequal:,} of {column.cells:,} differ ({why})")
        lines += [
            f"  drift of {one['name']} since training: {one['online']:.3f} online, {one['frame']:.3f} in the frame"
            for one in self.drift
        ]
        return lines


def audit(
    tables: Path, repo: Path, exposures: Path, ranker: Path, *, window: Window | None = None, frame: Path | None = None
) -> Audit:
    """`audits` of one ranker."""
    return audits(tables, repo, exposures, [ranker], window=window, frame=frame)[0]


def audits(
    tables: Path,
    repo: Path,
    exposures: Path,
    rankers: Sequence[Path],
    *,
    window: Window | None = None,
    frame: Path | None = None,
) -> list[Audit]:
    """Compare what rankers read online with the frame of the same rows; the log is read once, whoever they are.

    Parameters
    ----------
    tables, repo : Path
        What a frame would be built of.
    exposures : Path
        Log of a service that ran with ``--log-features``.
    rankers : sequence of Path
        Whose exposures.
    window : Window, optional
        Only some of them, of each. The frame of today reaches back to ``finetune_end`` and to the oldest published
        snapshot.
    frame : Path, optional
        The frame that the rankers were trained on: drift since then is measured on both sides.

    Raises
    ------
    AdvpriorError
        ``SRV021`` when no exposure of the window has features of a ranker, and what building a frame raises.
    """
    loaded = {manifest_digest(folder): Ranker.load(folder) for folder in rankers}
    with scratch("audit") as folder:
        categories = {digest: _encoder(ranker).categories for digest, ranker in loaded.items()}
        shown = spool(read_exposures(exposures), categories, folder, window)
        return [
            _Auditor(tables, repo, one, shown[digest].required(exposures), folder).audit(frame)
            for digest, one in loaded.items()
        ]


def _encoder(ranker: Ranker) -> Encoder:
    assert ranker.encoder is not None
    return ranker.encoder


@dataclass(frozen=True)
class _Auditor:
    """One ranker's rows, as they were served and as the store has them now."""

    tables: Path
    repo: Path
    ranker: Ranker
    shown: ShownRows
    folder: Path

    def audit(self, frame: Path | None) -> Audit:
        """Part by part: a part's frame is in memory, and cells that may differ."""
        cells = [_Cells(feature) for feature in self.ranker.features]
        joined = self._parts(cells)
        drift: list[dict[str, Any]] = []
        if frame is None:
            for _ in joined:
                pass
        else:
            path = self.folder / f"{self.shown.ranker}-joined.parquet"
            write_parquet_parts(joined, path, row_group_size=ROW_GROUP)
            online = SomeRows(self.shown.rows, self.shown.places)
            drift = _drift(frame, online, SomeRows(InFiles([path]), np.arange(len(online))), self.ranker)
            path.unlink()
        columns = sorted((one.column() for one in cells), key=lambda column: (-column.unequal, column.name))
        return Audit(self.shown.ranker, self.shown.exposures, columns, drift)

    def _parts(self, cells: Sequence[_Cells]) -> Iterator[pd.DataFrame]:
        """The frame of what was shown, part by part; each is compared on the way."""
        ranker, places = self.ranker, self.shown.places
        context = [f.name for f in ranker.features if f.source == REQUEST_SOURCE]
        predictors = sorted({f.predictor for f in ranker.features if f.predictor is not None})
        encoder, reading = _encoder(ranker), Served.open(self.tables, self.repo, predictors)
        for start in range(0, len(places), PART):
            shown = together(self.shown.rows, self.shown.rows.names, places[start : start + PART])
            served = reading.of(rows_of(shown[[USER_ID, AD_ID, TIMESTAMP, *context]], self.tables))
            joined = pd.DataFrame({name: served.columns.arrays[name] for name in ranker.names}, copy=False)
            online, later, causes = encoder.encode(shown), encoder.encode(joined), _Causes(shown, served)
            for i, of_feature in enumerate(cells):
                of_feature.add(online[:, i], later[:, i], causes)
            text = {name: joined[name].astype(object) for name in encoder.categories}  # of one type in all parts
            yield joined.assign(**text, **{key: shown[key] for key in (USER_ID, AD_ID, TIMESTAMP)})


@dataclass
class _Cells:
    """Cells of one feature as they are compared part by part.

    How large a difference may be depends on the column's largest value, which is not known before the end: cells that
    differ by what is known so far are looked at again.
    """

    feature: Feature
    count: int = 0
    scale: float = 0.0
    largest: float = 0.0
    gone: list[Bool] = field(default_factory=list)  # missing on one side
    difference: list[Float] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)

    def add(self, online: Float, later: Float, causes: _Causes) -> None:
        """Rows more."""
        missing = np.isnan(online), np.isnan(later)
        both = ~missing[0] & ~missing[1]
        difference = np.abs(np.where(both, online, 0.0) - np.where(both, later, 0.0))
        self.count += len(online)
        self.scale = max(self.scale, float(np.abs(later[both]).max(initial=0.0)))
        self.largest = max(self.largest, float(difference.max(initial=0.0)))
        gone = missing[0] != missing[1]
        if len(rows := np.flatnonzero(self._unequal(gone, difference))):
            self.gone.append(gone[rows])
            self.difference.append(difference[rows])
            self.causes += causes.of(self.feature, rows)

    def _unequal(self, gone: Bool, difference: Float) -> Bool:
        unequal: Bool = gone | (difference > TOLERANCE * max(self.scale, 1e-30))
        return unequal

    def column(self) -> AuditedColumn:
        """What came out."""
        causes = Counter[str]()
        if self.causes:
            unequal = self._unequal(np.concatenate(self.gone), np.concatenate(self.difference))
            causes.update(self.causes[row] for row in np.flatnonzero(unequal))
        return AuditedColumn(
            self.feature.name,
            self.feature.source,
            self.count,
            causes.total(),
            self.largest,
            dict(causes.most_common()),
        )


class _Causes:
    """Why cells differ, by the view that they come from: a row of another time, an answer that lacked something."""

    def __init__(self, shown: pd.DataFrame, served: ServedColumns) -> None:
        self._degraded, self._as_of = shown[DEGRADED].to_numpy(), shown[AS_OF].to_numpy()
        self._later = {view: available.astype(np.int64) for view, available in served.available.items()}
        self._absent = {view: np.isnat(available) for view, available in served.available.items()}
        self._read = cache(json.loads)
        self._memo: dict[tuple[str, int], str] = {}

    def of(self, feature: Feature, rows: Int) -> list[str]:
        """Of some rows, one each."""
        view = feature.source
        if view in (REQUEST_SOURCE, CLOCK_SOURCE):
            return [VALUES] * len(rows)
        for row in rows.tolist():
            if (view, row) not in self._memo:
                self._memo[view, row] = self._cause(view, row)
        return [self._memo[view, row] for row in rows.tolist()]

    def _cause(self, view: str, row: int) -> str:
        degraded = self._degraded[row]
        moments = self._read(self._as_of[row]).get(view)
        if moments is not None and view in self._later:
            absent = bool(self._absent[view][row])
            if not moments and not absent:
                return f"no row of {view} online" + (f" ({degraded})" if degraded else "")
            if moments and absent:
                return f"no row of {view} in the frame"
            if moments and int(self._later[view][row]) not in moments:
                older = max(moments) < int(self._later[view][row])
                return f"an {'older' if older else 'newer'} row of {view} online"
        return f"degraded: {degraded}" if degraded else VALUES


def _drift(frame: Path, online: SomeRows, later: SomeRows, ranker: Ranker) -> list[dict[str, Any]]:
    """Features whose drift since training is of another severity online than in the frame."""
    source = InParquet(frame)
    reference = SomeRows(source, np.flatnonzero((source.read(["split"])["split"] == "train").to_numpy()))
    gain, features = ranker.importance(), list(ranker.features)
    drifts = [frame_drifts(reference, side, features, gain) for side in (online, later)]
    pairs: list[tuple[Drift, Drift]] = list(zip(*drifts, strict=True))
    return [
        {"name": a.name, "online": a.psi, "frame": b.psi, "severity": [a.severity, b.severity]}
        for a, b in sorted(pairs, key=lambda pair: -abs(pair[0].psi - pair[1].psi))
        if a.severity != b.severity
    ]
