"""What the frame's manifest says of each feature: its group and source, for a user's own views and columns too."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from advprior.store.contract import (
    BASELINE_SERVICE,
    MATRIX_FILE,
    TABLE_FILE,
    TAIL_FILE,
    TAIL_LOG_MASS,
    TOP_INDEX,
    TOP_INDEX_FILE,
    prior_view,
)
from advprior.store.features import Feature, features_from_json
from advprior.store.runs import new_run
from ranking.frame.build import build_frame
from ranking.frame.sources import sources_unchanged
from ranking.models.arms import arm_features, load_arms
from ranking.models.available import with_available
from ranking.models.config import RankerConfig
from ranking.models.ranker import Ranker
from tests.ranking.stores import Workspace, apply, publish, random_priors
from tests.tiny import PLAN, tiny_tables

# ibis 12 calls a method that duckdb 2 renamed
pytestmark = pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning")


def test_views_of_ones_own_reach_the_frame_and_a_ranker(tmp_path: Path, workspace: Workspace) -> None:
    """From `definitions.py`: a view of ads that is named like ours, one of users, and one that no service has."""
    repo = Path(shutil.copytree(workspace.repo, tmp_path / "feature_repo", symlinks=True))
    tables = tiny_tables()
    stamps = {"event_timestamp": PLAN.start, "created_timestamp": PLAN.start}
    score = np.arange(len(tables["users"]), dtype=float)
    of_users = pd.DataFrame({"user_id": tables["users"].user_id, "score": score, "vector": [[1.0]] * 40, **stamps})
    tier = np.where(np.arange(len(tables["ads"])) % 2, "gold", "plain")
    since = pd.Timestamp(PLAN.start)
    of_ads = pd.DataFrame({"ad_id": tables["ads"].ad_id, "tier": tier, "rank": 3, "snapshot": since, **stamps})
    for name, table in {"mine": of_users, "ad_quality": of_ads, "unused": of_users}.items():
        publish(repo, name, {TABLE_FILE: table})
    text = (repo / "definitions.py").read_text()
    views = [
        f'{name} = _view("{name}", {entity}, PROFILE_TTL, "own")\n'
        for name, entity in (("mine", "user"), ("ad_quality", "ad"), ("unused", "user"))
    ]
    text = text.replace("_BASELINE = [", "".join(views) + "_BASELINE = [mine, ad_quality, ")
    (repo / "definitions.py").write_text(text)
    apply(repo)
    result = build_frame(workspace.tables, repo, [])
    frame, features = result.frame, features_from_json(result.facts["features"])
    assert (frame.mine__score == frame.user_id.astype(str).str[1:].astype(float)).all()
    assert [finding.code for finding in result.warnings].count("RNK014") == 1
    assert "unused" in next(finding.message for finding in result.warnings if finding.code == "RNK014")
    own = {feature.name: feature for feature in features if feature.group in ("mine", "ad_quality")}
    assert own == {  # no vector is joined; a moment is days of age; a rank of ads is nobody's prior
        "mine__score": Feature("mine__score", "mine", "mine"),
        "ad_quality__tier": Feature("ad_quality__tier", "ad_quality", "ad_quality", "category"),
        "ad_quality__rank": Feature("ad_quality__rank", "ad_quality", "ad_quality"),
        "ad_quality__snapshot": Feature("ad_quality__snapshot", "ad_quality", "ad_quality"),
    }
    age = (frame.timestamp - since) / timedelta(days=1)
    np.testing.assert_allclose(frame.ad_quality__snapshot, age, rtol=1e-6)
    assert result.facts["services"] == [BASELINE_SERVICE]

    # a frame of these views is built anew once a file behind one of them has changed
    out = tmp_path / "built"
    with new_run(out, "rank frame", config={}, inputs={}, key="k") as run:
        run.facts.update(result.facts)
    assert sources_unchanged(out)
    publish(repo, "mine", {TABLE_FILE: of_users.assign(score=score + 1)})
    assert not sources_unchanged(out)

    baseline = load_arms().baseline
    config = RankerConfig(max_rounds=5, min_data_in_leaf=5, threads=1)
    ranker = Ranker(baseline.service, arm_features(baseline, features), config)
    ranker.fit(frame[frame.split == "train"], frame[frame.split == "valid"]).save(tmp_path / "ranker")
    assert set(own.values()) <= set(Ranker.load(tmp_path / "ranker").features)


def test_every_feature_is_listed_with_its_group_and_source(workspace: Workspace, tmp_path: Path) -> None:
    """The manifest's list is the frame's columns but for keys, and knows what no column's name tells."""
    repo = Path(shutil.copytree(workspace.repo, tmp_path / "feature_repo", symlinks=True))
    files = random_priors(
        tiny_tables()["users"].user_id.tolist(), ["a00", "a01", "a02"], PLAN.snapshots(), PLAN.lag, PLAN.finetune_end, 4
    )
    top = np.argsort(-files[MATRIX_FILE], axis=1)[:, :2].astype(np.int32)
    rest = 1 - np.exp(np.take_along_axis(files[MATRIX_FILE], top, axis=1)).sum(axis=1)
    tail, pointer = np.log(rest), files[TABLE_FILE].prior_row
    table = files[TABLE_FILE].assign(
        **{TOP_INDEX: list(top[pointer].astype(np.int64)), TAIL_LOG_MASS: tail[pointer].astype(np.float32)}
    )
    arrays = {TOP_INDEX_FILE: top, TAIL_FILE: tail.astype(np.float32)}
    kept = np.take_along_axis(files[MATRIX_FILE], top, axis=1)
    publish(repo, prior_view("text_pair"), {**files, **arrays, MATRIX_FILE: kept, TABLE_FILE: table})
    apply(repo)
    tables = Path(shutil.copytree(workspace.tables, tmp_path / "tables"))
    impressions = pd.read_parquet(tables / "impressions.parquet")
    impressions["context_hour"] = 100 + np.arange(len(impressions)) % 24
    impressions.to_parquet(tables / "impressions.parquet", index=False, coerce_timestamps="us")
    result = build_frame(tables, repo, ["text_pair"])

    assert result.frame.context_hour.between(100, 123).all()  # the user's own, not the clock's
    features = features_from_json(result.facts["features"])
    keys = ["impression_id", "slate_id", "user_id", "ad_id", "advertiser_id", "timestamp", "label", "split"]
    assert [feature.name for feature in features] == [
        name for name in result.frame if name not in keys and not name.startswith("segment_")
    ]
    for feature in features:
        assert (result.frame[feature.name].dtype == feature.dtype) is True
    of = {feature.name: (feature.group, feature.source) for feature in features}
    assert of["prior_text_pair_tail_log_mass"] == of["prior_text_pair_rank"] == ("prior_text_pair", "prior_text_pair")
    assert of["context_hour"] == ("context", "impressions")
    assert of["clock_hour"] == ("context", "clock")
    assert of["profile_age"] == ("profile", "user_profile")
    assert of["ad_category"] == ("ad", "ad_stats")
    assert of["activity_occasions_4w"] == ("activity", "user_history")
    assert of["history_ad_4w"] == ("history", "user_history")
    names = {arm.name for arm in with_available(load_arms(), features)[0].arms}
    assert names == {"baseline", "text_pair"}
