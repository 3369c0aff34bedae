"""Impressions without a row: of users and ads that do not exist yet, counted; of others, never without a word."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from advprior.store.contract import POPULARITY, TimePlan
from advprior.store.errors import AdvpriorError
from ranking.frame.build import build_frame
from ranking.frame.publish import publish_features
from tests.ranking.stores import apply, copy_repo, publish_priors
from tests.tiny import PLAN, write_tiny

# ibis 12 calls a method that duckdb 2 renamed
pytestmark = pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning")
BORDERS = (PLAN.start, PLAN.finetune_end, PLAN.train_end, PLAN.valid_end, PLAN.end)


@pytest.mark.parametrize("days", [1, 30])
def test_views_live_as_long_as_their_snapshots_are_apart(tmp_path: Path, days: int) -> None:
    """And a time to live below that, which would leave the baseline empty half of the time, is refused."""
    plan = TimePlan(*BORDERS, snapshot_every=timedelta(days=days))
    tables, repo = write_tiny(tmp_path / "tables", plan, users=4), copy_repo(tmp_path / "repo")
    publish_features(tables, repo)
    publish_priors(repo, tables, POPULARITY)
    store = apply(repo)
    names = ("user_history", "ad_stats", "prior_popularity")
    assert {store.get_feature_view(name).ttl for name in names} == {timedelta(days=2 * days)}
    result = build_frame(tables, repo, [POPULARITY])
    columns = ["activity_occasions_all", "ad_rate_all", "history_advertiser_all", "prior_popularity_entropy"]
    assert not result.frame[columns].isna().any().any()
    assert not {finding.code for finding in result.warnings} & {"RNK008", "RNK015"}
    if days == 30:
        definitions = repo / "definitions.py"
        shorter = definitions.read_text().replace("SNAPSHOT_TTL = _ttl()", "SNAPSHOT_TTL = timedelta(days=14)")
        definitions.write_text(shorter)
        apply(repo)
        with pytest.raises(AdvpriorError, match=r"RNK015.*have no row of `user_history`"):
            build_frame(tables, repo, [])


def test_a_history_of_one_snapshot_lives_as_long_as_the_plan_says(tmp_path: Path) -> None:
    """A refresh publishes the newest snapshot alone, and a short plan has no other: there is no distance to measure."""
    plan = TimePlan(*BORDERS, snapshot_every=timedelta(days=160))
    tables, repo = write_tiny(tmp_path / "tables", plan, users=4), copy_repo(tmp_path / "repo")
    publish_features(tables, repo)
    store = apply(repo)
    assert {store.get_feature_view(name).ttl for name in ("user_history", "ad_stats")} == {timedelta(days=320)}


def test_who_does_not_exist_yet_has_no_features_and_is_counted(tmp_path: Path) -> None:
    """One user and one ad are known from the middle of the plan on; a prior of that user could not be."""
    folder, middle = tmp_path / "tables", PLAN.train_end + timedelta(hours=5)
    tables, repo = write_tiny(folder, users=6), copy_repo(tmp_path / "repo")
    for name in ("users", "ads"):
        table = pd.read_parquet(folder / f"{name}.parquet")
        known = pd.Series(pd.NaT, table.index, dtype="datetime64[us, UTC]")
        known[0] = middle
        table.assign(known_from=known).to_parquet(folder / f"{name}.parquet")
    publish_features(tables, repo)
    publish_priors(repo, tables, POPULARITY)
    apply(repo)
    result = build_frame(tables, repo, [POPULARITY])
    frame, available = result.frame, pd.Timestamp(PLAN.train_end + PLAN.snapshot_every + PLAN.lag)
    young = {"u000": frame.user_id == "u000", "ad": frame.ad_id == "a00/Tea"}
    young = {name: rows & (frame.timestamp < available) for name, rows in young.items()}
    activity = [name for name in frame if name.startswith(("activity_", "history_", "exposures_", "profile_"))]
    of_ads = [name for name in frame if name.startswith("ad_") and name not in ("ad_id", "ad_category")]
    for rows, names in ((young["u000"], activity), (young["ad"], of_ads)):
        assert 0 < rows.sum() < len(frame)
        assert frame.loc[rows, names].isna().all().all()
    assert np.array_equal(frame.activity_occasions_all.isna(), young["u000"])
    assert np.array_equal(frame.ad_rate_all.isna(), young["ad"])
    assert result.facts["not_yet_existing"] == {"user_history": young["u000"].sum(), "ad_stats": young["ad"].sum()}
    # random priors cover everybody: the last advertiser is left out of their catalog, and that alone is missing
    assert result.facts["coverage"][POPULARITY] == pytest.approx(
        1 - frame.prior_popularity_missing[~young["u000"]].mean(), abs=1e-6
    )
