"""Drift of features and priors: training rows against later ones, old snapshots against the newest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from advprior.store.contract import (
    AD_ID,
    AD_STATS_VIEW,
    ADVERTISER_ID,
    EVENT_TIMESTAMP,
    SNAPSHOT,
    TABLE_FILE,
    TIMESTAMP,
    USER_ID,
    prior_view,
)
from advprior.store.errors import AdvpriorError
from advprior.store.features import Feature
from advprior.store.runs import manifest_digest, read_manifest
from advprior.store.scratch import scratch
from advprior.store.tables import read_parquet
from ranking.experiment.exposures import read_exposures
from ranking.experiment.shown_rows import spool
from ranking.frame.preflight import published_predictors
from ranking.frame.read import FRAME_FIX, load_features
from ranking.frame.row_blocks import FrameSource, InFiles, InParquet, SomeRows
from ranking.frame.views import view_folder
from ranking.models.ranker import Ranker
from ranking.monitor.findings import Drift, DriftReport
from ranking.monitor.own_pace import Levels, Scale
from ranking.monitor.psi import Bins, coded, noise, psi
from ranking.monitor.severity import MODERATE, severity_of

#: That are read at a time: opening a file for each would take longer than reading it.
COLUMNS = 8
#: What a published prior says of itself, whatever ad is asked for.
SCALARS = ("entropy", "top1_log_prob")


def drift_of(
    name: str,
    kind: Literal["feature", "prior"],
    reference: pd.Series[Any],
    current: pd.Series[Any],
    scale: Scale,
) -> Drift:
    """How far one column moved.

    Parameters
    ----------
    reference, current : the column on either side
        Numbers, booleans or text; missing values are a bin of their own.
    scale : Scale
        What the move is held against.
    """
    if _is_text(reference):
        names, codes = coded(reference)
        bins = Bins.of_coded(names, codes)
        counts = bins.count_coded(names, codes), bins.count_coded(*coded(current))
    else:
        numbers = _numbers(reference)
        bins = Bins.of_numbers(numbers)
        counts = bins.count(numbers), bins.count(_numbers(current))
    value = psi(*counts)
    filled = int(np.count_nonzero(counts[0] + counts[1]))
    trend = 0.0
    if scale.later is not None and value >= MODERATE:
        late = scale.later
        after = bins.count_coded(names, codes[late]) if _is_text(reference) else bins.count(numbers[late])
        trend = scale.trend(counts[0] - after, after)
    expected = scale.reach(filled, trend)
    return Drift(
        name,
        name,
        kind,
        round(value, 6),
        severity_of(value) if value > expected else "stable",
        round(noise(filled, *scale.units), 6),
        round(expected, 6),
        None,
        bins.labels(),
        counts[0].tolist(),
        counts[1].tolist(),
    )


def frame_drifts(
    reference: SomeRows, current: SomeRows, features: Sequence[Feature], gain: Mapping[str, float]
) -> list[Drift]:
    """Drift of each feature of shown ads between two frames, of which a few columns are in memory at a time.

    Those of ads move with the few ads, advertisers or categories that there are.
    """
    of_ads = [name for name in (ADVERTISER_ID, *_names_of_ads(features)) if name in reference.names]
    one = SomeRows(reference.source, reference.places[:1]).read(of_ads)
    levels = Levels(reference, TIMESTAMP, [name for name in of_ads if _is_text(one[name])])
    scales: dict[str, Scale] = {}
    drifts = []
    for feature, old, new in _pairs(reference, current, features):
        level = USER_ID
        if feature.source == AD_STATS_VIEW:
            level = levels.of(old) or AD_ID
        if level not in scales:
            keys = dict.fromkeys((TIMESTAMP, USER_ID, level))
            was, now = (side.read([key for key in keys if key in side.names]) for side in (reference, current))
            scales[level] = Scale.of(was, now, TIMESTAMP, [USER_ID, level])
        of = feature.name if feature.predictor is None else prior_view(feature.predictor)
        moved = drift_of(feature.name, "feature", old, new, scales[level])
        drifts.append(replace(moved, of=of, gain=gain.get(feature.name)))
    return drifts


def _names_of_ads(features: Sequence[Feature]) -> list[str]:
    return [f.name for f in features if f.source == AD_STATS_VIEW]


def _pairs(
    reference: SomeRows, current: SomeRows, features: Sequence[Feature]
) -> Iterator[tuple[Feature, pd.Series[Any], pd.Series[Any]]]:
    """Each feature with its column on either side."""
    for start in range(0, len(features), COLUMNS):
        some = features[start : start + COLUMNS]
        old, new = (side.read([feature.name for feature in some]) for side in (reference, current))
        for feature in some:
            yield feature, old.pop(feature.name), new.pop(feature.name)


def prior_drifts(table: pd.DataFrame, predictor: str, until: pd.Timestamp) -> tuple[list[Drift], dict[str, Any]]:
    """Drift of a published prior's scalars: snapshots that training could join, against the newest one.

    Parameters
    ----------
    table : the view's published table
    until : the moment of the last training row
    """
    newest = table[SNAPSHOT].max()
    earlier = table[(table[EVENT_TIMESTAMP] <= until).to_numpy() & (table[SNAPSHOT] < newest).to_numpy()]
    last = table[(table[SNAPSHOT] == newest).to_numpy()]
    if not len(earlier):
        return [], {"newest": newest.isoformat(), "oldest": table[SNAPSHOT].min().isoformat(), "reference_snapshots": 0}
    scale = Scale.of(earlier, last, SNAPSHOT, (USER_ID,))
    view = prior_view(predictor)
    drifts = [
        replace(drift_of(f"{view}_{name}", "prior", earlier[name], last[name], scale), of=view)
        for name in SCALARS
        if name in table.columns
    ]
    about = {"newest": newest.isoformat(), "oldest": earlier[SNAPSHOT].min().isoformat()}
    return drifts, about | {"reference_snapshots": int(earlier[SNAPSHOT].nunique())}


def measure(
    frame_folder: Path,
    *,
    recent: Path | None = None,
    exposures: Path | None = None,
    days: float | None = None,
    ranker: Path | None = None,
    repo: Path | None = None,
) -> DriftReport:
    """Measure the drift since a ranker's training.

    Parameters
    ----------
    frame_folder : Path
        The frame that the ranker was trained on; its train rows are the reference.
    recent : Path, optional
        A newer frame, whose rows after the reference's last are the current side. Default: the test rows.
    exposures : Path, optional
        Exposure log of a service that ranked with ``ranker``: what it read of the ads it showed is the current side.
    days : float, optional
        Only the last so many days of the current side.
    ranker : Path, optional
        Only this ranker's features, with their share of its gain.
    repo : Path, optional
        Feature repository, whose published priors are compared by snapshot.

    Raises
    ------
    AdvpriorError
        ``RNK035`` when no row is left on the current side, ``RNK036`` when the ranker was trained on another frame,
        ``RNK023`` when a side lacks a feature, ``RNK047`` when no prior can be compared, and what reading raises.
    """
    with scratch("shown") as folder:
        return _measure(frame_folder, _Newer(recent, exposures, days), ranker, repo, folder)


@dataclass(frozen=True)
class _Newer:
    """Where the current side comes from; see `measure`."""

    recent: Path | None
    exposures: Path | None
    days: float | None

    @property
    def what(self) -> str:
        """In words."""
        if self.exposures is not None:
            return "shown ads"
        return "test rows" if self.recent is None else "rows after training"


def _measure(frame_folder: Path, newer: _Newer, ranker: Path | None, repo: Path | None, folder: Path) -> DriftReport:
    source = InParquet(frame_folder)
    of_rows = source.read(["split", TIMESTAMP])
    reference = SomeRows(source, np.flatnonzero((of_rows["split"] == "train").to_numpy()))
    until = of_rows[TIMESTAMP].iloc[reference.places].max()
    current = _current(newer, until, source, of_rows, None if ranker is None else (ranker, folder))
    del of_rows
    features, gain = load_features(frame_folder), dict[str, float]()
    if ranker is not None:
        loaded = _ranker_of(ranker, frame_folder)
        features, gain = list(loaded.features), loaded.importance()
    lacking = [f.name for f in features if f.name not in reference.names or f.name not in current.names]
    if lacking:
        raise AdvpriorError(
            "RNK023",
            "a frame lacks features",
            where=str(newer.recent or frame_folder),
            actual=", ".join(lacking[:5]),
            expected="the features of the training frame",
            fix="build both frames from the same definitions",
        )
    drifts = frame_drifts(reference, current, features, gain)
    about: dict[str, Any] = {
        "reference": _side(reference, "train rows"),
        "current": _side(current, newer.what),
        "priors": {},
    }
    if repo is not None:
        of_priors, about["priors"] = _priors(repo, until)
        drifts += of_priors
    return DriftReport(sorted(drifts, key=lambda one: -one.psi), about)


def _priors(repo: Path, until: pd.Timestamp) -> tuple[list[Drift], dict[str, Any]]:
    """Drift of each published prior, and what each was measured on.

    Raises
    ------
    AdvpriorError
        ``RNK047`` where none has a snapshot of the time of training: then nothing would be compared.
    """
    drifts: list[Drift] = []
    about: dict[str, Any] = {}
    for predictor in published_predictors(repo, []):
        of_prior, about[predictor] = prior_drifts(_prior_table(repo, predictor), predictor, until)
        drifts += of_prior
    if not drifts:
        begin = {name: one["oldest"] for name, one in about.items()}
        raise AdvpriorError(
            "RNK047",
            "no published prior has a snapshot of the time of training: there is nothing to compare the newest with",
            where=str(repo),
            actual=f"published from {begin} on" if begin else "no prior is published",
            expected=f"rows that were available by {until.isoformat()}, the last training row",
            fix="publish every snapshot (a refresh keeps `refresh.keep_snapshots` of them), or leave --repo out",
        )
    return drifts, about


def _prior_table(repo: Path, predictor: str) -> pd.DataFrame:
    """What of a published prior is compared: not its vectors, which are most of the table."""
    import pyarrow.parquet as pq

    path = view_folder(repo, prior_view(predictor)) / TABLE_FILE
    names = pq.read_schema(path).names if path.is_file() else []
    columns = [USER_ID, SNAPSHOT, EVENT_TIMESTAMP, *(name for name in SCALARS if name in names)]
    return read_parquet(path, columns=columns, fix="advprior publish")


def _shown(exposures: Path, ranker: Path, folder: Path) -> InFiles:
    """What a service logged of the ads that a ranker showed, in a file of the folder."""
    of, loaded = manifest_digest(ranker), Ranker.load(ranker)
    assert loaded.encoder is not None
    log = spool(read_exposures(exposures), {of: loaded.encoder.categories}, folder)[of]
    return log.required(exposures).rows


def _current(
    newer: _Newer, until: pd.Timestamp, source: InParquet, of_rows: pd.DataFrame, online: tuple[Path, Path] | None
) -> SomeRows:
    """Rows of the current side: of test, of a newer frame, or of what was shown online."""
    whole: FrameSource = source
    if newer.exposures is not None and online is not None:
        whole = _shown(newer.exposures, *online)
    elif newer.recent is not None:
        whole = InParquet(newer.recent)
    if whole is source:
        times = of_rows[TIMESTAMP]
        chosen = (of_rows["split"] == "test").to_numpy()
    else:
        times = whole.read([TIMESTAMP])[TIMESTAMP]
        chosen = (times > until).to_numpy()
    if newer.days is not None and chosen.any():
        chosen &= (times > times[chosen].max() - timedelta(days=newer.days)).to_numpy()
    if not chosen.any():
        raise AdvpriorError(
            "RNK035",
            "there is nothing to compare the training rows with",
            where=str(newer.recent),
            actual=f"no row after {until.isoformat()}",
            expected="a frame with newer impressions",
            fix="build the tables and the frame again with newer events",
        )
    return SomeRows(whole, np.flatnonzero(chosen))


def _ranker_of(folder: Path, frame_folder: Path) -> Ranker:
    read_manifest(folder, step="rank train", fix="advprior rank train --frame FRAME --service SERVICE --out RANKER")
    loaded = Ranker.load(folder)
    given, trained_on = (
        read_manifest(frame_folder, step="rank frame", fix=FRAME_FIX).get("key"),
        loaded.facts.get("frame"),
    )
    if trained_on is not None and trained_on != given:
        raise AdvpriorError(
            "RNK036",
            "the ranker was trained on another frame",
            where=str(folder),
            actual=f"frame {trained_on}",
            expected=f"frame {given}, of {frame_folder}",
            fix="give the frame that it was trained on as --frame, and a newer one as --recent",
        )
    return loaded


def _side(rows: SomeRows, what: str) -> dict[str, Any]:
    frame = rows.read([TIMESTAMP, USER_ID])
    times = frame[TIMESTAMP]
    return {
        "what": what,
        "rows": len(frame),
        "users": int(frame[USER_ID].nunique()),
        "from": times.min().isoformat(),
        "to": times.max().isoformat(),
    }


def _is_text(values: pd.Series[Any]) -> bool:
    return isinstance(values.dtype, pd.CategoricalDtype) or not (
        pd.api.types.is_numeric_dtype(values.dtype) or pd.api.types.is_bool_dtype(values.dtype)
    )


def _numbers(values: pd.Series[Any]) -> Any:
    return values.to_numpy(dtype=np.float64, na_value=np.nan)
