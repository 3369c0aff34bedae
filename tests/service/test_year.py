"""The year's world shows no day what came later, its calendar holds on any length, its readout looks at every day."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from advprior.data.drawn import Size
from benchmarks.year.calendar import Calendar
from benchmarks.year.experiment import Looks
from benchmarks.year.traffic import Answers
from benchmarks.year.world import DAY, FIRST, Plan, World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"), Size(180, 8, 22), schema_day=20, drift_day=30)


def exported(world: World, day: int) -> dict[str, pd.DataFrame]:
    world.export(FIRST + day * DAY, Plan(0, 0))
    return {path.stem: pd.read_parquet(path) for path in Path(world.folder / "raw").glob("*.parquet")}


def test_a_day_sees_nothing_that_came_later(world: World) -> None:
    early, later = exported(world, 5), exported(world, 12)
    now = FIRST + 5 * DAY
    assert early["events"]["timestamp"].max() < now
    assert early["impressions"]["label_time"].dropna().max() < now
    assert (early["users"]["known_from"] <= now).all()
    assert len(early["users"]) < len(later["users"]) <= len(world.tables["users"])
    key = ["user_id", "timestamp", "advertiser_id"]
    of_then = later["events"][later["events"]["timestamp"] < now]
    late = of_then.merge(early["events"][key].drop_duplicates(), on=key, how="left", indicator=True)["_merge"]
    assert (late == "left_only").sum() > 0  # rows of before that nobody had heard of
    assert 0.02 < world.late < 0.09
    changed = early["impressions"].merge(later["impressions"], on="impression_id")
    assert (changed["label_y"] > changed["label_x"]).sum() > 0  # conversions that came about since


def test_the_log_is_extended_and_its_requests_move_on_their_days(world: World) -> None:
    before, after = exported(world, 19), exported(world, 35)
    assert "profile_tier" not in before["users"]
    assert {"profile_tier"} <= set(after["users"])
    assert set(after["events"]) - set(before["events"]) == {"device", "text"}
    profile = yaml.safe_load((world.folder / "raw" / "mapping.yaml").read_text())["tables"]["users"]["profile"]
    assert set(profile) == {"interest", "region", "tier"}
    shown = after["impressions"]
    moved = (shown["timestamp"] >= FIRST + 30 * DAY).to_numpy()
    shares = [(shown["context_placement"][rows] == "story").mean() for rows in (moved, ~moved)]
    assert shares[0] > 0.7 > 0.5 > shares[1]


@given(st.integers(20, 500), st.integers(0, 50))
def test_everything_happens_within_the_year(days: int, seed: int) -> None:
    calendar = Calendar.of(days, np.random.default_rng(seed))
    single = (calendar.schema, calendar.lift, calendar.drift, calendar.corrupt + 1, calendar.other_prior)
    assert all(0 < day < days for day in (*single, *calendar.bad_rankers, *calendar.kills))
    assert len(set(calendar.kills)) == 3
    assert not any(calendar.trains(day) or day - 1 == calendar.corrupt for day in calendar.kills)
    assert all(calendar.trains(day) for day in calendar.bad_rankers)
    assert calendar.bad_rankers[0] < calendar.bad_rankers[1]
    assert calendar.refits(calendar.other_prior)


def test_a_lift_is_announced_and_nulls_are_not() -> None:
    rng, answers = np.random.default_rng(0), Answers()
    for day in range(40):
        for user in rng.integers(0, 200, 100):
            time = (FIRST + day * DAY + timedelta(hours=2)).isoformat()
            answers.rows.append(("id", f"u{user}", "treatment" if user % 2 else "control", "", time, None, None, None))
    looks = Looks.of(answers, 40, 200)
    assert looks.user.max() < 200
    announced = looks.first_announced(rng, lift=0.6, since=5)
    assert announced is not None
    assert announced >= 5
    assert sum(looks.first_announced(rng) is not None for _ in range(10)) <= 1
