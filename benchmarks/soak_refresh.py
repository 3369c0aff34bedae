"""One refresh of a soak, in a process of its own as a scheduler would start it: publish, then materialize.

``python -m benchmarks.soak_refresh REPO SOURCE NUMBER``: from the last snapshot of the demo's own publications (SOURCE)
it makes the NUMBER-th new one, a minute later than the one before, with other values in every row of priors, histories
and ads. Every second refresh has another catalog (its advertisers in the opposite order); the ones between publish the
snapshot before once more with other values, as a predictor trained anew does. Whoever starts it says how much it gives
way to everything else (nice).
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.contract import (
    AD_STATS_VIEW,
    CATALOG_FILE,
    CATALOG_VERSION,
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    LLM,
    LOG_PROBS,
    MATRIX_FILE,
    PRIOR_ROW,
    SNAPSHOT,
    TABLE_FILE,
    USER_HISTORY_VIEW,
    prior_view,
)
from advprior.store.matrix import open_matrix
from advprior.store.runs import MANIFEST, new_run, publish_version, run_key
from advprior.store.tables import write_parquet

#: Between the snapshots of two refreshes.
STEP = timedelta(minutes=1)


def refresh(repo: Path, source: Path, number: int) -> None:
    """Publish the three views and materialize them."""
    last, views = publish_priors(repo, source / prior_view(LLM), number), [prior_view(LLM)]
    for view in (USER_HISTORY_VIEW, AD_STATS_VIEW):
        _publish_changed(repo, source / view, number)
        views.append(view)
    from feast import FeatureStore

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = FeatureStore(repo_path=str(repo))
        store.materialize(last - timedelta(days=21), last + timedelta(seconds=1), feature_views=views)


def publish_priors(repo: Path, source: Path, number: int) -> pd.Timestamp:
    """New priors of the last snapshot but one and the last; when the newest become available."""
    table = pd.read_parquet(source / TABLE_FILE)
    newest = table[SNAPSHOT].max()
    table = table[(table[SNAPSHOT] == newest).to_numpy()]
    matrix = open_matrix(source / MATRIX_FILE)[:][table[PRIOR_ROW].to_numpy()]
    catalog: dict[str, Any] = json.loads((source / CATALOG_FILE).read_text())
    rng = np.random.default_rng(number)
    tables: list[pd.DataFrame] = []
    rows: list[np.ndarray] = []
    for back in (1, 0):
        logits = matrix + rng.normal(size=matrix.shape)
        log_probs = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)
        moved = _moved(table, number - back)
        moved[PRIOR_ROW] = np.arange(len(table)) + len(rows) * len(table)
        tables.append(moved)
        rows.append(log_probs)
    whole, values = pd.concat(tables, ignore_index=True), np.concatenate(rows)
    if number % 4 >= 2:
        values = np.ascontiguousarray(values[:, ::-1])
        catalog = {"version": f"{catalog['version']}-other", "advertisers": catalog["advertisers"][::-1]}
    whole[CATALOG_VERSION] = str(catalog["version"])
    whole[LOG_PROBS] = list(values)
    probability = np.exp(values.astype(np.float64))
    whole["entropy"] = -(probability * values).sum(axis=1).astype(np.float32)
    whole["top1_index"], whole["top1_log_prob"] = values.argmax(axis=1), values.max(axis=1)
    _publish(repo, source.name, {TABLE_FILE: whole, MATRIX_FILE: values, CATALOG_FILE: catalog}, None, number)
    newest_event: pd.Timestamp = whole[EVENT_TIMESTAMP].max()
    return newest_event


def _publish_changed(repo: Path, source: Path, number: int) -> None:
    """The last snapshot's rows again, later and with other numbers; ids and their catalogs as they are."""
    table = pd.read_parquet(source / TABLE_FILE)
    table = table[(table[EVENT_TIMESTAMP] == table[EVENT_TIMESTAMP].max()).to_numpy()]
    moved = _moved(table, number)
    for name in moved.columns:
        if pd.api.types.is_float_dtype(moved[name].dtype):
            moved[name] = (moved[name] * (1 + number / 100)).astype(moved[name].dtype)
    _publish(repo, source.name, {TABLE_FILE: moved}, source, number)


def _moved(table: pd.DataFrame, number: int) -> pd.DataFrame:
    moved = table.copy()
    for name in (EVENT_TIMESTAMP, CREATED_TIMESTAMP, SNAPSHOT):
        if name in moved:
            moved[name] = moved[name] + number * STEP
    return moved


def _publish(repo: Path, view: str, files: dict[str, Any], beside: Path | None, number: int) -> None:
    building = repo / "data" / f".staged-{view}"
    shutil.rmtree(building, ignore_errors=True)
    with new_run(building, f"soak {view}", config={"number": number}, inputs={}, key=run_key(view, number, {})) as run:
        for other in [] if beside is None else beside.iterdir():
            if other.name not in (*files, MANIFEST):
                shutil.copyfile(other, run.path / other.name)
        for name, content in files.items():
            if isinstance(content, pd.DataFrame):
                write_parquet(content, run.path / name)
            elif isinstance(content, np.ndarray):
                np.save(run.path / name, content)
            else:
                (run.path / name).write_text(json.dumps(content))
    publish_version(building, repo / "data" / view)


def main() -> None:
    begin = time.process_time()
    refresh(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    print(f"{time.process_time() - begin:.1f}")


if __name__ == "__main__":
    main()
