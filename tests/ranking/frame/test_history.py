"""As-of tables against a recomputation that loops over raw rows."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from advprior.store.contract import LABEL_DELAY, TimePlan
from advprior.store.times import moment_us
from ranking.frame.ad_popularity import AdCounts, AdRows, ad_stats, moments_of
from ranking.frame.counts import CountsBefore
from ranking.frame.gather import gather_history
from ranking.frame.numbering import HistoryIds, load_history_ids
from ranking.frame.popularity import Outcomes, Tally, rates_at
from ranking.frame.publish import publish_features
from ranking.frame.snapshots import snapshots_to_keep
from ranking.frame.streams import EVENTS, LEVELS
from ranking.frame.views import view_folder
from tests.tiny import PLAN, START, WEEK, tiny_tables, write_tiny

DAY = timedelta(days=1)
CUT = START + WEEK


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
            of_ad = pd.Series(ids["ads"][level], ids["ads"]["ad_id"])[ads.ad_id].to_numpy()
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
        complete = shown[shown.timestamp < row.snapshot - LABEL_DELAY]
        assert row.ad_positives_all == complete.label.sum()
        overall = impressions[impressions.timestamp < row.snapshot - LABEL_DELAY].label.mean()
        assert row.ad_rate_all == pytest.approx((complete.label.sum() + 20 * overall) / (len(complete) + 20), rel=1e-5)
        recent = complete[complete.timestamp >= row.snapshot - LABEL_DELAY - 28 * DAY]
        assert row.ad_positives_4w == recent.label.sum()
        advertiser, category = row.ad_id.split("/")
        assert row.ad_category == category
        before = events[events.timestamp < row.snapshot]
        bought = before[before.advertiser_id == advertiser][["user_id", "timestamp"]].drop_duplicates()
        assert row.ad_advertiser_events_all == len(bought)
        everyone = before.dropna(subset=["advertiser_id"])[["user_id", "timestamp", "advertiser_id"]].drop_duplicates()
        share = (len(bought) + 0.5) / (len(everyone) + 0.5 * len(tables["advertisers"]))
        assert row.ad_advertiser_log_share_all == pytest.approx(np.log(share), rel=1e-5)
        bought = before[before.category == category][["user_id", "timestamp"]].drop_duplicates()
        assert row.ad_category_events_4w == (bought.timestamp >= row.snapshot - 28 * DAY).sum()
        if len(shown):
            assert row.ad_days_since_first_shown == pytest.approx(
                (row.snapshot - shown.timestamp.min()) / DAY, rel=1e-5
            )


def a_few_impressions(**columns: Any) -> pd.DataFrame:
    """Impressions of one ad to three users, two days before the first cut-off of `counted_at`."""
    given = {"user_id": ["u1", "u2", "u3"], "ad_id": "x", "timestamp": [CUT - 2 * DAY] * 3, "label": [1, 0, 1]}
    return pd.DataFrame(given | columns)


def counted_at(impressions: pd.DataFrame, moments: list[Any], delay: timedelta) -> tuple[Any, dict[str, Any]]:
    """Statistics of the one ad and rates of its users as of some moments."""
    users = pd.DataFrame({"user_id": ["u1", "u2", "u3"]})
    ads = pd.DataFrame({"ad_id": ["x"], "advertiser_id": ["a"], "category": ["Tea"]})
    events = pd.DataFrame({"user_id": ["u1"], "advertiser_id": "a", "category": "Tea", "timestamp": [CUT - DAY]})
    ids = HistoryIds(["a"], ads)
    outcomes = Outcomes.of(users, ads, impressions, delay)
    counts = AdCounts(ids, moments_of(moments), clicks="clicked" in impressions)
    counts.add(AdRows.count(ids, events, outcomes, moments_of(moments)))
    tally = Tally.of(outcomes, outcomes.user, len(users))
    rates = [rates_at(tally, moment, counts.totals(moment)) for moment in map(moment_us, moments)]
    stats = ad_stats(ads, counts, moments, timedelta(hours=1))
    return stats, {name: np.concatenate([of_moment[name] for of_moment in rates]) for name in rates[0]}


def test_outcomes_count_once_they_are_complete_positives_with_negatives() -> None:
    """A purchase right after its impression is no sooner known than that nothing came of the others."""
    moments = [CUT, CUT + 5 * DAY, CUT + 5 * DAY + timedelta(microseconds=1), CUT + 60 * DAY]
    stats, rates = counted_at(a_few_impressions(), moments, 7 * DAY)
    assert stats.ad_impressions_all.tolist() == [3, 3, 3, 3]
    assert stats.ad_positives_all.tolist() == [0, 0, 2, 2]
    assert stats.ad_positives_4w.tolist() == [0, 0, 2, 0]
    assert stats.ad_rate_all.tolist() == pytest.approx([0, 0, 2 / 3, 2 / 3])
    assert stats.ad_rate_4w.tolist() == pytest.approx([0, 0, 2 / 3, 2 / 3])  # of none: the overall rate
    overall, of_one = 2 / 3, (1 + 20 * 2 / 3) / 21
    assert rates["activity_rate_all"][6:9].tolist() == pytest.approx([of_one, 20 * overall / 21, of_one])


def test_without_a_delay_an_outcome_is_complete_with_its_impression() -> None:
    stats, _ = counted_at(a_few_impressions(), [CUT - 2 * DAY, CUT], timedelta(0))
    assert stats.ad_positives_all.tolist() == [0, 2]


def test_clicks_count_from_their_impression_and_are_absent_where_no_log_has_them() -> None:
    clicked = a_few_impressions(clicked=[1, 1, 0])
    stats, rates = counted_at(clicked, [CUT], 7 * DAY)
    assert stats.ad_clicks_all.tolist() == stats.ad_advertiser_clicks_4w.tolist() == [2]
    assert stats.ad_click_rate_all.tolist() == pytest.approx([2 / 3])
    assert rates["activity_click_rate_all"].tolist() == pytest.approx([(1 + 40 / 3) / 21] * 2 + [40 / 3 / 21])
    assert not [name for name in counted_at(a_few_impressions(), [CUT], DAY)[0] if "click" in name]


@given(st.data())
def test_no_rate_exceeds_one(data: st.DataObject) -> None:
    """Whatever comes when: positives are a part of the impressions that they are divided by."""
    rows = data.draw(st.integers(1, 30))
    days = data.draw(st.lists(st.integers(0, 80), min_size=rows, max_size=rows))
    labels, clicks = (data.draw(st.lists(st.integers(0, 1), min_size=rows, max_size=rows)) for _ in range(2))
    users = data.draw(st.lists(st.sampled_from(["u1", "u2", "u3"]), min_size=rows, max_size=rows))
    shown = pd.DataFrame(
        {"user_id": users, "ad_id": "x", "timestamp": [CUT + day * DAY for day in days]}
        | {"label": labels, "clicked": clicks}
    )
    moments = [CUT + day * DAY for day in range(0, 120, 9)]
    stats, rates = counted_at(shown, moments, data.draw(st.integers(0, 40)) * DAY)
    every = [stats[name] for name in stats if "rate" in name] + [v for name, v in rates.items() if "rate" in name]
    assert all(((values >= 0) & (values <= 1)).all() for values in every)
    assert (stats.ad_positives_4w <= stats.ad_positives_all).all()


def test_own_rates_equal_a_loop(published) -> None:
    tables, repo = published
    table = pd.read_parquet(view_folder(repo, "user_history") / "table.parquet")
    impressions = tables["impressions"]
    for row in table.sample(25, random_state=2).itertuples():
        own = impressions[(impressions.timestamp < row.snapshot) & (impressions.user_id == row.user_id)]
        complete = impressions[impressions.timestamp < row.snapshot - LABEL_DELAY]
        for window, days in (("12w", 84), ("all", 10_000)):
            assert getattr(row, f"activity_impressions_{window}") == (own.timestamp >= row.snapshot - days * DAY).sum()
            inside = complete[
                (complete.user_id == row.user_id) & (complete.timestamp >= row.snapshot - LABEL_DELAY - days * DAY)
            ]
            expected = (inside.label.sum() + 20 * complete.label.mean()) / (len(inside) + 20)
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
