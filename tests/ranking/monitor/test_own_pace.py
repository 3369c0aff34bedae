"""What a feature does by itself is no drift: chance among few units, and the pace that it had in training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from advprior.store.arrays import Double
from advprior.store.contract import AD_STATS_VIEW, USER_HISTORY_VIEW
from advprior.store.features import Feature
from ranking.frame.row_blocks import InFiles, InMemory, SomeRows
from ranking.monitor.drift import drift_of, frame_drifts
from ranking.monitor.findings import Drift
from ranking.monitor.own_pace import Levels, Scale
from tests.tiny import START

#: Weeks of training, and of what is compared with it.
_TRAIN, _NOW = (0, 4), (6, 8)


def rows(weeks: tuple[int, int], count: int, seed: int, value: Callable[[Double], Double]) -> pd.DataFrame:
    """Rows of as many users, with a feature that is a function of the week and noise."""
    rng = np.random.default_rng(seed)
    week = np.sort(rng.uniform(*weeks, count))
    time = pd.to_datetime(START) + pd.to_timedelta(week * 7, unit="D")
    frame = pd.DataFrame({"user_id": [f"u{i}" for i in range(count)], "timestamp": time.astype("datetime64[us, UTC]")})
    return frame.assign(x=value(week) + rng.normal(size=count))


def drift(value: Callable[[Double], Double], now: Callable[[Double], Double], count: int = 2000) -> Drift:
    before, after = rows(_TRAIN, count, 0, value), rows(_NOW, count, 1, now)
    return drift_of("x", "feature", before["x"], after["x"], Scale.of(before, after, "timestamp", ["user_id"]))


def test_a_feature_that_goes_on_as_it_did_is_stable() -> None:
    steady = drift(lambda week: 0.3 * week, lambda week: 0.3 * week)
    assert steady.psi > 1  # a week from training is a long way
    assert steady.severity == "stable"
    still = drift(np.zeros_like, np.zeros_like)
    assert (still.severity, still.psi < 0.05) == ("stable", True)


def test_a_feature_that_stood_still_and_jumps_is_not() -> None:
    assert drift(np.zeros_like, lambda week: 1.2 + 0 * week).severity == "major"
    slow = drift(lambda week: 0.1 * week, lambda week: 3.0 + 0.1 * week)
    assert slow.psi > slow.expected > drift(np.zeros_like, np.zeros_like).expected
    assert slow.severity == "major"


def test_chance_among_few_units_is_no_drift() -> None:
    """The bare index calls nearly all of a hundred features moderate or worse: none moves, of forty users each."""
    zero = np.zeros_like
    drifts = []
    for seed in range(100):
        before, after = rows(_TRAIN, 40, 2 * seed, zero), rows(_NOW, 40, 2 * seed + 1, zero)
        scale = Scale.of(before, after, "timestamp", ["user_id"])
        drifts.append(drift_of("x", "feature", before["x"], after["x"], scale))
    assert sum(one.psi >= 0.1 for one in drifts) > 80
    assert sum(one.severity != "stable" for one in drifts) <= 1


def test_a_steady_pace_of_few_users_is_no_drift() -> None:
    """Around a move that goes on as it did chance is larger than around none: one sum of both was too narrow."""
    drifts = []
    for seed in range(150):
        before, after = (
            rows(weeks, 240, 2 * seed + i, lambda week: 0.12 * week) for i, weeks in enumerate(((0, 6), (9, 10)))
        )
        scale = Scale.of(before, after, "timestamp", ["user_id"])
        drifts.append(drift_of("x", "feature", before["x"], after["x"], scale))
    assert sum(one.severity != "stable" for one in drifts) <= 1
    assert sum(one.psi > 0.25 for one in drifts) > 100


def test_features_of_ads_are_held_against_how_many_ads_there_are() -> None:
    """Thousands of users see six ads of three categories: which ads run moves their features, by category or by ad."""
    rng = np.random.default_rng(0)

    def side(weeks: tuple[int, int], ads: list[int], seed: int) -> pd.DataFrame:
        frame = rows(weeks, 1500, seed, np.zeros_like)
        frame = frame.loc[frame.index.repeat(2)].reset_index(drop=True)  # slates of two
        ad = rng.choice(ads, len(frame))
        category = np.asarray(["a", "b", "c"], object)[ad % 3]
        of_category = 1.0 + ad % 3
        return frame.assign(
            ad_id=ad.astype(str), advertiser_id=ad.astype(str), kind=category, shown=ad, sum=of_category
        )

    before, after = side(_TRAIN, [0, 1, 2, 3], 1), side(_NOW, [2, 3, 4, 5], 2)
    ads = [
        Feature(name, "ad", AD_STATS_VIEW, "category" if name == "kind" else "float32")
        for name in ("kind", "sum", "shown")
    ]
    drifts = frame_drifts(
        SomeRows.all_of(before),
        SomeRows.all_of(after),
        [*ads, Feature("x", "activity", USER_HISTORY_VIEW, "float32")],
        {},
    )
    by_name = {one.name: one for one in drifts}
    assert by_name["sum"].psi > 0.1
    assert by_name["sum"].expected > by_name["shown"].expected > 1 > by_name["x"].expected
    assert {one.severity for one in drifts} == {"stable"}


def plain_level(frame: pd.DataFrame, values: pd.Series, keys: list[str]) -> str | None:
    """The level of a column, group by group."""
    for key in sorted(keys, key=lambda key: len(frame[key].unique())):
        groups = values.groupby([frame["at"], frame[key]])
        shared = (groups.size() > 1).to_numpy()
        if shared.any() and (groups.nunique().to_numpy()[shared] <= 1).all():
            return key
    return None


@settings(max_examples=40, deadline=None)
@given(data=st.data(), count=st.integers(1, 12))
def test_a_level_is_that_of_the_groups(data: st.DataObject, count: int) -> None:
    def column(*values: object) -> list[object]:
        return data.draw(st.lists(st.sampled_from(values), min_size=count, max_size=count))

    frame = pd.DataFrame({"at": column(1, 2), "few": column("a", "b"), "many": column("c", "d", "e", None)})
    values = pd.Series(column(0.0, -0.0, 1.0, np.nan)) if count % 2 else pd.Series(column("x", "y", None), dtype=object)
    levels = Levels(SomeRows.all_of(frame), "at", ["few", "many"])
    assert levels.of(values) == plain_level(frame, values, ["few", "many"])


def test_drift_of_a_frame_on_disk_is_that_of_the_frame(tmp_path: Path) -> None:
    """Row group by row group, some rows of each, with text whose categories differ from group to group."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=400), "kind": pd.Categorical(rng.choice(list("abc"), 400))})
    frame = frame.assign(
        timestamp=pd.date_range("2026-01-01", periods=400, freq="h", tz="UTC"),
        user_id=[f"u{i % 50}" for i in range(400)],
        ad_id=[f"ad{i % 7}" for i in range(400)],
        advertiser_id=[f"a{i % 3}" for i in range(400)],
    )
    frame.loc[300:, "x"] += 1
    frame.loc[::9, ["x", "kind"]] = None
    frame.to_parquet(tmp_path / "rows.parquet", row_group_size=64, index=False)
    features = [Feature("x", "activity", USER_HISTORY_VIEW), Feature("kind", "ad", AD_STATS_VIEW, "category")]
    old, new = np.arange(0, 300, 2), np.arange(301, 400)
    ways = [
        frame_drifts(SomeRows(source, old), SomeRows(source, new), features, {})
        for source in (InMemory(frame), InFiles([tmp_path / "rows.parquet"]))
    ]
    assert ways[0] == ways[1]
    assert ways[0][0].psi > 0.1
