"""Encoded rows of a split that need not all be in memory: what rankers learn from, and score.

Few are held whole, as one matrix. Many are read block by block, each time that they are gone through.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from advprior.store.arrays import Float, Int
from ranking.frame.row_blocks import FrameSource
from ranking.models.encoder import Encoder, text_columns

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Values up to which rows are held whole: 256 MB of float32.
WHOLE = 64_000_000


@dataclass(frozen=True, eq=False)
class EncodedRows:
    """Rows of a frame as a ranker reads them, [rows, features] of float32.

    Parameters
    ----------
    source : FrameSource
    encoder : Encoder
    rows : int array [rows]
        Places in the frame, rising.
    """

    source: FrameSource
    encoder: Encoder
    rows: Int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_small(self) -> bool:
        """Whether they are held whole once they were read."""
        return len(self.rows) * len(self.encoder.features) <= WHOLE

    @cached_property
    def matrix(self) -> Float:
        """All of them."""
        out = np.empty((len(self.rows), len(self.encoder.features)), dtype=np.float32)
        start = 0
        for block in self._read(self.rows):
            out[start : start + len(block)] = block
            start += len(block)
        return out

    def blocks(self) -> Iterator[Float]:
        """One part after the other, in order."""
        return iter([self.matrix]) if self.is_small else self._read(self.rows)

    def take(self, places: NDArray[np.int64]) -> Float:
        """Some of the rows, by their places among these, rising."""
        if self.is_small:
            return self.matrix[places]
        return EncodedRows(self.source, self.encoder, self.rows[places]).matrix

    def column(self, place: int) -> Float:
        """Values of one feature."""
        if self.is_small:
            values: Float = self.matrix[:, place]
            return values
        one = self.encoder.select([self.encoder.features[place]])
        return EncodedRows(self.source, one, self.rows).matrix[:, 0]

    def _read(self, rows: Int) -> Iterator[Float]:
        for block in self.source.blocks(self.encoder.features, rows):
            yield self.encoder.encode(block)


def fit_encoder(source: FrameSource, features: Sequence[str], rows: Int) -> Encoder:
    """The encoder of some features, fitted on some rows of a frame; of all these only text is read."""
    names = list(features)
    first = next(source.blocks(names, rows[:1])) if len(rows) else source.read(names).iloc[:0]
    return Encoder.fit_blocks(first, source.blocks(text_columns(first, names), rows), names)


def sequences(rows: EncodedRows) -> list[Any]:
    """The rows as LightGBM's own sequences, one a block: it draws some to find its bins, then takes them in order.

    One block is in memory at a time; LightGBM goes through them in their order, twice.
    """
    import lightgbm as lgb

    current: dict[int, Float] = {}

    class Block(lgb.Sequence):  # type: ignore[misc]
        """Rows start to stop of all."""

        def __init__(self, start: int, stop: int) -> None:
            self.start, self.stop, self.batch_size = start, stop, stop - start

        def __len__(self) -> int:
            return self.stop - self.start

        def __getitem__(self, place: Any) -> Any:
            if self.start not in current:
                current.clear()  # one goes before the next comes
                current[self.start] = rows.take(np.arange(self.start, self.stop))
            some = current[self.start][place]
            return some if isinstance(place, slice) else some.astype(np.float64)  # LightGBM takes drawn rows as double

    ends = np.cumsum([0, *rows.source.lengths(rows.rows)])
    return [Block(int(start), int(stop)) for start, stop in pairwise(ends)]
