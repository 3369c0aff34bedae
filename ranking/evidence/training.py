"""One ranker on one arm of a frame, saved with what it must be fed and what it reached on test rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from advprior.store.contract import LABEL, POSITION, SLATE_ID, USER_ID
from advprior.store.errors import AdvpriorError
from advprior.store.features import REQUEST_SOURCE, Feature
from advprior.store.runs import read_manifest
from ranking.evidence.metrics import DEFAULT_METRICS, MORE_METRICS, Rows
from ranking.frame.checks import require_own_slates
from ranking.frame.read import SPLITS, load_features, load_frame
from ranking.models.arms import Arm, arm_features
from ranking.models.config import RankerConfig
from ranking.models.ranker import Ranker

if TYPE_CHECKING:
    import pandas as pd


def train_arm(frame_folder: Path, arm: Arm, config: RankerConfig, seed: int, out: Path) -> dict[str, Any]:
    """Train on a frame's train rows, save into ``out``, and return facts for the manifest.

    Raises
    ------
    AdvpriorError
        ``DAT016`` when a slate has several users, ``RNK022`` when the frame lacks the arm's columns, ``RNK024`` when a
        split lacks positives, ``RNK039`` for an arm whose ranker is none of LightGBM's.
    """
    if arm.ranker is not None:
        raise AdvpriorError(
            "RNK039",
            "a ranker of your own is measured, not saved and not served",
            where=f"arm {arm.name}",
            actual=str(arm.ranker),
            expected="LightGBM: its model is text, checked by its digest, and explained by exact TreeSHAP",
            fix="train an arm without `ranker`; a pickle would run whatever code it holds where it is loaded",
        )
    frame = load_frame(frame_folder)
    require_own_slates(frame)
    features = arm_features(arm, load_features(frame_folder))
    manifest = read_manifest(frame_folder)
    facts = {
        "arm": arm.name,
        "time_plan": manifest["facts"]["time_plan"],
        "reference": {},
        # which versions of the store's views, and of each prior's model and catalog, its features came from
        "frame": manifest.get("key"),
        "views": manifest["facts"].get("views", {}),
        "priors": {
            name: {key: prior.get(key) for key in ("model_cutoff", "catalog_version", "source_predictor")}
            for name, prior in manifest["facts"].get("priors", {}).items()
        },
    }
    ranker = Ranker(arm.service, features, config, seed, facts)
    part = {name: frame[(frame["split"] == name).to_numpy()] for name in SPLITS}
    facts["reference"] = reference_context(features, part["train"])
    ranker.fit(part["train"], part["valid"])
    ranker.save(out)
    reached = {}
    for name in ("valid", "test"):
        rows = part[name]
        user = np.unique(rows[USER_ID].astype(str), return_inverse=True)[1]
        scored = Rows.of(rows[LABEL], ranker.predict(rows), user=user, slate=rows[SLATE_ID])
        reached[name] = {metric.name: metric(scored) for metric in (*DEFAULT_METRICS, *MORE_METRICS)}
    return {
        "service": arm.service,
        "features": len(features),
        "rounds": ranker.rounds,
        "rows": {name: len(rows) for name, rows in part.items()},
        "time_plan": manifest["facts"]["time_plan"],
        "reference": facts["reference"],
        **reached,
    }


def reference_context(features: Sequence[Feature], train: pd.DataFrame) -> dict[str, float]:
    """Context at which every candidate is ranked where the request says nothing: the first position of the slates.

    A position biases clicks, so a ranker learns it; before ranking nobody knows it. One position for all candidates
    leaves the order to everything else (as in Ling et al., WWW 2017 Companion, doi:10.1145/3041021.3054192).

    Parameters
    ----------
    features : sequence of Feature
        Of the ranker.
    train : DataFrame
        Rows that it is trained on.

    Returns
    -------
    dict of str to float
        By feature; empty for a ranker without a position, or with one that is text.

    Examples
    --------
    >>> import pandas as pd
    >>> position = Feature("context_position", "context", "impressions")
    >>> reference_context([position], pd.DataFrame({"context_position": [2.0, 1.0, None]}))
    {'context_position': 1.0}
    """
    of_request = [f for f in features if f.name == POSITION and f.source == REQUEST_SOURCE and not f.is_text]
    firsts = {feature.name: float(train[feature.name].min()) for feature in of_request}
    return {name: first for name, first in firsts.items() if np.isfinite(first)}
