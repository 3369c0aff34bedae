"""The frame is what was served: each feature that a ranker read online, against the frame that is built of it later.

A ranker learns from frames and is fed by the store. Where the two differ it learns something that it never sees, and no
metric offline tells. The service logs what it read of some exposures; here the same features are joined for the same
users, ads and moments, and compared cell by cell. What differs is named: the column, and why, as far as the log tells.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.arrays import Bool, Float
from advprior.store.contract import AD_ID, TIMESTAMP, USER_ID
from advprior.store.errors import AdvpriorError
from advprior.store.features import CLOCK_SOURCE, REQUEST_SOURCE, Feature
from advprior.store.runs import manifest_digest
from ranking.experiment.exposures import read_exposures
from ranking.experiment.shown import AS_OF, EXPOSURE, FEATURES, to_frame
from ranking.frame.read import load_frame
from ranking.frame.served import ServedColumns, rows_of, served_columns
from ranking.models.ranker import Ranker
from ranking.monitor.drift import frame_drifts
from ranking.monitor.findings import Drift

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


@dataclass(frozen=True)
class Window:
    """Which exposures are audited.

    Parameters
    ----------
    start, end : datetime, optional
        From then on, and up to then.
    limit : int, optional
        Only so many, the newest.
    """

    start: datetime | None = None
    end: datetime | None = None
    limit: int | None = None

    def of(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of the window, in the order of time."""
        timed = [(datetime.fromisoformat(str(record["time"])), record) for record in records]
        timed.sort(key=lambda one: one[0])
        chosen = [
            record
            for time, record in timed
            if (self.start is None or time >= self.start) and (self.end is None or time < self.end)
        ]
        return chosen[-self.limit :] if self.limit else chosen


def audit(
    tables: Path, repo: Path, exposures: Path, ranker: Path, *, window: Window | None = None, frame: Path | None = None
) -> Audit:
    """Compare what a ranker read online with the frame of the same rows.

    Parameters
    ----------
    tables, repo : Path
        What a frame would be built of.
    exposures : Path
        Log of a service that ran with ``--log-features``.
    ranker : Path
        Whose exposures.
    window : Window, optional
        Only some of them. The frame of today reaches back to ``finetune_end`` and to the oldest published snapshot.
    frame : Path, optional
        The frame that the ranker was trained on: drift since then is measured on both sides.

    Raises
    ------
    AdvpriorError
        ``SRV021`` when no exposure of the window has features of this ranker, and what building a frame raises.
    """
    digest, loaded = manifest_digest(ranker), Ranker.load(ranker)
    records = [one for one in read_exposures(exposures) if one.get("ranker") == digest and one.get(FEATURES)]
    records = (window or Window()).of(records)
    shown = to_frame(records, digest)
    if not len(shown):
        raise AdvpriorError(
            "SRV021",
            "no exposure says what the ranker read",
            where=str(exposures),
            actual=f"none with features of ranker {digest}",
            expected="a log of a service that runs with --log-features",
            fix="advprior rank serve … --exposures DIR --log-features 0.01",
        )
    assert loaded.encoder is not None
    context = [f.name for f in loaded.features if f.source == REQUEST_SOURCE]
    rows = rows_of(shown[[EXPOSURE, USER_ID, AD_ID, TIMESTAMP, *context]], tables)
    predictors = sorted({f.predictor for f in loaded.features if f.predictor is not None})
    served = served_columns(rows, tables, repo, predictors)
    joined = pd.DataFrame({name: served.columns.arrays[name] for name in loaded.names}, copy=False)
    online, later = loaded.encoder.encode(shown), loaded.encoder.encode(joined)
    causes = _Causes(records, shown, served)
    columns = [_compare(feature, online[:, i], later[:, i], causes) for i, feature in enumerate(loaded.features)]
    columns.sort(key=lambda column: (-column.unequal, column.name))
    drift = [] if frame is None else _drift(frame, shown, joined, loaded)
    return Audit(digest, len(records), columns, drift)


def _compare(feature: Feature, online: Float, later: Float, causes: _Causes) -> AuditedColumn:
    gone = np.isnan(online), np.isnan(later)
    both = ~gone[0] & ~gone[1]
    difference = np.abs(np.where(both, online, 0.0) - np.where(both, later, 0.0))
    scale = float(np.abs(later[both]).max(initial=0.0))
    unequal: Bool = (gone[0] != gone[1]) | (difference > TOLERANCE * max(scale, 1e-30))
    return AuditedColumn(
        feature.name,
        feature.source,
        len(online),
        int(unequal.sum()),
        float(difference.max(initial=0.0)),
        causes.of(feature, unequal),
    )


class _Causes:
    """Why cells differ, by the view that they come from: a row of another time, an answer that lacked something."""

    def __init__(self, records: Sequence[Mapping[str, Any]], shown: pd.DataFrame, served: ServedColumns) -> None:
        of_row = shown[EXPOSURE].map({record.get("exposure_id"): i for i, record in enumerate(records)}).to_numpy()
        self._records, self._of_row = records, of_row
        self._later = {view: available.astype(np.int64) for view, available in served.available.items()}
        self._absent = {view: np.isnat(available) for view, available in served.available.items()}
        self._memo: dict[str, list[str]] = {}

    def of(self, feature: Feature, unequal: Bool) -> dict[str, int]:
        """Unequal cells by cause, most first."""
        if not unequal.any():
            return {}
        view = feature.source
        if view in (REQUEST_SOURCE, CLOCK_SOURCE):
            return {VALUES: int(unequal.sum())}
        if view not in self._memo:
            self._memo[view] = [self._cause(view, row) for row in range(len(self._of_row))]
        return dict(Counter(self._memo[view][row] for row in np.flatnonzero(unequal)).most_common())

    def _cause(self, view: str, row: int) -> str:
        record = self._records[self._of_row[row]]
        degraded = ", ".join(record.get("degraded", ()))
        moments = record.get(AS_OF, {}).get(view)
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


def _drift(frame: Path, shown: pd.DataFrame, joined: pd.DataFrame, ranker: Ranker) -> list[dict[str, Any]]:
    """Features whose drift since training is of another severity online than in the frame."""
    whole = load_frame(frame)
    reference = whole[(whole["split"] == "train").to_numpy()]
    gain, features = ranker.importance(), list(ranker.features)
    later = joined.assign(**{key: shown[key].to_numpy() for key in (USER_ID, AD_ID)}, **{TIMESTAMP: shown[TIMESTAMP]})
    online, offline = (frame_drifts(reference, side, features, gain) for side in (shown, later))
    pairs: list[tuple[Drift, Drift]] = list(zip(online, offline, strict=True))
    return [
        {"name": a.name, "online": a.psi, "frame": b.psi, "severity": [a.severity, b.severity]}
        for a, b in sorted(pairs, key=lambda pair: -abs(pair[0].psi - pair[1].psi))
        if a.severity != b.severity
    ]
