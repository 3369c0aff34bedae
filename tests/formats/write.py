"""Write what this version writes, small: ``python -m tests.formats.write FOLDER``.

The folder is committed as ``tests/formats/<version>``, and every later version reads it. A format that changes gets a
number, a migration or a coded refusal, and a folder of its own beside the old one.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from advprior.pipeline.fit import finetune
from advprior.pipeline.publish import publish
from advprior.pipeline.score import ScoreOptions, score
from advprior.predictors.registry import load_predictor, predictor_class
from advprior.store.features import Feature
from advprior.store.runs import manifest_digest, new_run, run_key
from ranking.experiment.exposures import FORMAT, ExposureLog
from ranking.experiment.shown import to_record
from ranking.models.config import RankerConfig
from ranking.models.ranker import Ranker
from tests.tiny import PLAN, WEEK, write_tiny

FEATURES = [
    Feature("context_placement", "context", "impressions", "category"),
    Feature("ad_rate_4w", "ad", "ad_stats", "float32"),
    Feature("prior_popularity_log_prob", "prior_popularity", "prior_popularity", "float32"),
]


def rows(seed: int, count: int = 400) -> pd.DataFrame:
    """A frame that the three features tell something of."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "slate_id": np.arange(count) // 8,
            "context_placement": pd.Categorical(rng.choice(["back", "front"], count)),
            "ad_rate_4w": rng.random(count).astype(np.float32),
            "prior_popularity_log_prob": rng.normal(-2, 1, count).astype(np.float32),
        }
    )
    frame["label"] = (rng.random(count) < 0.2 + 0.3 * frame["ad_rate_4w"]).astype(np.int8)
    return frame


def write_run_and_publication(folder: Path, scratch: Path) -> None:
    """Priors of six users at the last two snapshots, scored and published."""
    plan = type(PLAN)(PLAN.start, PLAN.end - 3 * WEEK, PLAN.end - 2 * WEEK, PLAN.end - WEEK, PLAN.end)
    tables = write_tiny(scratch / "tables", plan, users=6)
    model = scratch / "model"
    finetune(tables, model, "popularity", predictor_class("popularity").settings({}))
    with new_run(model / "onnx", "export", config={}, inputs={"run": manifest_digest(model)}, key="x") as work:
        work.facts.update(load_predictor(model).export(work.path))
    score(model, tables, folder / "priors", ScoreOptions(last=2))
    repo = scratch / "repo"
    (repo / "data").mkdir(parents=True)
    (repo / "feature_store.yaml").write_text("project: formats\n")
    publish(folder / "priors", repo)
    shutil.copytree((repo / "data/prior_popularity").resolve(), folder / "published")


def write_ranker(folder: Path) -> None:
    """A ranker, rows, and what it says of them."""
    config = RankerConfig(max_rounds=4, num_leaves=4, min_data_in_leaf=20, threads=1)
    ranker = Ranker("ranker_with_popularity_v1", FEATURES, config, 0, {"reference": {}})
    ranker.fit(rows(0), rows(1))
    key = run_key("rank train", {}, {})
    with new_run(folder / "ranker", "rank train", config={}, inputs={}, key=key) as run:
        ranker.save(run.path)
    few = rows(2, 16)
    few.assign(score=ranker.predict(few)).to_parquet(folder / "scored.parquet", index=False)


def write_exposures(folder: Path) -> None:
    """Two exposures, one of them with features."""
    log = ExposureLog(folder / "exposures", fsync="never")
    record = {
        "format": FORMAT,
        "exposure_id": "e1",
        "request_id": "r1",
        "time": "2024-07-01T10:00:00.000001+00:00",
        "experiment": "everybody",
        "arm": "treatment",
        "user_id": "u001",
        "service": "ranker_with_popularity_v1",
        "ranker": manifest_digest(folder / "ranker"),
        "prior": {"predictor": "popularity", "snapshot": "2024-06-24T00:00:00+00:00", "catalog_version": "v"},
        "degraded": [],
        "candidates": 24,
        "slots": [["a00/Tea", 0.25], ["a01/Bread", 0.125]],
    }
    log.append(record)
    block = np.array([[1, 0.5, -1.5], [0, np.nan, -1.5]], np.float32)
    features = to_record(block, [f.name for f in FEATURES], {"context_placement": ["back", "front"]})
    as_of = {"ad_stats": [1_719_795_600_000_000], "prior_popularity": []}
    log.append({**record, "exposure_id": "e2", "features": features, "as_of": as_of})
    log.close()


def main(folder: Path) -> None:
    """Write everything."""
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        write_run_and_publication(folder, Path(scratch))
    write_ranker(folder)
    write_exposures(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
