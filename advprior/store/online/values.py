"""Columns of Arrow as the bytes of Feast's protobuf values, without an object a row.

Feast makes a ``ValueProto`` of each cell and serializes it: some 8 µs a cell, and a vector of 100 floats goes through
a list of 100 Python numbers. The wire format needs none of that: packed floats are the column's own bytes behind a tag
and a length, and tags and lengths are made for a whole column at once. A column of any other kind than those below
goes through Feast's own functions, so that every column is written as Feast would write it (a test compares them).

The wire format: https://protobuf.dev/programming-guides/encoding; the field numbers are those of Feast's
``feast/types/Value.proto``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from advprior.store.arrays import Int

_NULL_TIME = np.iinfo(np.int64).min  # what numpy makes of a missing time, and so Feast
_EMPTY = pa.scalar(b"", pa.binary())
# wire types
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
# fields of ValueProto
_STRING, _INT32, _INT64, _DOUBLE, _FLOAT, _BOOL, _TIME = 2, 3, 4, 5, 6, 7, 8
_LISTS = {"INT32_LIST": (13, pa.int32()), "INT64_LIST": (14, pa.int64()), "DOUBLE_LIST": (15, pa.float64())}
_LISTS["FLOAT_LIST"] = (16, pa.float32())


@dataclass(frozen=True)
class Encoded:
    """One column's bytes, row by row.

    Attributes
    ----------
    pieces : list
        Binary arrays or scalars; joined in this order they are a row's bytes.
    lengths : int64 array, or int
        Bytes of each row; one number where all rows have as many.
    """

    pieces: list[Any]
    lengths: Int | int


def tag(number: int, wire: int) -> bytes:
    """Field number and wire type, as protobuf writes them before each value.

    >>> tag(16, 2).hex()
    '8201'
    """
    return varints(np.array([number << 3 | wire]))[0].as_py()  # type: ignore[no-any-return]


def varints(numbers: Any) -> pa.BinaryArray:
    """Protobuf's variable-length integers; a negative one takes ten bytes.

    >>> [v.hex() for v in varints(np.array([1, 300, -1])).to_pylist()]
    ['01', 'ac02', 'ffffffffffffffffff01']
    """
    payload, lengths = _varint_bytes(numbers)
    return _binary(payload, lengths)


def _varint_bytes(numbers: Any) -> tuple[Any, Int]:
    """All varints behind one another, and the bytes of each."""
    rest = np.asarray(numbers, np.int64).view(np.uint64)
    widest = max((int(rest.max(initial=0)).bit_length() + 6) // 7, 1)
    groups = rest[:, None] >> np.arange(0, 7 * widest, 7, dtype=np.uint64)
    lengths = np.maximum((groups != 0).sum(axis=1), 1)
    places = np.arange(widest)
    digits = (groups & np.uint64(0x7F)).astype(np.uint8)
    digits[places < lengths[:, None] - 1] |= 0x80
    return digits[places < lengths[:, None]], lengths.astype(np.int64)


def _binary(payload: Any, lengths: Any) -> pa.BinaryArray:
    """Consecutive slices of a buffer as binary values."""
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(payload))]
    return pa.BinaryArray.from_buffers(pa.binary(), len(lengths), buffers)


def fixed(values: Any) -> pa.BinaryArray:
    """Each number of an array as its own bytes, little-endian."""
    little = np.ascontiguousarray(values, np.asarray(values).dtype.newbyteorder("<"))
    return _binary(little.view(np.uint8), np.full(len(little), little.itemsize))


def encode(column: Any, value_type: Any) -> Encoded:
    """A column as the bytes of Feast's values.

    Parameters
    ----------
    column : pyarrow.Array
    value_type : feast.ValueType

    Returns
    -------
    Encoded
        What ``python_values_to_proto_values`` and ``SerializeToString`` give of each row: nothing for a missing one.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind, name = column.type, value_type.name
    if name in _LISTS and _is_list(kind) and kind.value_type == _LISTS[name][1]:
        encoded = _lists(column, _LISTS[name][0])
        if encoded is not None:
            return encoded
    scalar = _scalars(column, name)
    return _by_feast(column, value_type) if scalar is None else scalar


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _scalars(column: Any, name: str) -> Encoded | None:
    """Numbers, texts and times; None where the column is of another kind."""
    kind = column.type
    if name == "STRING" and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        texts = column.cast(pa.binary())
        sizes = pc.binary_length(texts).fill_null(0).to_numpy().astype(np.int64)
        return _without_nulls([tag(_STRING, _LENGTH), varints(sizes), texts], _varint_sizes(sizes) + sizes + 1, column)
    if name in ("INT32", "INT64") and pa.types.is_signed_integer(kind):
        numbers = column.fill_null(0).to_numpy().astype(np.int64)
        return _numbers(_INT32 if name == "INT32" else _INT64, _VARINT, varints(numbers), column)
    if name == "BOOL" and pa.types.is_boolean(kind):
        return _numbers(_BOOL, _VARINT, fixed(column.cast(pa.uint8()).fill_null(0).to_numpy()), column)
    if name == "UNIX_TIMESTAMP" and pa.types.is_timestamp(kind):
        seconds = _unix_seconds(column)
        return _numbers(_TIME, _VARINT, varints(np.where(_missing(column), _NULL_TIME, seconds)))
    if (name, kind) in (("FLOAT", pa.float32()), ("DOUBLE", pa.float64())):
        number, wire = (_FLOAT, _FIXED32) if name == "FLOAT" else (_DOUBLE, _FIXED64)
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, kind), column)  # to Feast, NaN is no value
        return _numbers(number, wire, fixed(column.fill_null(0).to_numpy(zero_copy_only=False)), column)
    return None


def _unix_seconds(column: Any) -> Any:
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[column.type.unit]
    return column.cast(pa.int64()).fill_null(0).to_numpy() // per_second


def _missing(column: Any) -> Any:
    return column.is_null().to_numpy(zero_copy_only=False)


def _numbers(number: int, wire: int, payload: pa.BinaryArray, column: Any = None) -> Encoded:
    """A field of numbers: its tag, then each one's bytes; nothing for nulls of ``column``."""
    lengths = pc.binary_length(payload).to_numpy().astype(np.int64) + 1
    return _without_nulls([tag(number, wire), payload], lengths, column)


def _without_nulls(pieces: list[Any], lengths: Int, column: Any) -> Encoded:
    """Rows that have no value have no bytes: Feast writes an empty message for them."""
    as_arrow = [pa.scalar(p, pa.binary()) if isinstance(p, bytes) else p for p in pieces]
    if column is not None and column.null_count:
        valid = column.is_valid()
        as_arrow = [pc.if_else(valid, piece, _EMPTY) for piece in as_arrow]
        lengths = np.where(_missing(column), 0, lengths)
    if len(lengths) and (lengths == lengths[0]).all():
        return Encoded(as_arrow, int(lengths[0]))
    return Encoded(as_arrow, lengths)


def _varint_sizes(numbers: Int) -> Int:
    """Bytes that each length takes as a varint."""
    return np.asarray(np.maximum(np.searchsorted(1 << np.arange(7, 35, 7), numbers, side="right") + 1, 1), np.int64)


def _lists(column: Any, number: int) -> Encoded | None:
    """Lists of numbers: the field's tag and length around a packed field's tag, length and bytes.

    None where an entry inside a list is null: what Feast puts in its place depends on its kind.
    """
    if pa.types.is_fixed_size_list(column.type):
        column = column.cast(pa.list_(column.type.value_type))
    offsets = column.offsets.to_numpy().astype(np.int64)
    entries = column.values.slice(offsets[0], offsets[-1] - offsets[0])
    if entries.null_count:
        return None
    values, offsets = entries.to_numpy(), offsets - offsets[0]
    if pa.types.is_integer(entries.type):
        payload, sizes = _varint_bytes(values)
        ends = np.concatenate([[0], np.cumsum(sizes)])[offsets]
    else:
        payload = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).view(np.uint8)
        ends = offsets * values.itemsize
    raw = _binary(payload, np.diff(ends))
    inside = np.diff(ends)
    head = np.where(inside > 0, 1 + _varint_sizes(inside), 0)  # an empty packed field is left out
    filled = pa.array(inside > 0)
    pieces = [tag(number, _LENGTH), varints(head + inside)]
    if not (inside > 0).all():
        pieces += [pc.if_else(filled, pa.scalar(b"\x0a", pa.binary()), _EMPTY)]
        pieces += [pc.if_else(filled, varints(inside), _EMPTY), raw]
    else:
        pieces += [b"\x0a", varints(inside), raw]
    lengths = len(tag(number, _LENGTH)) + _varint_sizes(head + inside) + head + inside
    return _without_nulls(pieces, lengths, column)


def _by_feast(column: Any, value_type: Any) -> Encoded:
    """Any other column, by Feast's own functions."""
    from feast.type_map import python_values_to_proto_values

    values: Any = column.to_numpy(zero_copy_only=False)
    rows = [value.SerializeToString() for value in python_values_to_proto_values(values, value_type)]
    return Encoded([pa.array(rows, pa.binary())], np.array([len(row) for row in rows], np.int64))
