"""The stretches of time in which a view's rows are the same: what lets one join serve many impressions."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ranking.frame import moments
from ranking.frame.moments import available, changes


def _view(path: Path | str, ttl: timedelta | None, **mapping: str) -> Any:
    """What `changes` reads of Feast's view."""
    source = SimpleNamespace(
        path=str(path), timestamp_field="at", created_timestamp_column="made", field_mapping=mapping
    )
    return SimpleNamespace(batch_source=source, ttl=ttl)


def _write(path: Path, at: list[int], made: list[int], unit: str = "us") -> Path:
    times = {"at": at, "when": made} if "mapped" in path.name else {"at": at, "made": made}
    frame = pd.DataFrame({name: pd.Series(np.array(values, f"datetime64[{unit}]")) for name, values in times.items()})
    frame.to_parquet(path, index=False)
    return path


def test_a_row_comes_is_created_and_expires(tmp_path: Path) -> None:
    path = _write(tmp_path / "view.parquet", [10, 10, 50], [10, 20, 50])
    edges = changes(_view(path, timedelta(microseconds=100)))
    assert edges is not None
    assert edges.tolist() == [10, 11, 20, 21, 50, 51, 110, 111, 150, 151]
    without = changes(_view(f"file://{path}", None))
    assert without is not None
    assert without.tolist() == [10, 11, 20, 21, 50, 51]
    mapped = _write(tmp_path / "mapped.parquet", [10], [20])
    renamed = changes(_view(mapped, timedelta(0), when="made"))
    assert renamed is not None
    assert renamed.tolist() == [10, 11, 20, 21]


def test_nanoseconds_change_within_the_microsecond(tmp_path: Path) -> None:
    """Of 10,500 ns: not yet there at 10 µs, there at 11."""
    edges = changes(_view(_write(tmp_path / "view.parquet", [10_500], [10_500], unit="ns"), None))
    assert edges is not None
    assert edges.tolist() == [10, 11]


def test_nothing_is_told_of_what_cannot_be_read_or_changes_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert changes(_view(tmp_path / "absent.parquet", None)) is None
    assert changes(_view("", None)) is None
    (tmp_path / "other").write_text("no Parquet")
    assert changes(_view(tmp_path / "other", None)) is None
    path = _write(tmp_path / "view.parquet", [1, 2, 3], [1, 2, 3])
    monkeypatch.setattr(moments, "MOST", 2)
    assert changes(_view(path, None)) is None


def test_the_joined_rows_time_is_that_of_the_newest_row_that_is_there(tmp_path: Path) -> None:
    """Against a search row by row: late rows, time to live, users without any."""
    rng = np.random.default_rng(0)
    count, lives = 200, 300
    rows = pd.DataFrame({"user_id": rng.integers(0, 12, count).astype(str), "at": rng.integers(1, 1000, count)})
    rows["made"] = rows["at"] + np.where(rng.random(count) < 0.3, rng.integers(0, 400, count), 0)
    asked = pd.DataFrame({"user_id": rng.integers(0, 15, 300).astype(str), "now": rng.integers(0, 1500, 300)})
    path = tmp_path / "view.parquet"
    rows.assign(**{name: rows[name].to_numpy("datetime64[us]") for name in ("at", "made")}).to_parquet(path)
    entities = asked[["user_id"]].assign(event_timestamp=pd.to_datetime(asked["now"], unit="us", utc=True))
    view = _view(path, timedelta(microseconds=lives))
    view.entity_columns = [SimpleNamespace(name="user_id")]
    times = available(view, entities)
    assert times is not None
    for user, now, time in zip(asked["user_id"], asked["now"], times, strict=True):
        there = rows[((rows["user_id"] == user) & (rows["at"] <= now) & (rows["made"] <= now)).to_numpy()]["at"]
        newest = there.max() if len(there) and there.max() >= now - lives else None
        assert (None if np.isnat(time) else int(time.astype(np.int64))) == newest
    view.entity_columns = []
    assert available(view, entities) is None
