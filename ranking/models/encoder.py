"""From a frame's columns to the matrix that LightGBM takes, in training and wherever a saved ranker is used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from advprior.store.arrays import Float, Int
from advprior.store.errors import AdvpriorError

if TYPE_CHECKING:
    import pandas as pd


class Encoder:
    """Frame columns to one float32 matrix; text becomes the index of its category.

    Categories are those of the rows it was fitted on, sorted; anything else is missing. LightGBM takes
    the columns as categorical features, so the order of the indices means nothing.

    Parameters
    ----------
    features : sequence of str
        Columns in the matrix's order.
    categories : mapping of str to list of str
        Categories of each text column.
    """

    def __init__(self, features: Sequence[str], categories: Mapping[str, Sequence[str]]) -> None:
        self.features = list(features)
        self.categories = {name: list(values) for name, values in categories.items()}

    @classmethod
    def fit(cls, frame: pd.DataFrame, features: Sequence[str]) -> Encoder:
        """Learn the categories of the text columns."""
        return cls.fit_blocks(frame, [frame], features)

    @classmethod
    def fit_blocks(cls, first: pd.DataFrame, blocks: Iterable[pd.DataFrame], features: Sequence[str]) -> Encoder:
        """The same of rows that come block by block.

        Parameters
        ----------
        first : DataFrame
            Some rows: which columns are text.
        blocks : iterable of DataFrame
            Of text columns at least.
        features : sequence of str
        """
        categories: dict[str, set[str]] = {name: set() for name in text_columns(first, features)}
        for frame in blocks if categories else ():
            for name, values in categories.items():
                values.update(map(str, frame[name].dropna().unique()))
        return cls(features, {name: sorted(values) for name, values in categories.items()})

    def select(self, features: Sequence[str]) -> Encoder:
        """The same encoding of fewer columns."""
        return Encoder(features, {name: self.categories[name] for name in features if name in self.categories})

    @property
    def categorical(self) -> list[int]:
        """Places of the text columns."""
        return [i for i, name in enumerate(self.features) if name in self.categories]

    def encode(self, frame: pd.DataFrame) -> Float:
        """Matrix ``[rows, features]``; missing values are NaN.

        Raises
        ------
        AdvpriorError
            As `columns` does.
        """
        out = np.empty((len(frame), len(self.features)), dtype=np.float32)
        for i, values in enumerate(self.columns(frame)):
            out[:, i] = values
        return out

    def columns(self, frame: pd.DataFrame) -> Iterator[Float]:
        """The matrix column by column, so that no second whole of it has to be held.

        Raises
        ------
        AdvpriorError
            ``RNK023`` when a column is missing or is neither number nor text as it was.
        """
        missing = [name for name in self.features if name not in frame.columns]
        if missing:
            raise AdvpriorError(
                "RNK023",
                "features of the ranker are missing",
                where=", ".join(missing[:5]),
                actual=f"{len(missing)} of {len(self.features)} missing",
                fix="build the frame again",
            )
        for name in self.features:
            yield self._column(frame[name])

    def _column(self, values: pd.Series[Any]) -> Float:
        name = str(values.name)
        if name in self.categories:
            codes = self._codes(values.astype("category"), self.categories[name])
            return np.where(codes < 0, np.nan, codes).astype(np.float32)
        if _is_text(values):
            raise AdvpriorError("RNK023", "a feature is text that was a number in training", where=name)
        return np.asarray(values.to_numpy(dtype=np.float32, na_value=np.nan))

    @staticmethod
    def _codes(values: pd.Series[Any], categories: Sequence[str]) -> Int:
        """Place of each value among the categories, −1 where it is none of them: translates categories, not rows."""
        place = {text: i for i, text in enumerate(categories)}
        table = np.array([*(place.get(str(text), -1) for text in values.cat.categories), -1], dtype=np.int64)
        out: Int = table[values.cat.codes.to_numpy()]  # a missing value's code, −1, takes the last
        return out


def text_columns(frame: pd.DataFrame, features: Sequence[str]) -> list[str]:
    """Features that are text."""
    return [name for name in features if _is_text(frame[name])]


def _is_text(values: pd.Series[Any]) -> bool:
    import pandas as pd

    return (
        isinstance(values.dtype, pd.CategoricalDtype) or values.dtype == object or pd.api.types.is_string_dtype(values)
    )
