"""What is read of a log in one pass, and lies on disk, is what a plain reading of each ranker's records gives."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advprior.store.errors import AdvpriorError
from ranking.experiment import shown_rows
from ranking.experiment.exposure_table import ExposureTable, publication
from ranking.experiment.shown import EXPOSURE, FEATURES, to_frame
from ranking.experiment.shown_rows import DEGRADED, ShownRows, Window, spool

START = datetime(2026, 1, 1, tzinfo=UTC)
CATEGORIES = {"a": {"kind": ["x", "y"]}, "b": {}}
VALUES = st.none() | st.floats(-9, 9, width=32)


@st.composite
def records(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Exposures of two rankers and a third, some without features; some features are the same in all slots."""
    made = []
    for number in range(draw(st.integers(0, 12))):
        ranker, count = draw(st.sampled_from("abc")), draw(st.integers(1, 3))
        of_slots = draw(st.lists(VALUES, min_size=count, max_size=count))
        features: dict[str, Any] = {"of_user": draw(VALUES), "of_ad": of_slots}
        if ranker == "a":
            features["kind"] = draw(st.lists(st.sampled_from(["x", "y", None]), min_size=count, max_size=count))
        made.append(
            {
                "exposure_id": str(number),
                "experiment": draw(st.sampled_from(["e", "other"])),
                "arm": draw(st.sampled_from(["c", "t"])),
                "prior": draw(st.sampled_from([None, {"predictor": "llm", "publication": "p1"}])),
                "time": (START + timedelta(hours=draw(st.integers(0, 9)))).isoformat(),
                "user_id": draw(st.sampled_from(["u", "v"])),
                "ranker": ranker,
                "degraded": draw(st.sampled_from([[], ["late", "no_prior"]])),
                "slots": [[f"ad{i}", 0.5] for i in range(count)],
                **({FEATURES: features} if draw(st.booleans()) else {}),
            }
        )
    return made


def plain(some: list[dict[str, Any]], window: Window, ranker: str) -> list[dict[str, Any]]:
    """Of one ranker, the newest of the window, in the order of the log."""
    own = [one for one in some if one["ranker"] == ranker and FEATURES in one]
    own = [one for one in own if window.holds(datetime.fromisoformat(one["time"]))]
    newest = sorted(own, key=lambda one: one["time"])[-window.limit :] if window.limit else own
    return [one for one in own if any(one is other for other in newest)]


def read(shown: ShownRows) -> pd.DataFrame:
    whole = shown.rows.read(shown.rows.names)
    return whole.iloc[shown.places].reset_index(drop=True)


@settings(max_examples=25, deadline=None)
@given(some=records(), limit=st.none() | st.integers(1, 5), start=st.none() | st.integers(0, 9))
def test_rows_are_those_of_a_plain_reading(
    tmp_path_factory: pytest.TempPathFactory, some: list[dict[str, Any]], limit: int | None, start: int | None
) -> None:
    window = Window(None if start is None else START + timedelta(hours=start), START + timedelta(hours=8), limit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shown_rows, "_ROWS", 2)
        patch.setattr(shown_rows, "_GROUP", 4)
        spooled = spool(iter(some), CATEGORIES, tmp_path_factory.mktemp("log"), window)
    for ranker in CATEGORIES:
        own = plain(some, window, ranker)
        assert spooled[ranker].exposures == len(own)
        if not own:
            with pytest.raises(AdvpriorError, match="SRV021"):
                spooled[ranker].required(Path("log"))
            continue
        expected, rows = to_frame(own, ranker), read(spooled[ranker].required(Path("log")))
        for name in set(expected) - {EXPOSURE}:
            missing = expected[name].isna().to_numpy()
            assert (rows[name].isna().to_numpy() == missing).all()
            assert rows[name][~missing].tolist() == expected[name][~missing].tolist()
        assert rows[DEGRADED].tolist() == [", ".join(one["degraded"]) for one in own for _ in one["slots"]]


@settings(max_examples=25, deadline=None)
@given(some=records(), until=st.none() | st.integers(0, 9))
def test_a_table_of_exposures_is_the_log(some: list[dict[str, Any]], until: int | None) -> None:
    end = None if until is None else START + timedelta(hours=until)
    table = ExposureTable(iter(some), "e", end)
    own = [e for e in some if e["experiment"] == "e" and (end is None or datetime.fromisoformat(e["time"]) < end)]
    frame = table.frame()
    assert len(table) == len(frame) == len(own)
    for name, numbers in (("user_id", table.users), ("arm", table.arms), ("publication", table.publications)):
        names = np.array([*numbers, ""], dtype=object)
        values = [publication(e) if name == "publication" else e[name] for e in own]
        assert names[frame[name].to_numpy(np.int64)].tolist() == values
    assert frame["time"].tolist() == [pd.Timestamp(e["time"]) for e in own]
    assert frame["degraded"].tolist() == [bool(e["degraded"]) for e in own]
