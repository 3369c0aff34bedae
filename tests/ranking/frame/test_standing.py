"""Rows of published snapshots that are taken over: equal to rows counted anew, whatever the log brought meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from advprior.store.contract import LABEL_DELAY
from advprior.store.times import moment_us
from ranking.frame import baseline, standing
from ranking.frame.baseline import WholeLog
from ranking.frame.stream_counts import LevelCounts
from ranking.frame.views import view_folder
from tests.ranking.frame.logs import Tables, assert_equal, log_at, publish_log
from tests.tiny import PLAN, START, WEEK


def test_what_is_appended_to_is_what_is_counted_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Week by week, with late rows, a newcomer, a new ad and a plan that drops old snapshots."""
    counted: list[int] = []
    at = LevelCounts.at

    def noted(counts: LevelCounts, moment: int) -> Any:
        counted.append(moment)
        return at(counts, moment)

    monkeypatch.setattr(LevelCounts, "at", noted)
    for week in (24, 25, 26, 28):
        tables = log_at(week)
        counted.clear()
        publish_log(tmp_path / "tables", tmp_path / "grown", week, tables)
        if week > 24:
            weeks = (week - 1,) if week < 28 else (26, 27)
            assert set(counted) == {moment_us(START + number * WEEK) for number in weeks}
        publish_log(tmp_path / "tables", tmp_path / "whole", week, tables, anew=True)
        assert_equal(tmp_path / "grown", tmp_path / "whole")


def test_a_block_of_rows_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many snapshots stand; and blocks make the same publication."""
    publish_log(tmp_path / "tables", tmp_path / "whole", 26, log_at(26))
    publish_log(tmp_path / "tables", tmp_path / "grown", 25, log_at(25))
    for module in (standing, baseline):
        monkeypatch.setattr(module, "ROWS", 20)
    publish_log(tmp_path / "tables", tmp_path / "grown", 26, log_at(26))
    assert_equal(tmp_path / "grown", tmp_path / "whole")
    for view, most in (("user_history", 20), ("ad_stats", 24)):  # of one snapshot there are 8 users and 24 ads
        file = pq.ParquetFile(view_folder(tmp_path / "grown", view) / "table.parquet")
        assert max(file.metadata.row_group(i).num_rows for i in range(1, file.num_row_groups)) <= most


def test_a_damaged_publication_is_counted_anew(tmp_path: Path) -> None:
    publish_log(tmp_path / "tables", tmp_path / "grown", 25, log_at(25))
    path = view_folder(tmp_path / "grown", "user_history") / "history_ad_values.npy"
    content = bytearray(path.read_bytes())
    content[-4:] = b"\xff\xff\x7f\x7f"
    path.write_bytes(content)
    for repo in ("grown", "whole"):
        publish_log(tmp_path / "tables", tmp_path / repo, 26, log_at(26))
    assert_equal(tmp_path / "grown", tmp_path / "whole")


def changed(name: str, column: str, row: int, value: Any) -> Callable[[Tables], Tables]:
    def change(tables: Tables) -> Tables:
        table = tables[name].reset_index(drop=True).copy()
        table.loc[row, column] = value
        return tables | {name: table}

    return change


def without(name: str, row: int) -> Callable[[Tables], Tables]:
    return lambda tables: tables | {name: tables[name].drop(tables[name].index[row])}


def shuffled(tables: Tables) -> Tables:
    return {name: table.sample(frac=1, random_state=1) for name, table in tables.items()}


def with_event(**values: Any) -> Callable[[Tables], Tables]:
    def add(tables: Tables) -> Tables:
        row = tables["events"].iloc[[7]].assign(**values)
        return tables | {"events": pd.concat([tables["events"], row], ignore_index=True)}

    return add


def with_user(known_from: pd.Timestamp) -> Callable[[Tables], Tables]:
    newcomer = pd.DataFrame({"user_id": ["u0015"], "profile_age": ["55+"], "known_from": [known_from]})
    return lambda tables: tables | {"users": pd.concat([tables["users"], newcomer])}


NOW, BEFORE = (pd.Timestamp(START + number * WEEK) for number in (25, 20))
SAME = {
    "rows in another order": shuffled,
    "a late row": with_event(arrived=NOW),
    "a row of now": with_event(timestamp=NOW, arrived=NOW),
    "who comes later": with_user(NOW),
}
OTHER = {
    "a value": changed("events", "value", 7, 99.0),
    "an event's category": changed("events", "category", 7, "Soap"),
    "a row that is gone": without("events", 7),
    "a row put into the past": with_event(timestamp=BEFORE, arrived=BEFORE),
    "an outcome that was complete": changed("impressions", "label", 3, 1),
    "a click": changed("impressions", "clicked", 3, 1),
    "an ad's category": changed("ads", "category", 4, "Tea"),
    "an ad's cluster": changed("ads", "cluster", 4, "0"),
    "a user who is gone": without("users", 2),
    "who was there": with_user(BEFORE),
}


def past(tables: Tables) -> str:
    loaded = {name: table.reset_index(drop=True) for name, table in tables.items()}
    for name in ("users", "ads", "advertisers"):
        loaded[name] = loaded[name].sort_values(loaded[name].columns[0], ignore_index=True)
    return WholeLog(loaded, PLAN, LABEL_DELAY).past.until(moment_us(START + 24 * WEEK))


@pytest.fixture(scope="module")
def of_today() -> tuple[Tables, str]:
    tables = log_at(28)
    assert tables["impressions"][["label", "clicked"]].iloc[3].tolist() == [0, 0]
    return tables, past(tables)


@pytest.mark.parametrize("what", [*SAME, *OTHER])
def test_the_past_is_what_was_counted(what: str, of_today: tuple[Tables, str]) -> None:
    tables, before = of_today
    assert (past((SAME | OTHER)[what](tables)) == before) is (what in SAME)


def test_an_outcome_is_of_the_past_once_it_is_complete() -> None:
    tables = log_at(28)
    times = tables["impressions"].reset_index(drop=True).timestamp
    until = pd.Timestamp(START + 24 * WEEK)
    for complete, rows in ((True, times < until - LABEL_DELAY), (False, times >= until - LABEL_DELAY)):
        own = times[rows & (times < until)].index
        row = next(i for i in own if tables["impressions"].label.iloc[i] == 0)
        assert (past(changed("impressions", "label", row, 1)(tables)) != past(tables)) is complete
