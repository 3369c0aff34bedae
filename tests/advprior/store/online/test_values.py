"""Every column's bytes are those that Feast's own functions make of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advprior.store.feast_import import light_feast_import
from advprior.store.online.values import encode

with light_feast_import():
    from feast import ValueType
    from feast.type_map import python_values_to_proto_values

INT64 = st.integers(-(2**63), 2**63 - 1)
SMALL = st.integers(-(2**31), 2**31 - 1)
FLOAT = st.floats(width=32)
DOUBLE = st.floats()
TIMES = st.datetimes(datetime(1901, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))
TIME = pa.timestamp("us", tz="UTC")
KINDS: dict[str, tuple[Any, Any, Any]] = {
    "text": (pa.string(), ValueType.STRING, st.text()),
    "large text": (pa.large_string(), ValueType.STRING, st.text()),
    "category": (pa.dictionary(pa.int32(), pa.string()), ValueType.STRING, st.sampled_from(["", "a", "bc"])),
    "int64": (pa.int64(), ValueType.INT64, st.integers(-(2**53), 2**53)),
    "int32": (pa.int32(), ValueType.INT32, SMALL),
    "int8 as int32": (pa.int8(), ValueType.INT32, st.integers(-128, 127)),
    "bool": (pa.bool_(), ValueType.BOOL, st.booleans()),
    "float": (pa.float32(), ValueType.FLOAT, FLOAT),
    "double": (pa.float64(), ValueType.DOUBLE, DOUBLE),
    "double as float": (pa.float64(), ValueType.FLOAT, FLOAT),
    "time": (TIME, ValueType.UNIX_TIMESTAMP, TIMES),
    "floats": (pa.list_(pa.float32()), ValueType.FLOAT_LIST, st.lists(FLOAT)),
    "large list of floats": (pa.large_list(pa.float32()), ValueType.FLOAT_LIST, st.lists(FLOAT)),
    "three floats": (pa.list_(pa.float32(), 3), ValueType.FLOAT_LIST, st.lists(FLOAT, min_size=3, max_size=3)),
    "doubles": (pa.list_(pa.float64()), ValueType.DOUBLE_LIST, st.lists(DOUBLE)),
    "int32s": (pa.large_list(pa.int32()), ValueType.INT32_LIST, st.lists(SMALL)),
    "int64s": (pa.list_(pa.int64()), ValueType.INT64_LIST, st.lists(INT64)),
    "floats with gaps": (pa.list_(pa.float32()), ValueType.FLOAT_LIST, st.lists(st.one_of(st.none(), FLOAT))),
    "texts": (pa.list_(pa.string()), ValueType.STRING_LIST, st.lists(st.text())),
}


def bytes_of_feast(column: Any, kind: Any) -> list[bytes]:
    values = column.to_numpy(zero_copy_only=False)
    return [value.SerializeToString() for value in python_values_to_proto_values(values, kind)]


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=12)
@given(data=st.data())
def test_the_bytes_are_feast_s(name: str, data: st.DataObject) -> None:
    arrow, kind, values = KINDS[name]
    rows = data.draw(st.lists(st.one_of(st.none(), values), min_size=1, max_size=8))
    column = pa.array(rows, arrow)
    start = data.draw(st.integers(0, len(rows) - 1))
    column = column.slice(start)  # a batch is a part of a larger one
    try:
        expected = bytes_of_feast(column, kind)
    except AssertionError:  # a column that Feast itself refuses
        return
    encoded = encode(column, kind)
    joined = pc.binary_join_element_wise(*encoded.pieces, pa.scalar(b"", pa.binary()))
    ours = joined.to_pylist() if isinstance(joined, pa.Array) else [joined.as_py()] * len(column)
    assert ours == expected
    lengths = [encoded.lengths] * len(ours) if isinstance(encoded.lengths, int) else list(encoded.lengths)
    assert lengths == [len(row) for row in ours]
