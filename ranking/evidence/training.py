"""One ranker on one arm of a frame, saved with what it must be fed and what it reached on test rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from advprior.store.contract import LABEL, SLATE_ID, USER_ID
from advprior.store.runs import read_manifest
from ranking.evidence.metrics import DEFAULT_METRICS, MORE_METRICS, Rows
from ranking.frame.read import SPLITS, load_features, load_frame
from ranking.models.arms import Arm, RankerConfig, arm_features
from ranking.models.ranker import Ranker


def train_arm(frame_folder: Path, arm: Arm, config: RankerConfig, seed: int, out: Path) -> dict[str, Any]:
    """Train on a frame's train rows, save into ``out``, and return facts for the manifest.

    Raises
    ------
    AdvpriorError
        ``RNK022`` when the frame lacks the arm's columns, ``RNK024`` when a split lacks positives.
    """
    frame = load_frame(frame_folder)
    features = arm_features(arm, load_features(frame_folder))
    manifest = read_manifest(frame_folder)
    facts = {
        "arm": arm.name,
        "time_plan": manifest["facts"]["time_plan"],
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
        **reached,
    }
