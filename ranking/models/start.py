"""Where a ranker's log-odds start: at a prior's own, in place of at zero with the prior as one more column.

Trees then learn what the prior leaves unsaid (LightGBM's ``init_score``). A prior's log-probability is not the log-odds
of a label: a slope and an offset are fitted to the training rows, and the log-odds of the rows without a prior stand
where it is missing. They are kept with the ranker, so that what is served starts where what was measured did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from advprior.store.arrays import Double, Float
from advprior.store.contract import PRIOR_VIEW_PREFIX
from advprior.store.errors import AdvpriorError


class _Rows(Protocol):
    """Encoded rows with their labels."""

    @property
    def label(self) -> NDArray[np.int8]: ...

    def column(self, place: int) -> Float: ...


@dataclass(frozen=True)
class Start:
    """Log-odds that trees are added to: ``slope · feature + offset``, or ``missing`` where the feature is.

    Attributes
    ----------
    feature : str
        Name of the feature.
    place : int
        Its column in the ranker's rows: no tree splits on it.
    """

    feature: str
    place: int
    slope: float
    offset: float
    missing: float

    @classmethod
    def fit(cls, feature: str, names: Sequence[str], rows: _Rows) -> Start:
        """By the likelihood of training rows.

        Raises
        ------
        AdvpriorError
            ``RNK049`` where the ranker does not read the feature.
        """
        if feature not in names:
            of_priors = [name for name in names if name.startswith(PRIOR_VIEW_PREFIX)]
            raise AdvpriorError(
                "RNK049",
                "a ranker starts from a feature that it does not read",
                where="start_from",
                actual=feature,
                expected=f"a number that the arm reads: {', '.join(of_priors) or 'it reads no prior'}",
                fix="add the feature to what the arm `adds`, or leave `start_from` out",
            )
        from sklearn.linear_model import LogisticRegression

        place = list(names).index(feature)
        value, label = np.asarray(rows.column(place), np.float64), rows.label
        given = np.isfinite(value)
        level = _log_odds(label[~given]) if not given.all() else _log_odds(label)
        if len(np.unique(label[given])) < 2:
            return cls(feature, place, 0.0, _log_odds(label[given]), level)
        fitted = LogisticRegression(C=1e6).fit(value[given, None], label[given])
        return cls(feature, place, float(fitted.coef_[0, 0]), float(fitted.intercept_[0]), level)

    def log_odds(self, matrix: Float) -> Double:
        """Where each encoded row [rows, features] starts [rows]."""
        return self.log_odds_of(matrix[:, self.place])

    def log_odds_of(self, values: Float) -> Double:
        """The same by the values of its feature [rows]."""
        value = np.asarray(values, np.float64)
        odds: Double = np.where(np.isfinite(value), self.slope * np.nan_to_num(value) + self.offset, self.missing)
        return odds

    def contributions(self, matrix: Float, values: Double) -> Double:
        """Contributions of trees [rows, features + 1], the base last, with those of the start added to its feature."""
        out = values.copy()
        out[:, self.place] += self.log_odds(matrix) - self.missing
        out[:, -1] += self.missing
        return out

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def _log_odds(label: NDArray[np.int8]) -> float:
    """Of a share, half a row of each kind added."""
    positive = float(label.sum())
    return float(np.log((positive + 0.5) / (len(label) - positive + 0.5)))
