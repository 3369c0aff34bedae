"""Users and ads exist from their first row on, or from when the tables say so, and never before."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from advprior.store.existence import NEVER, ads_exist_from, load_ads_exist_from, load_users_exist_from, users_exist_from
from advprior.store.times import moment_us
from tests.tiny import write_tiny

START = datetime(2024, 1, 1, tzinfo=UTC)


def day(*numbers: float | None) -> pd.Series:
    return pd.Series(pd.to_datetime([None if n is None else START + timedelta(days=n) for n in numbers], utc=True))


def us(*numbers: float) -> list[int]:
    return [moment_us(START + timedelta(days=n)) for n in numbers]


def test_a_user_exists_just_after_the_first_row_that_counts_or_from_when_the_table_says() -> None:
    users = pd.DataFrame({"user_id": ["event", "late", "shown", "stated", "nothing"]})
    events = pd.DataFrame({"user_id": ["event", "event", "late", "shown", "stated"], "timestamp": day(3, 2, 1, 9, 1)})
    shown = pd.DataFrame({"user_id": ["late", "shown"], "timestamp": day(8, 4)})
    first = users_exist_from(users, events, shown)
    assert first.tolist() == [*[moment + 1 for moment in us(2, 1, 4, 1)], NEVER]
    events["arrived"] = day(None, None, 5, None, None)
    users["known_from"] = day(None, None, None, 7, None)
    assert users_exist_from(users, events, shown).tolist() == [*[m + 1 for m in us(2, 5, 4)], *us(7), NEVER]
    assert users_exist_from(users, events).tolist()[2] == us(9)[0] + 1


def test_an_ad_exists_with_its_first_impression_or_from_when_the_table_says() -> None:
    ads = pd.DataFrame({"ad_id": ["x", "y", "z"], "known_from": day(None, 1, None)})
    shown = pd.DataFrame({"ad_id": ["x", "y"], "timestamp": day(4, 4)})
    assert ads_exist_from(ads, shown).tolist() == [us(4)[0] + 1, us(1)[0], NEVER]


def test_of_a_folder_only_what_is_needed_is_read_and_ids_may_be_in_any_order(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "tables", users=6)
    users, events, shown = (pd.read_parquet(folder / f"{name}.parquet") for name in ("users", "events", "impressions"))
    expected = users_exist_from(users, events, shown)
    ids = [*users["user_id"][::-1], "stranger"]
    assert load_users_exist_from(folder, ids).tolist() == [*expected[::-1], NEVER]
    ads = pd.read_parquet(folder / "ads.parquet")
    assert load_ads_exist_from(folder, [*ads["ad_id"], "none"]).tolist() == [*ads_exist_from(ads, shown), NEVER]
    (folder / "impressions.parquet").unlink()
    assert (load_users_exist_from(folder, ids)[:-1] >= expected[::-1]).all()
    assert np.array_equal(load_users_exist_from(folder, ids)[:-1], users_exist_from(users, events)[::-1])
