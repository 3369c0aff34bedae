"""As-of tables against a recomputation that loops over raw rows."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from advprior.store.contract import TimePlan
from advprior.store.times import micros
from ranking.frame.counts import CountsBefore
from ranking.frame.gather import gather_history
from ranking.frame.numbering import HistoryIds, load_history_ids
from ranking.frame.popularity import AdCounts, Outcomes, ad_stats, known_from
from ranking.frame.publish import publish_features
from ranking.frame.snapshots import snapshots_to_keep
from ranking.frame.streams import EVENTS, LEVELS
from ranking.frame.views import view_folder
from tests.tiny import PLAN, START, WEEK, tiny_tables, write_tiny

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, pd.DataFrame], Path]:
    root = tmp_path_factory.mktemp("history")
    (root / "repo").mkdir()
    publish_features(write_tiny(root / "tables", users=12), root / "repo")
    return tiny_tables(users=12), root / "repo"


def counted(events: pd.DataFrame, cut: Any) -> list[float]:
    """Occasions in 1, 4, 12 weeks and ever before ``cut``, days since the last."""
    times = events.timestamp[events.timestamp < cut].drop_duplicates()
    found = [float((times >= cut - days * DAY).sum()) for days in (7, 28, 84)]
    return [*found, float(len(times)), (cut - times.max()) / DAY if len(times) else np.nan]


def test_counts_are_strictly_before() -> None:
    groups, times = np.array([2, 0, 2, 2]), np.array([5, 7, 5, 9])
    rows, occasions = CountsBefore(groups, times, 4), CountsBefore(groups, times, 4, distinct=True)
    assert rows.before(5).tolist() == [0, 0, 0, 0]
    assert rows.before(6).tolist() == [0, 0, 2, 0]
    assert occasions.before(6).tolist() == [0, 0, 1, 0]
    assert occasions.before(100).tolist() == [1, 0, 2, 0]
    assert occasions.last_before(9).tolist() == [7, -1, 5, -1]
    assert occasions.first().tolist() == [7, -1, 5, -1]


def test_history_equals_a_recomputation(published: tuple[dict[str, pd.DataFrame], Path]) -> None:
    tables, repo = published
    folder = view_folder(repo, "user_history")
    table, ids = pd.read_parquet(folder / "table.parquet"), load_history_ids(folder)
    ads, events = tables["ads"], tables["events"]
    assert len(table) == 12 * len(snapshots_to_keep(PLAN))
    assert (table.event_timestamp == table.snapshot + PLAN.lag).all()
    some = table.sample(15, random_state=0)
    for row in some.itertuples():
        mine = events[events.user_id == row.user_id]
        expected = counted(mine, row.snapshot)
        assert [
            row.activity_occasions_1w,
            row.activity_occasions_4w,
            row.activity_occasions_12w,
            row.activity_occasions_all,
        ] == expected[:4]
        assert row.activity_days_since_last == pytest.approx(expected[4], nan_ok=True)
        before = mine[mine.timestamp < row.snapshot]
        recent = before[before.timestamp >= row.snapshot - 28 * DAY]
        assert row.activity_value_4w == pytest.approx(recent.value.sum(), rel=1e-5)
        assert row.activity_distinct_advertisers_all == before.advertiser_id.nunique()
        assert row.activity_distinct_advertisers_4w == recent.advertiser_id.nunique()
        # all ads of this user and snapshot at once
        for level in LEVELS:
            of_ad = np.array(ids["ads"][level])
            found = gather_history(
                folder, EVENTS.files(level), ids["sizes"][level], np.full(len(ads), row.history_row), of_ad
            )
            for i, ad in enumerate(ads.itertuples()):
                same = pd.Series(True, index=mine.index)
                if level in ("advertiser", "ad"):
                    same &= mine.advertiser_id == ad.advertiser_id
                if level in ("category", "ad"):
                    same &= mine.category == ad.category
                np.testing.assert_allclose(found[i], counted(mine[same], row.snapshot), rtol=1e-5)


def test_ad_stats_equal_a_recomputation(published: tuple[dict[str, pd.DataFrame], Path]) -> None:
    tables, repo = published
    table = pd.read_parquet(view_folder(repo, "ad_stats") / "table.parquet")
    impressions, events = tables["impressions"], tables["events"]
    for row in table.sample(25, random_state=1).itertuples():
        shown = impressions[(impressions.ad_id == row.ad_id) & (impressions.timestamp < row.snapshot)]
        assert row.ad_impressions_all == len(shown)
        assert row.ad_impressions_4w == (shown.timestamp >= row.snapshot - 28 * DAY).sum()
        # tiny labels are purchases at the impression's own time: known as soon as that is over
        assert row.ad_positives_all == shown.label.sum()
        overall = impressions[impressions.timestamp < row.snapshot].label.mean()
        assert row.ad_rate_all == pytest.approx((shown.label.sum() + 20 * overall) / (len(shown) + 20), rel=1e-5)
        advertiser, category = row.ad_id.split("/")
        assert row.ad_category == category
        before = events[events.timestamp < row.snapshot]
        bought = before[before.advertiser_id == advertiser][["user_id", "timestamp"]].drop_duplicates()
        assert row.ad_advertiser_purchases_all == len(bought)
        everyone = before.dropna(subset=["advertiser_id"])[["user_id", "timestamp", "advertiser_id"]].drop_duplicates()
        share = (len(bought) + 0.5) / (len(everyone) + 0.5 * len(tables["advertisers"]))
        assert row.ad_advertiser_log_share_all == pytest.approx(np.log(share), rel=1e-5)
        bought = before[before.category == category][["user_id", "timestamp"]].drop_duplicates()
        assert row.ad_category_purchases_4w == (bought.timestamp >= row.snapshot - 28 * DAY).sum()
        if len(shown):
            assert row.ad_days_since_first_shown == pytest.approx(
                (row.snapshot - shown.timestamp.min()) / DAY, rel=1e-5
            )


def test_a_label_counts_only_once_it_is_known() -> None:
    """An impression before the snapshot whose purchase comes after it must not add to the ad's popularity."""
    users = pd.DataFrame({"user_id": ["u1", "u2", "u3"]})
    ads = pd.DataFrame({"ad_id": ["x"], "advertiser_id": ["a"], "category": ["Tea"]})
    cut = START + WEEK
    shown = [cut - 2 * DAY] * 3
    impressions = pd.DataFrame({"user_id": ["u1", "u2", "u3"], "ad_id": "x", "timestamp": shown, "label": [1, 1, 1]})
    events = pd.DataFrame(
        {
            "user_id": ["u1", "u2", "u2"],
            "advertiser_id": "a",
            "category": "Tea",
            "timestamp": [cut - DAY, cut - 3 * DAY, cut],
            "value": 1.0,
        }
    )
    ids = HistoryIds(["a"], ads)
    known = known_from(impressions, events, ids, users, WEEK)
    # u1: bought before the cut; u2: bought before the impression too, which is not its outcome; u3: no event shows it
    assert known.tolist() == [micros(pd.Series([t]))[0] for t in pd.to_datetime([cut - DAY, cut, cut + 5 * DAY])]
    outcomes = Outcomes.of(users, ids, events, impressions, WEEK)
    counts = AdCounts(users, ads, ids, events, outcomes)
    found = ad_stats(ads, counts, [cut, cut + WEEK], timedelta(hours=1))
    assert found.ad_impressions_all.tolist() == [3, 3]
    assert found.ad_positives_all.tolist() == [1, 3]


def test_own_rates_equal_a_loop(published) -> None:
    tables, repo = published
    table = pd.read_parquet(view_folder(repo, "user_history") / "table.parquet")
    impressions = tables["impressions"]
    for row in table.sample(25, random_state=2).itertuples():
        before = impressions[impressions.timestamp < row.snapshot]
        own = before[before.user_id == row.user_id]
        for window, days in (("12w", 84), ("all", 10_000)):
            inside = own[own.timestamp >= row.snapshot - days * DAY]
            assert getattr(row, f"activity_impressions_{window}") == len(inside)
            expected = (inside.label.sum() + 20 * before.label.mean()) / (len(inside) + 20)
            assert getattr(row, f"activity_rate_{window}") == pytest.approx(expected, rel=1e-5)


def test_snapshots_reach_one_before_the_first_impression() -> None:
    assert snapshots_to_keep(PLAN)[0] == PLAN.finetune_end - WEEK
    slow = TimePlan(PLAN.start, PLAN.finetune_end, PLAN.train_end, PLAN.valid_end, PLAN.end, WEEK, timedelta(days=8))
    assert snapshots_to_keep(slow)[0] == PLAN.finetune_end - 2 * WEEK


def test_a_user_without_history_has_a_row_of_zeros(tmp_path: Path) -> None:
    tables = write_tiny(tmp_path / "tables", users=3)
    events = pd.read_parquet(tables / "events.parquet")
    events[events.user_id != "u001"].to_parquet(tables / "events.parquet", index=False)
    (tmp_path / "repo").mkdir()
    publish_features(tables, tmp_path / "repo")
    table = pd.read_parquet(view_folder(tmp_path / "repo", "user_history") / "table.parquet")
    mine = table[table.user_id == "u001"]
    assert (mine.activity_occasions_all == 0).all()
    assert mine.activity_days_since_last.isna().all()
