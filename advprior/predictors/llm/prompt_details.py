"""What a prompt says of an event beside its advertiser: its text, category and value, cut to the room there is.

For all events of many users at once: each distinct text is encoded once, and how much of it stands is arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from advprior.history.histories import Histories
from advprior.predictors.llm.prompt_layout import Occasions, Piece
from advprior.predictors.llm.token_table import TokenTable
from advprior.store.arrays import Bool, Int

Detail = Literal["none", "category", "product", "full"]


@dataclass(frozen=True)
class Details:
    """How the details of events are written.

    Parameters
    ----------
    detail : {"none", "category", "product", "full"}
        Which of them.
    tokens : int
        Most tokens of them an event.
    advertisers : bool
        Write the advertiser before them; else they stand for it, where there are some.
    encode : callable
        Text -> token ids; best one that remembers.
    """

    detail: Detail
    tokens: int
    advertisers: bool
    encode: Callable[[str], Sequence[int]]

    def pieces(
        self, histories: Histories, rows: Int, advertiser: Piece, occasions: Occasions, half: Int
    ) -> list[Piece]:
        """What is written of each event: its advertiser, and its text, category and value as far as there is room.

        An occasion of many events is told in fewer words each; nothing but the occasion decides on that.

        Parameters
        ----------
        rows : int64 [E]
            Of the histories, in their occasions.
        advertiser : Piece
            Tokens of each event's advertiser.
        half : int64 [K]
            Tokens that each occasion may take.
        """
        limit = self._limit(advertiser.lengths, occasions, half)
        text = category = value = np.zeros(len(rows), np.bool_)
        if self.detail in ("product", "full") and len(histories.text):
            text = histories.text[rows] >= 0
        if self.detail in ("category", "full") and len(histories.category):
            category = histories.category[rows] >= 0
        if self.detail == "full" and len(histories.value):
            value = np.isfinite(histories.value[rows])
        texts, categories = histories.texts, histories.categories
        first = np.zeros(len(rows), np.bool_)
        product = self._piece(text, histories.text, rows, first, lambda code: _one_line(texts[code]))
        named = self._piece(category, histories.category, rows, text, lambda code: _one_line(categories[code]))
        priced = self._piece(value, histories.value, rows, text | category, price)
        # the text is cut first: category and value stand whole as long as they fit
        room = np.maximum(limit - named.lengths - priced.lengths, 0)
        product = replace(product, lengths=np.minimum(product.lengths, room))
        left = limit - product.lengths
        named = replace(named, lengths=np.minimum(named.lengths, left))
        priced = replace(priced, lengths=np.minimum(priced.lengths, left - named.lengths))
        details = [product, named, priced]
        if self.advertisers:
            return [advertiser, *details]
        alone = product.lengths + named.lengths + priced.lengths == 0
        beside = TokenTable.of([self.encode(" +")])  # between events that no advertiser starts
        lead = np.where(alone | occasions.first, 0, beside.lengths[0])
        advertiser = replace(advertiser, lengths=np.where(alone, advertiser.lengths, 0))
        return [advertiser, Piece(beside, np.zeros(len(rows), np.int64), lead), *details]

    def _limit(self, advertiser: Int, occasions: Occasions, half: Int) -> Int:
        """Most tokens of detail of each event [E]."""
        fixed = np.add.reduceat(advertiser, occasions.rows[:-1]) if len(advertiser) else np.zeros(0, np.int64)
        limit = np.minimum(self.tokens, np.maximum(half - fixed - 4, 0) // occasions.sizes)
        return np.repeat(limit, occasions.sizes)

    def _piece(self, some: Bool, values: Any, rows: Int, follows: Bool, text: Callable[[Any], str]) -> Piece:
        """The piece that says ``values`` of some rows: after a comma where something comes before it."""
        texts, lengths = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
        if not some.any():
            return Piece(TokenTable.of([[]]), texts, lengths)
        distinct, inverse = np.unique(values[rows[some]], return_inverse=True)
        both, which = np.unique(inverse * 2 + follows[some], return_inverse=True)
        table = TokenTable.of(
            self.encode((", " if code % 2 else " ") + text(distinct[code // 2].item())) for code in both.tolist()
        )
        texts[some], lengths[some] = which, table.lengths[which]
        return Piece(table, texts, lengths)


def _one_line(text: str) -> str:
    """The separator is left to the ends of occasions."""
    return text.replace(";", ",")


def price(value: float) -> str:
    """A value to two digits, which is what a reader would remember of it.

    >>> [price(v) for v in (59.23, 7.46, 123.0, 0.0, 0.5)]
    ['59', '7.5', '120', '0', '0.5']
    """
    rounded = float(f"{value:.2g}")
    return f"{rounded:.0f}" if abs(rounded) >= 10 else f"{rounded:g}"
