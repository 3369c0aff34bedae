"""A batch of rows as the commands that Feast's Redis store would send, in one block of bytes.

The layout is Feast's: a hash an entity, ``_ts:view`` for the time, a field ``murmur3(view:feature)`` a feature
(https://github.com/feast-dev/feast/blob/master/docs/specs/online_store_format.md). The protocol is Redis' own:
https://redis.io/docs/latest/develop/reference/protocol-spec.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from advprior.store.arrays import Int
from advprior.store.online.values import Encoded, encode, fixed, tag, varints

_NANOS = 1_000_000_000
_KEY_TYPES = ("STRING", "INT32", "INT64")


@dataclass(frozen=True)
class Layout:
    """How the rows of one view are written.

    Parameters
    ----------
    project : str
    view : str
        As the store names it, with its version if it has one.
    keys : mapping of str to feast.ValueType
        Join keys.
    features : mapping of str to feast.ValueType
        In the order of the view.
    time : str
        Column of the event's time.
    """

    project: str
    view: str
    keys: Mapping[str, Any]
    features: Mapping[str, Any]
    time: str

    @property
    def columns(self) -> list[str]:
        """Columns that a batch needs."""
        return list(dict.fromkeys([*self.keys, *self.features, self.time]))

    @property
    def time_field(self) -> bytes:
        """Field of a hash that holds the time of the view's row."""
        return f"_ts:{self.view}".encode()

    def supported(self) -> bool:
        """Whether the keys are of kinds that are written here."""
        return bool(self.keys) and all(kind.name in _KEY_TYPES for kind in self.keys.values())


class Commands:
    """The commands of one batch.

    Parameters
    ----------
    batch : pyarrow.RecordBatch
        ``layout.columns``; keys and times are never null.

    Attributes
    ----------
    nanos : int64 array [rows]
        Time of each row, in nanoseconds since 1970.
    """

    def __init__(self, layout: Layout, batch: Any) -> None:
        self._layout, self._batch = layout, batch
        self._key = _joined(_entity_keys(layout, batch))
        self.nanos = _nanos(batch.column(layout.time))

    def __len__(self) -> int:
        return int(self._batch.num_rows)

    def keys(self, rows: Int) -> list[bytes]:
        """Redis keys of some rows."""
        return self._key.take(pa.array(rows)).to_pylist()  # type: ignore[no-any-return]

    def read_times(self) -> memoryview:
        """``HMGET key _ts:view`` for each row."""
        field = self._layout.time_field
        head = _text(b"*3\r\n$5\r\nHMGET\r\n")
        tail = _text(b"$%d\r\n%b\r\n" % (len(field), field))
        return _block(_joined([head, *_bulk(Encoded([self._key], _lengths(self._key))), tail]))

    def write(self, rows: Any = None) -> memoryview:
        """``HSET key _ts:view … field value …`` for each row, or for some.

        Parameters
        ----------
        rows : bool array [rows], optional
            Which rows.
        """
        from feast.infra.online_stores.helpers import _mmh3

        layout = self._layout
        pieces = [_text(b"*%d\r\n$4\r\nHSET\r\n" % (4 + 2 * len(layout.features)))]
        pieces += _bulk(Encoded([self._key], _lengths(self._key)))
        pieces += [_field(layout.time_field), *_bulk(_times(self.nanos))]
        for name, kind in layout.features.items():
            pieces += [_field(_mmh3(f"{layout.view}:{name}")), *_bulk(encode(self._batch.column(name), kind))]
        joined = _joined(pieces)
        return _block(joined if rows is None else joined.filter(pa.array(rows)))


def _text(content: bytes) -> Any:
    return pa.scalar(content, pa.binary())


def _field(name: bytes) -> Any:
    return _text(b"$%d\r\n%b\r\n" % (len(name), name))


def _lengths(column: pa.BinaryArray) -> Int:
    return pc.binary_length(column).to_numpy().astype(np.int64)  # type: ignore[no-any-return]


def _bulk(encoded: Encoded) -> list[Any]:
    """A value as Redis takes it: its length before it, a line's end after it."""
    if isinstance(encoded.lengths, int):
        return [_text(b"$%d\r\n" % encoded.lengths), *encoded.pieces, _text(b"\r\n")]
    lengths = pa.array(encoded.lengths).cast(pa.string()).cast(pa.binary())
    return [_text(b"$"), lengths, _text(b"\r\n"), *encoded.pieces, _text(b"\r\n")]


def _joined(pieces: Sequence[Any]) -> pa.BinaryArray:
    """Pieces of each row behind one another; constants that meet are one."""
    merged: list[Any] = []
    for piece in pieces:
        if isinstance(piece, pa.Scalar) and merged and isinstance(merged[-1], pa.Scalar):
            merged[-1] = _text(merged[-1].as_py() + piece.as_py())
        else:
            merged.append(piece)
    return pc.binary_join_element_wise(*merged, _text(b""))


def _block(column: Any) -> memoryview:
    """All values of a binary column behind one another, without a copy."""
    offsets = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
    content = memoryview(column.buffers()[2] or b"")
    return content[int(offsets[0]) : int(offsets[-1])]


def _entity_keys(layout: Layout, batch: Any) -> list[Any]:
    """Feast's serialized entity key (version 3) and the project behind it."""
    from feast.protos.feast.types.Value_pb2 import ValueType

    names = sorted(layout.keys)
    head = struct.pack("<I", len(names))
    for name in names:
        head += struct.pack("<II", ValueType.STRING, len(name.encode())) + name.encode()
    pieces = [_text(head)]
    for name in names:
        kind, column = layout.keys[name].name, batch.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        pieces.append(_text(struct.pack("<I", ValueType.Enum.Value(kind))))
        if kind == "STRING":
            texts = column.cast(pa.string()).cast(pa.binary())
            pieces += [fixed(_lengths(texts).astype(np.uint32)), texts]
        else:
            width = 4 if kind == "INT32" else 8
            numbers = column.to_numpy(zero_copy_only=False).astype(f"<i{width}")
            pieces += [_text(struct.pack("<I", width)), fixed(numbers)]
    return [*pieces, _text(layout.project.encode())]


def _nanos(column: Any) -> Int:
    """Nanoseconds since 1970 of a column of times; without a zone they are UTC, as everywhere in Feast."""
    per = {"s": _NANOS, "ms": 10**6, "us": 10**3, "ns": 1}[column.type.unit]
    return column.cast(pa.int64()).to_numpy() * per  # type: ignore[no-any-return]


def _times(nanos: Int) -> Encoded:
    """protobuf's Timestamp: seconds and nanoseconds, each left out where it is zero."""
    seconds, rest = nanos // _NANOS, nanos % _NANOS
    pieces: list[Any] = []
    lengths = np.zeros(len(nanos), np.int64)
    for number, values in ((1, seconds), (2, rest)):
        if not values.any():
            continue
        name, payload = _text(tag(number, 0)), varints(values)
        if not values.all():
            filled = pa.array(values != 0)
            name, payload = (pc.if_else(filled, piece, _text(b"")) for piece in (name, payload))
        pieces += [name, payload]
        lengths += np.where(values != 0, 1 + _lengths(varints(values)), 0)
    if not pieces:
        return Encoded([_text(b"")], 0)
    if (lengths == lengths[0]).all():
        return Encoded(pieces, int(lengths[0]))
    return Encoded(pieces, lengths)
