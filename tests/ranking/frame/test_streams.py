"""Counts of exposures and clicks against a loop over raw rows, on logs of any shape."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advprior.store.contract import CLICKED, EVENTS, IMPRESSIONS
from advprior.store.times import moment_us
from ranking.frame.gather import gather_history
from ranking.frame.history import CountedSnapshots, counted_parts
from ranking.frame.history_files import level_files, write_catalog
from ranking.frame.numbering import HistoryIds, ids_of_ads, load_history_ids
from ranking.frame.stream_counts import LevelCounts, stream_rows
from ranking.frame.streams import CLICKS, EXPOSURE_REACH_DAYS, EXPOSURES, STREAMS

DAY, START = timedelta(days=1), datetime(2024, 1, 1, tzinfo=UTC)
DELAY = 3 * DAY
USERS = pd.DataFrame({"user_id": ["u0", "u1"]})
ADS = pd.DataFrame(
    {
        "ad_id": ["a-0", "a-1", "b-0"],
        "advertiser_id": ["a", "a", "b"],
        "category": ["Tea", "Tea", "Soap"],
        "department": ["Food", None, "Food"],
        "cluster": ["1", "2", "2"],
    }
)
NO_EVENTS = pd.DataFrame({"user_id": [], "timestamp": pd.DatetimeIndex([], tz="UTC"), "value": []}).assign(
    advertiser_id=pd.Series(dtype=object), category=pd.Series(dtype=object)
)
NOT_SHOWN = NO_EVENTS.assign(ad_id=pd.Series(dtype=object), label=pd.Series(dtype=np.int64))
_ROW = st.tuples(
    st.sampled_from(["u0", "u1"]),
    st.sampled_from(ADS.ad_id.tolist()),
    st.integers(0, 220),  # half days: rows of one moment, and of a snapshot's own, occur
    st.integers(0, 1),
)


def shown_table(rows: list[tuple[str, str, int, int]], answer: str) -> pd.DataFrame:
    users, ads, halves, answers = zip(*rows, strict=True) if rows else ((), (), (), ())
    times = pd.to_datetime([START + half * DAY / 2 for half in halves], utc=True).astype("datetime64[us, UTC]")
    table = pd.DataFrame({"user_id": users, "ad_id": ads, "timestamp": times, "label": 0}, dtype=None)
    return table.assign(**{answer: np.array(answers, dtype=np.int64)})


def counted(own: pd.DataFrame, cut: datetime, answer: str) -> dict[str, float]:
    """Values of one user and id, by a loop."""
    delay = timedelta(0) if answer == CLICKED else DELAY
    before = own[own.timestamp < cut]
    reached = before[before.timestamp >= cut - EXPOSURE_REACH_DAYS * DAY]
    answers = before[(before[answer] == 1) & (before.timestamp + delay < cut)]
    newer = reached if answers.empty else reached[reached.timestamp > answers.timestamp.max()]
    values = {f"exposures_{n}": float((reached.timestamp >= cut - d * DAY).sum()) for n, d in EXPOSURES.windows.items()}
    values["exposures_unanswered"] = float(len(newer))
    values["exposures_recency_days"] = (cut - reached.timestamp.max()) / DAY if len(reached) else np.nan
    if answer == CLICKED:
        clicks = before[before.clicked == 1].timestamp
        for name, days in CLICKS.windows.items():
            values[f"clicks_{name}"] = float(len(clicks) if days is None else (clicks >= cut - days * DAY).sum())
        values["clicks_recency_days"] = (cut - clicks.max()) / DAY if len(clicks) else np.nan
    return values


@pytest.mark.parametrize("answer", [CLICKED, "label"])
@given(rows=st.lists(_ROW, max_size=25), day=st.integers(0, 120), counted_first=st.integers(0, 120))
@settings(max_examples=15, deadline=None)
def test_counts_equal_a_loop(answer: str, rows: list[tuple[str, str, int, int]], day: int, counted_first: int) -> None:
    """Whatever snapshot was counted before, an earlier or a later one: of that nothing is left."""
    shown, cut = shown_table(rows, answer), START + day * DAY
    ids = HistoryIds(["a", "b"], ADS)
    streams = stream_rows(USERS, ids, {EVENTS: NO_EVENTS, IMPRESSIONS: shown}, DELAY)
    assert [rows.stream.name for rows in streams][2:] == (["clicks"] if answer == CLICKED else [])
    for of_stream in streams[1:]:
        stream = of_stream.stream
        for level, numbering in stream.levels_in(ids.sizes).items():
            size, of_ads = ids.sizes[numbering], ids.ads[numbering]
            counts = LevelCounts(of_stream, numbering, ids)
            counts.at(moment_us(START + counted_first * DAY))
            keys, values = counts.at(moment_us(cut))
            by_key = dict(zip(keys.tolist(), values.tolist(), strict=True))
            for u, user in enumerate(USERS.user_id):
                for ad in ADS[of_ads.to_numpy() >= 0].itertuples():
                    same = {"advertiser": ADS.advertiser_id == ad.advertiser_id, "ad": ADS.ad_id == ad.ad_id}
                    same |= {name: ADS[name] == getattr(ad, name) for name in ("department", "cluster")}
                    named = ADS[same[level]].ad_id
                    own = shown[(shown.user_id == user) & shown.ad_id.isin(named)]
                    nothing = [0.0] * (len(stream.quantities) - 1) + [np.nan]
                    actual = by_key.get(u * size + int(of_ads[ad.ad_id]), nothing)
                    expected = counted(own, cut, answer)
                    of_stream_only = [expected[f"{stream.name}_{value}"] for value in stream.quantities]
                    np.testing.assert_allclose(actual, of_stream_only, rtol=1e-6)


def test_what_comes_after_a_snapshot_changes_nothing_before_it(tmp_path: Path) -> None:
    """The published arrays and lists of a snapshot, with and without all rows at or after it."""
    rng = np.random.default_rng(0)
    rows: Any = [
        (f"u{rng.integers(2)}", ADS.ad_id[int(rng.integers(3))], int(rng.integers(220)), int(rng.random() < 0.3))
        for _ in range(300)
    ]
    cuts = [START + day * DAY for day in (40, 80)]
    ids = HistoryIds(["a", "b"], ADS)
    whole = shown_table(rows, CLICKED)
    known = whole[whole.timestamp < cuts[0]]
    lists = []
    for name, shown in (("whole", whole), ("known", known)):
        (tmp_path / name).mkdir()
        streams = stream_rows(USERS, ids, {EVENTS: NO_EVENTS, IMPRESSIONS: shown}, DELAY)
        version = write_catalog(ids, STREAMS, tmp_path / name)
        counted_cuts = CountedSnapshots(cuts, timedelta(hours=1), version, 0, len(USERS))
        with level_files(STREAMS, ids, tmp_path / name) as files:
            table = pd.concat(counted_parts(USERS, streams, ids, counted_cuts, files), ignore_index=True)
        lists.append(table[table.snapshot == pd.Timestamp(cuts[0])].drop(columns="history_row"))
    pd.testing.assert_frame_equal(lists[0], lists[1])
    pointers, about = np.array([0, 1]).repeat(3), load_history_ids(tmp_path / "whole")
    for stream in STREAMS:
        for level, numbering in stream.levels_in(ids.sizes).items():
            of_ads = np.tile(ids_of_ads(about, numbering), 2)
            gathered = [
                gather_history(tmp_path / n, stream.files(level), about["sizes"][numbering], pointers, of_ads)
                for n in ("whole", "known")
            ]
            np.testing.assert_array_equal(*gathered)


@pytest.mark.parametrize("level", ["department", "cluster"])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_an_event_has_no_group_before_an_ad_tells_it(level: str, data: Any) -> None:
    """At any snapshot the counts are those of the ads that exist then, whatever was counted before."""
    bought = data.draw(st.lists(_ROW, min_size=1, max_size=25))
    groups = data.draw(st.lists(st.sampled_from(["x", "y", None]), min_size=6, max_size=6))
    days = data.draw(st.lists(st.integers(0, 110), min_size=6, max_size=6))
    ads = pd.concat([ADS, ADS.assign(ad_id=ADS.ad_id + "-later")], ignore_index=True).drop(columns="cluster")
    ads = ads.drop(columns="department").assign(**{level: pd.Series(groups, dtype=object)})
    since = np.array([moment_us(START + day * DAY) for day in days], np.int64)
    events = shown_table(bought, "label").merge(ADS[["ad_id", "advertiser_id", "category"]]).drop(columns="ad_id")

    def counted(whole: bool, *cuts: datetime) -> dict[tuple[int, str], list[float]]:
        exists = np.ones(len(ads), bool) if whole else since <= moment_us(cuts[-1])
        ids = HistoryIds(["a", "b"], ads[exists].reset_index(drop=True), since[exists])
        if level not in ids.groupings:
            return {}
        counts = LevelCounts(stream_rows(USERS, ids, {EVENTS: events, IMPRESSIONS: NOT_SHOWN}, DELAY)[0], level, ids)
        keys, values = [counts.at(moment_us(cut)) for cut in cuts][-1]
        names, size = ids.groupings[level], ids.sizes[level]
        return {(key // size, names[key % size]): row for key, row in zip(keys.tolist(), values.tolist(), strict=True)}

    first, cut = sorted(START + day * DAY for day in data.draw(st.lists(st.integers(0, 120), min_size=2, max_size=2)))
    assert counted(True, first, cut) == counted(False, cut)


def test_events_in_the_same_department() -> None:
    """Their own where they have one; else that of their category's first ad, whatever a later ad says."""
    early, late = moment_us(START), moment_us(START + 9 * DAY)
    ads = ADS.assign(department=["Food", "Drugs", " Drugs "])
    ids = HistoryIds(["a", "b"], ads, np.array([late, early, early]))
    events = pd.DataFrame({"advertiser_id": ["a", "b", None, None], "category": ["Tea", "Soap", "Tea", "Oil"]})
    assert ids.groupings["department"] == ["Drugs", "Food"]
    assert ids.event_codes(events)["department"].tolist() == [0, 0, 0, -1]
    stated = events.assign(department=["Food", None, "Drugs", "Toys"])
    assert ids.event_codes(stated)["department"].tolist() == [1, -1, 0, -1]
    assert ids.exist_from["department"].tolist() == [early, late]
    assert ids.to_json(STREAMS)["departments"] == ["Drugs", "Food"]


def test_events_in_the_same_cluster() -> None:
    """Their own where they have one; else that of the first ad of their advertiser × category, none where none is."""
    early, late = moment_us(START), moment_us(START + 9 * DAY)
    ids = HistoryIds(["a", "b"], ADS.assign(cluster=["07", "12", None]), np.array([late, early, early]))
    events = pd.DataFrame({"advertiser_id": ["a", "b", "b", None], "category": ["Tea", "Soap", "Tea", "Tea"]})
    assert ids.event_codes(events)["cluster"].tolist() == [1, -1, -1, -1]
    assert ids.event_codes(events.assign(cluster=["07", None, "12", "99"]))["cluster"].tolist() == [0, -1, 1, -1]
    assert ids.exist_from["cluster"].tolist() == [late, early]
    assert ids.to_json(STREAMS)["clusters"] == ["07", "12"]


@pytest.mark.parametrize("column", [None, [None, " ", None]])
@pytest.mark.parametrize("level", ["department", "cluster"])
def test_without_departments_or_clusters_nothing_changes(level: str, column: list[str | None] | None) -> None:
    plain = ADS.drop(columns=["department", "cluster"])
    ids = HistoryIds(["a", "b"], plain if column is None else plain.assign(**{level: pd.Series(column, dtype=object)}))
    assert ids.to_json(STREAMS) == HistoryIds(["a", "b"], plain).to_json(STREAMS)
    assert level not in {**ids.event_codes(NO_EVENTS), **ids.ad_codes(plain.ad_id), **ids.sizes}
    assert EXPOSURES.levels_in(ids.sizes) == {"advertiser": "advertiser", "ad": "ad_id"}
