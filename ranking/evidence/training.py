"""One ranker on one arm of a frame, saved with what it must be fed and what it reached on test rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.contract import LABEL, POSITION, SLATE_ID, USER_ID
from advprior.store.errors import AdvpriorError
from advprior.store.features import REQUEST_SOURCE, Feature
from advprior.store.runs import read_manifest
from ranking.evidence.metrics import DEFAULT_METRICS, MORE_METRICS, Rows
from ranking.frame.checks import require_own_slates
from ranking.frame.read import SPLITS, load_features
from ranking.frame.row_blocks import InParquet
from ranking.models.arms import Arm, arm_features
from ranking.models.binning import Examples, prepare
from ranking.models.config import RankerConfig
from ranking.models.encoded import EncodedRows, fit_encoder
from ranking.models.ranker import Ranker


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
    source = InParquet(frame_folder)
    keys = source.read([USER_ID, SLATE_ID, LABEL, "split"])
    require_own_slates(keys)
    features = arm_features(arm, load_features(frame_folder))
    manifest = read_manifest(frame_folder)
    at = {name: np.flatnonzero((keys["split"] == name).to_numpy()) for name in SPLITS}
    positions = [name for name in source.names if name == POSITION]
    facts = {
        "arm": arm.name,
        "time_plan": manifest["facts"]["time_plan"],
        "reference": reference_context(features, source.read(positions).iloc[at["train"]]),
        # which versions of the store's views, and of each prior's model and catalog, its features came from
        "frame": manifest.get("key"),
        "views": manifest["facts"].get("views", {}),
        "priors": {
            name: {key: prior.get(key) for key in ("model_cutoff", "catalog_version", "source_predictor")}
            for name, prior in manifest["facts"].get("priors", {}).items()
        },
    }
    encoder = fit_encoder(source, [feature.name for feature in features], at["train"])
    rows = {name: EncodedRows(source, encoder, places) for name, places in at.items()}
    label, slate = keys[LABEL].to_numpy(np.int8), keys[SLATE_ID].to_numpy()
    learned, held = (Examples(rows[name], label[at[name]], slate[at[name]]) for name in ("train", "valid"))
    ranker = Ranker(arm.service, features, config, seed, facts)
    ranker.fit_prepared(prepare(encoder, learned, held, config)).save(out)
    reached = {}
    for name in ("valid", "test"):
        user = pd.factorize(keys[USER_ID].iloc[at[name]])[0]
        scored = Rows.of(label[at[name]], ranker.predict_matrix(rows[name]), user=user, slate=slate[at[name]])
        reached[name] = {metric.name: metric(scored) for metric in (*DEFAULT_METRICS, *MORE_METRICS)}
    return {
        "service": arm.service,
        "features": len(features),
        "rounds": ranker.rounds,
        "rows": {name: len(places) for name, places in at.items()},
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
