"""Drift of features and priors: training rows against later ones, old snapshots against the newest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from advprior.store.tables import read_parquet
from ranking.experiment.exposures import read_exposures
from ranking.experiment.shown import to_frame
from ranking.frame.preflight import published_predictors
from ranking.frame.read import FRAME_FIX, load_features, load_frame
from ranking.frame.views import view_folder
from ranking.models.ranker import Ranker
from ranking.monitor.findings import Drift, DriftReport
from ranking.monitor.own_pace import Scale, level_of
from ranking.monitor.psi import Bins, noise, psi
from ranking.monitor.severity import MODERATE, severity_of

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
        old, new = _texts(reference), _texts(current)
        bins = Bins.of_text(old)
        counts, values = (bins.count(old), bins.count(new)), np.array(old, dtype=object)
    else:
        numbers = _numbers(reference)
        bins = Bins.of_numbers(numbers)
        counts, values = (bins.count(numbers), bins.count(_numbers(current))), numbers
    value = psi(*counts)
    filled = int(np.count_nonzero(counts[0] + counts[1]))
    trend = 0.0
    if scale.later is not None and value >= MODERATE:
        after = bins.count(values[scale.later])
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
    reference: pd.DataFrame, current: pd.DataFrame, features: Sequence[Feature], gain: Mapping[str, float]
) -> list[Drift]:
    """Drift of each feature of shown ads between two frames.

    Those of ads move with the few ads, advertisers or categories that there are.
    """
    names = [f.name for f in features if f.source == AD_STATS_VIEW]
    shared = [name for name in (ADVERTISER_ID, *names) if name in reference and _is_text(reference[name])]
    scales: dict[str, Scale] = {}
    drifts = []
    for feature in features:
        level = USER_ID
        if feature.source == AD_STATS_VIEW:
            level = level_of(reference, feature.name, TIMESTAMP, shared) or AD_ID
        if level not in scales:
            scales[level] = Scale.of(reference, current, TIMESTAMP, [USER_ID, level])
        sides = reference[feature.name], current[feature.name]
        of = feature.name if feature.predictor is None else prior_view(feature.predictor)
        moved = drift_of(feature.name, "feature", *sides, scales[level])
        drifts.append(replace(moved, of=of, gain=gain.get(feature.name)))
    return drifts


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
    whole = load_frame(frame_folder)
    reference = whole[(whole["split"] == "train").to_numpy()]
    until = reference[TIMESTAMP].max()
    shown = None if exposures is None or ranker is None else _shown(exposures, ranker)
    current = _current(whole, until, recent, days, shown)
    features, gain = load_features(frame_folder), dict[str, float]()
    if ranker is not None:
        loaded = _ranker_of(ranker, frame_folder)
        features, gain = list(loaded.features), loaded.importance()
    lacking = [f.name for f in features if f.name not in reference.columns or f.name not in current.columns]
    if lacking:
        raise AdvpriorError(
            "RNK023",
            "a frame lacks features",
            where=str(recent or frame_folder),
            actual=", ".join(lacking[:5]),
            expected="the features of the training frame",
            fix="build both frames from the same definitions",
        )
    drifts = frame_drifts(reference, current, features, gain)
    about: dict[str, Any] = {
        "reference": _side(reference, "train rows"),
        "current": _side(
            current, "shown ads" if shown is not None else "test rows" if recent is None else "rows after training"
        ),
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
        table = read_parquet(view_folder(repo, prior_view(predictor)) / TABLE_FILE, fix="advprior publish")
        of_prior, about[predictor] = prior_drifts(table, predictor, until)
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


def _shown(exposures: Path, ranker: Path) -> pd.DataFrame:
    """What a service logged of the ads that a ranker showed."""
    of = manifest_digest(ranker)
    shown = to_frame(read_exposures(exposures), of)
    if not len(shown):
        raise AdvpriorError(
            "SRV021",
            "no exposure says what the ranker read",
            where=str(exposures),
            actual=f"none with features of ranker {of}",
            expected="a log of a service that runs with --log-features",
            fix="advprior rank serve … --exposures DIR --log-features 0.01",
        )
    return shown


def _current(
    whole: pd.DataFrame, until: pd.Timestamp, recent: Path | None, days: float | None, shown: pd.DataFrame | None
) -> pd.DataFrame:
    if shown is not None:
        rows = shown[(shown[TIMESTAMP] > until).to_numpy()]
    elif recent is None:
        rows = whole[(whole["split"] == "test").to_numpy()]
    else:
        newer = load_frame(recent)
        rows = newer[(newer[TIMESTAMP] > until).to_numpy()]
    if days is not None and len(rows):
        rows = rows[(rows[TIMESTAMP] > rows[TIMESTAMP].max() - timedelta(days=days)).to_numpy()]
    if not len(rows):
        raise AdvpriorError(
            "RNK035",
            "there is nothing to compare the training rows with",
            where=str(recent),
            actual=f"no row after {until.isoformat()}",
            expected="a frame with newer impressions",
            fix="build the tables and the frame again with newer events",
        )
    return rows


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


def _side(frame: pd.DataFrame, what: str) -> dict[str, Any]:
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


def _texts(values: pd.Series[Any]) -> list[str | None]:
    return [None if missing else str(v) for v, missing in zip(values, values.isna(), strict=True)]


def _numbers(values: pd.Series[Any]) -> Any:
    return values.to_numpy(dtype=np.float64, na_value=np.nan)
