"""Joined columns as a ranker takes them, whatever type a user's own view has them in."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from advprior.store.errors import AdvpriorError
from ranking.frame.columns import joined_column

IMPRESSION = np.array(["2024-01-02T12:00"] * 2, dtype="datetime64[us]")


@pytest.mark.parametrize(
    ("column", "expected", "lost"),
    [
        (pa.array([2**24 + 1, None]), 2.0**24, 0),
        (pa.array([2**64 - 1, None], pa.uint64()), 2.0**64, 0),
        (pa.array([True, None]), 1.0, 0),
        (pa.array([Decimal("1.5"), None]), 1.5, 0),
        (pa.array([1e300, None]), np.nan, 1),
        (pa.array([-np.inf, None]), np.nan, 1),
        (pa.array([dt.date(2024, 1, 1), None]), 1.5, 0),
        (pa.array([dt.datetime(2024, 1, 1, tzinfo=dt.UTC), None]), 1.5, 0),
        (pa.array([None, None]), np.nan, 0),
    ],
)
def test_a_number_a_flag_or_a_time(column, expected, lost):
    made, missing = joined_column("own:x", pa.chunked_array([column]), IMPRESSION)
    np.testing.assert_array_equal(made, np.array([expected, np.nan], dtype=np.float32))
    assert (made.dtype, missing) == (np.float32, lost)


@pytest.mark.parametrize("column", [pa.array([b"\xff", None]), pa.array([[1.0], None]), pa.array([dt.time(1), None])])
def test_another_type_is_one_coded_error(column):
    with pytest.raises(AdvpriorError, match=r"RNK046(.|\n)*own:x"):
        joined_column("own:x", pa.chunked_array([column]), IMPRESSION)
