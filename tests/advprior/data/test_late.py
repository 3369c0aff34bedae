"""Rows that are gone are named, and whether they had come late."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from advprior.data.check import check_mapping
from advprior.data.late import GONE_FILE
from tests.advprior.pipeline.test_refresh import WEEK, write_raw
from tests.tiny import START, tiny_tables


def test_rows_that_vanish_are_named(tmp_path: Path) -> None:
    tables = tiny_tables(users=8)
    events = tables["events"].sort_values("timestamp", ignore_index=True)
    late, out = events.iloc[[3]], tmp_path / "tables"

    def check(rows: pd.DataFrame) -> list[str]:
        write_raw(tmp_path / "raw", START + 30 * WEEK, **tables | {"events": rows})
        facts, _ = check_mapping(tmp_path / "raw/mapping.yaml", out, late=True)
        return [warning for warning in facts["warnings"] if "gone" in warning]

    assert check(events.drop(index=3)) == []
    assert check(events) == []  # it came late
    assert not (out / GONE_FILE).exists()
    (warning,) = check(events.drop(index=[3, 5]))
    assert warning.startswith("2 events before the newest snapshot are gone, 1 of which had come late")
    assert f"user {late.user_id.iloc[0]} at {late.timestamp.iloc[0].isoformat()}" in warning
    gone = pd.read_parquet(out / GONE_FILE)
    assert gone.user_id.tolist() == events.user_id.iloc[[3, 5]].tolist()
    assert gone.was_late.tolist() == [True, False]
    (warning,) = check(events.drop(index=range(3, 9)))
    assert "…" in warning
    assert not pd.read_parquet(out / GONE_FILE).was_late.any()  # only what this check found
