"""Encoded rows binned for LightGBM: once an arm, for the rankers of all its seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from advprior.store.arrays import Float
from advprior.store.errors import AdvpriorError
from ranking.models.config import RankerConfig
from ranking.models.encoded import EncodedRows, sequences
from ranking.models.encoder import Encoder
from ranking.models.lightgbm_library import lightgbm_errors, lightgbm_module
from ranking.models.sampling import Sample
from ranking.models.start import Start

if TYPE_CHECKING:
    import lightgbm as lgb

MAX_SLATE = 10_000  # LightGBM ends a fit on a longer query


@dataclass
class Prepared:
    """Binned training rows of one arm, shared by the rankers of several seeds.

    Attributes
    ----------
    encoder : Encoder
    train, valid : lightgbm.Dataset
        For lambdarank with the rows of a slate together.
    valid_rows : EncodedRows, or float32 [rows, features]
    valid_label : int8 [rows]
        Validation rows in the order in which they were given.
    start : Start, optional
        Where log-odds start; zero without.
    correction : float
        What is added to the log-odds of the trees for the negatives that were left out.
    """

    encoder: Encoder
    train: lgb.Dataset
    valid: lgb.Dataset
    valid_rows: Float | EncodedRows
    valid_label: NDArray[np.int8]
    start: Start | None = None
    correction: float = 0.0


@dataclass(frozen=True, eq=False)
class Examples:
    """Encoded rows of one split.

    Parameters
    ----------
    matrix : float32 [rows, features], or EncodedRows
    label : int8 [rows]
    slate : array [rows], optional
        What lambdarank ranks within.
    """

    matrix: Float | EncodedRows
    label: NDArray[np.int8]
    slate: NDArray[Any] | None = None

    def take(self, rows: NDArray[np.int64]) -> Examples:
        """Some of the rows, in memory; a matrix keeps its layout, by row or by column."""
        slate = None if self.slate is None else self.slate[rows]
        if isinstance(self.matrix, EncodedRows):
            return Examples(self.matrix.take(rows), self.label[rows], slate)
        by_column = self.matrix.flags.f_contiguous
        matrix = self.matrix.T.take(rows, axis=1).T if by_column else self.matrix[rows]
        return Examples(matrix, self.label[rows], slate)

    @property
    def whole(self) -> Float:
        """All rows, in memory."""
        return self.matrix.matrix if isinstance(self.matrix, EncodedRows) else self.matrix

    def column(self, place: int) -> Float:
        """Values of one feature."""
        values: Float = self.matrix.column(place) if isinstance(self.matrix, EncodedRows) else self.matrix[:, place]
        return values

    @property
    def data(self) -> Any:
        """What LightGBM bins: a matrix, or sequences of blocks where that would be large."""
        if isinstance(self.matrix, EncodedRows) and not self.matrix.is_small:
            return sequences(self.matrix)
        return self.whole

    def by_slate(self) -> tuple[Examples, NDArray[np.int64]]:
        """The rows with those of a slate together, and the length of each slate."""
        if self.slate is None:
            raise ValueError("lambdarank needs the slate of every row")
        order = np.argsort(self.slate, kind="stable")
        if isinstance(self.matrix, EncodedRows):
            return Examples(self.whole, self.label, self.slate).by_slate()
        slates, lengths = np.unique(self.slate, return_counts=True)
        if len(lengths) and lengths.max() > MAX_SLATE:
            raise AdvpriorError(
                "RNK037",
                "a slate has more rows than lambdarank can order",
                where=f"slate_id {slates[lengths.argmax()]}",
                actual=f"{lengths.max():,} rows",
                expected=f"at most {MAX_SLATE:,}: the ads shown together to one user",
                fix="give each request a slate_id of its own, or train with objective: binary",
            )
        return self.take(order), lengths


def prepare(encoder: Encoder, train: Examples, valid: Examples, config: RankerConfig) -> Prepared:
    """Bin encoded rows once.

    Parameters
    ----------
    encoder : Encoder
        Which encoded the rows.
    train, valid : Examples
    config : RankerConfig

    Raises
    ------
    AdvpriorError
        ``RNK024`` when training or validation rows lack positives or negatives, ``RNK037`` when lambdarank is given a
        slate that is too long for it, ``RNK049`` when it starts from a feature that it does not read.
    """
    lgb = lightgbm_module()
    given = valid
    check_labels(train, valid)
    names = [_safe(name) for name in encoder.features]
    options: dict[str, Any] = {
        "feature_name": names,
        "categorical_feature": encoder.categorical,
        "params": dataset_params(config),
    }
    # fitted before negatives are left out, so that it is of the level that they have
    start = Start.fit(config.start_from, encoder.features, train) if config.start_from else None
    groups: list[NDArray[np.int64] | None] = [None, None]
    sample = Sample()
    if config.objective == "lambdarank":
        (train, groups[0]), (valid, groups[1]) = train.by_slate(), valid.by_slate()
    else:
        sample = Sample.of(train.label, config)
        train = train if sample.rows is None else train.take(sample.rows)
    begins = [None if start is None else start.log_odds_of(part.column(start.place)) for part in (train, valid)]
    if sample.correction and begins[0] is not None:
        begins[0] -= sample.correction  # what the trees are added to while they learn: the level of the rows drawn
    elif sample.correction:
        begins[1] = np.full(len(valid.label), sample.correction)  # all validation rows count: they stop the fit
    with lightgbm_errors("rows of an arm"):
        options |= {"init_score": begins[0]}
        train_set = lgb.Dataset(train.data, train.label, weight=sample.weight, group=groups[0], **options).construct()
        options |= {"init_score": begins[1], "reference": train_set}
        valid_set = lgb.Dataset(valid.data, valid.label, group=groups[1], **options).construct()
    correction = 0.0 if start is not None else sample.correction
    return Prepared(encoder, train_set, valid_set, given.matrix, given.label, start, correction)


def check_labels(train: Examples, valid: Examples) -> None:
    """Refuse what no ranker can learn from.

    Raises
    ------
    AdvpriorError
        ``RNK024`` when training or validation rows lack positives or negatives.
    """
    for name, part in (("train", train), ("valid", valid)):
        if not 0 < int(part.label.sum()) < len(part.label):
            raise AdvpriorError(
                "RNK024",
                "a ranker needs positives and negatives in training and validation",
                where=f"split {name}",
                actual=f"{int(part.label.sum())} positives in {len(part.label)} rows",
                fix="take more users",
            )


def _safe(name: str) -> str:
    """LightGBM refuses JSON's special characters in names."""
    return "".join(c if c.isalnum() or c == "_" else "_" for c in name)


def dataset_params(config: RankerConfig) -> dict[str, Any]:
    """Parameters of LightGBM that binning and training share; with them, one and two threads give the same trees."""
    return {
        "verbosity": -1,
        "num_threads": config.threads,
        "force_col_wise": True,
        "deterministic": True,
        "data_random_seed": 1,
        "min_data_in_leaf": config.min_data_in_leaf,
        "feature_pre_filter": False,
        **config.params,
    }
