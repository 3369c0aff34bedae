"""The sizing table of the production guide says of each size what its text says of a unit."""

from __future__ import annotations

import pytest

from benchmarks.scale.sizing_table import Documented, documented, section, units

ROWS = documented(section())
ROUNDED = 0.15  # figures have one or two digits


def test_the_table_reaches_from_the_demo_to_what_needs_spark() -> None:
    assert [row.impressions for row in ROWS] == [10**6, 10**7, 10**8, 10**9]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.impressions:,}")
def test_each_figure_is_the_text_s_times_its_size(row: Documented) -> None:
    unit = units(section())
    expected = {
        "features_s": unit.features_s * row.impressions,
        "features_disk_gb": unit.features_bytes * row.impressions / 1e9,
        "frame_s": unit.start_s + unit.frame_s * row.impressions,
        "disk_gb": unit.frame_bytes * row.impressions / 1e9,
        "online_s": unit.start_s + (unit.user_s + unit.advertiser_s * row.advertisers) * row.users,
        "redis_gb": (unit.user_bytes + unit.advertiser_bytes * row.advertisers) * row.users / 1e9,
    }
    table = {name: getattr(row, name) for name in expected}
    assert table == pytest.approx(expected, rel=ROUNDED)
