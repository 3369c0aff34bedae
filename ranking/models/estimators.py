"""A ranker of one's own as an arm: anything with scikit-learn's ``fit`` and ``predict_proba``.

It learns from the same rows as LightGBM's rankers, and its scores go the same way: calibrated on validation rows,
measured on test rows. It is not saved and not served: a pickle runs whatever code it holds when it is loaded, and the
service explains what it serves by LightGBM's exact TreeSHAP.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from advprior.store.arrays import Double, Float
from advprior.store.errors import AdvpriorError
from advprior.store.runs import digest, sha256_file
from ranking.models.arms import Arm
from ranking.models.binning import Examples, check_labels
from ranking.models.calibration import apply_calibration, fit_calibration
from ranking.models.config import RankerConfig
from ranking.models.encoded import EncodedRows
from ranking.models.encoder import Encoder
from ranking.models.sampling import Sample

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

#: Probabilities of exactly 0 or 1 have no log-odds.
SMALLEST = 1e-7
#: One column a category at most so many, and at least so many rows a category, where text has to become numbers.
CATEGORIES, ROWS_A_CATEGORY = 200, 20


def make_estimator(arm: Arm, seed: int) -> Any:
    """The unfitted estimator of an arm.

    Parameters
    ----------
    arm : Arm
        Its ``ranker`` is an import path ``module:name`` of a class, or of a function that returns an estimator, called
        with the arm's ``params``; or an estimator, a class or a function that was given in Python.
    seed : int
        Goes to every ``random_state`` that the estimator has, nested ones included, and to a function's ``seed`` or
        ``random_state``.

    Raises
    ------
    AdvpriorError
        ``RNK038`` when it cannot be imported or made, or lacks ``fit`` or ``predict_proba``.
    """
    with _coded(arm, "making it"):
        source = arm.given if arm.given is not None else _imported(str(arm.ranker))
        if not callable(source) or (hasattr(source, "predict_proba") and not isinstance(source, type)):
            from sklearn.base import clone

            estimator = clone(source, safe=False)
        else:
            estimator = source(**_seeded(source, arm.params, seed))
        lacking = [name for name in ("fit", "predict_proba") if not callable(getattr(estimator, name, None))]
        if lacking:
            raise TypeError(f"{type(estimator).__name__} has no {' and no '.join(lacking)}")
        if hasattr(estimator, "get_params"):
            seeds = [name for name in estimator.get_params() if name.split("__")[-1] == "random_state"]
            estimator.set_params(**dict.fromkeys(seeds, seed))
        return estimator


def _imported(path: str) -> Any:
    module, _, name = path.partition(":")
    value = importlib.import_module(module)
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _seeded(source: Any, params: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Keyword arguments of a class or function, with the seed where it takes one by name."""
    with suppress(TypeError, ValueError):  # builtins without a signature
        names = inspect.signature(source).parameters
        return {**params, **{name: seed for name in ("random_state", "seed") if name in names}}
    return dict(params)


def ranker_identity(arm: Arm) -> str | None:
    """What makes two arms' rankers the same: path, parameters, and the source that the path leads to.

    None for LightGBM, whose settings say it all, and different each time for an object, which nothing identifies.
    """
    if arm.ranker is None:
        return None
    if arm.given is not None:
        return f"{arm.ranker} {id(arm.given)}"
    source = ""
    with suppress(ImportError, ValueError, OSError):
        spec = importlib.util.find_spec(str(arm.ranker).partition(":")[0])
        source = sha256_file(Path(spec.origin)) if spec is not None and spec.origin else ""
    return digest([arm.ranker, arm.params, source])


@dataclass(frozen=True, eq=False)
class Table:
    """Rows as an estimator gets them.

    Parameters
    ----------
    encoder : Encoder
        Of the arm's features.
    train, valid : DataFrame [rows, features]
        See `frame_of`.
    label, valid_label : int8 [rows]
    weight : float32 [rows], optional
        Of the training rows where negatives were left out.
    correction : float
        Log-odds to add for negatives that were left out.
    """

    encoder: Encoder
    train: pd.DataFrame
    label: NDArray[np.int8]
    weight: NDArray[np.float32] | None
    valid: pd.DataFrame
    valid_label: NDArray[np.int8]
    correction: float = 0.0

    @classmethod
    def of(cls, encoder: Encoder, train: Examples, valid: Examples, config: RankerConfig, *, weights: bool) -> Table:
        """Training rows with the same negatives left out as for LightGBM, where weights can make up for them.

        Raises
        ------
        AdvpriorError
            ``RNK024`` when training or validation rows lack positives or negatives.
        """
        check_labels(train, valid)
        sample = Sample.of(train.label, config, weights=weights)
        if sample.rows is not None:
            train = train.take(sample.rows)
        learned, held = (frame_of(encoder, part.whole) for part in (train, valid))
        return cls(encoder, learned, train.label, sample.weight, held, valid.label, sample.correction)


def frame_of(encoder: Encoder, matrix: Float) -> pd.DataFrame:
    """Encoded rows as a data frame: numbers as float32, text as pandas categories, NaN where there is no value."""
    import pandas as pd

    columns: dict[str, Any] = {}
    for i, name in enumerate(encoder.features):
        values = matrix[:, i]
        if name in encoder.categories:
            codes = np.where(np.isnan(values), -1, values).astype(np.int32)
            columns[name] = pd.Categorical.from_codes(codes, pd.Index(encoder.categories[name], dtype=object))
        else:
            columns[name] = values
    return pd.DataFrame(columns, copy=False)


def takes_weights(estimator: Any) -> bool:
    """Whether ``fit`` takes ``sample_weight``."""
    from sklearn.utils.validation import has_fit_parameter

    return bool(has_fit_parameter(estimator, "sample_weight"))


@dataclass(frozen=True)
class Preparation:
    """What has to be done to an estimator's columns before it can take them.

    Parameters
    ----------
    text : bool
        Whether text has to become numbers, one column a category.
    gaps : bool
        Whether gaps have to be filled.
    """

    text: bool = False
    gaps: bool = False

    def __bool__(self) -> bool:
        return self.text or self.gaps


def preparation_of(arm: Arm, estimator: Any) -> Preparation:
    """What an estimator needs that was named by its class: scikit-learn's own say whether they take gaps.

    What a function or an object is, is the user's: it may have its own way with text and gaps.
    """
    source = arm.given
    if source is None:
        with _coded(arm, "making it"):
            source = _imported(str(arm.ranker))
    if not isinstance(source, type) or hasattr(estimator, "steps") or not hasattr(estimator, "get_params"):
        return Preparation()
    gaps = False
    with suppress(ImportError, AttributeError, TypeError):  # older than 1.6, or none of scikit-learn's
        from sklearn.utils import get_tags

        gaps = not get_tags(estimator).input_tags.allow_nan
    theirs = type(estimator).__module__.startswith("sklearn.")
    return Preparation(gaps or (theirs and "categorical_features" not in estimator.get_params(deep=False)), gaps)


def prepared(estimator: Any, encoder: Encoder, needs: Preparation) -> Any:
    """A pipeline before an estimator: text as one column a category, gaps filled and marked, numbers standardised."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline, make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    text = [name for name in encoder.features if name in encoder.categories]
    number = [name for name in encoder.features if name not in encoder.categories]
    one_hot = OneHotEncoder(
        handle_unknown="infrequent_if_exist",
        min_frequency=ROWS_A_CATEGORY,
        max_categories=CATEGORIES,
        sparse_output=False,
        dtype=np.float32,
    )
    filled = make_pipeline(
        SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True), StandardScaler()
    )
    numbers = filled if needs.gaps else "passthrough"
    columns = ColumnTransformer([("text", one_hot, text), ("number", numbers, number)], sparse_threshold=0)
    return Pipeline([("columns", columns), ("ranker", estimator)])


class EstimatorRanker:
    """One fitted ranker of one's own.

    Parameters
    ----------
    arm : Arm
    config : RankerConfig
        Whose calibration holds.
    seed : int
    """

    rounds = 0

    def __init__(self, arm: Arm, config: RankerConfig, seed: int) -> None:
        self.arm, self.config, self.seed = arm, config, seed
        self.valid_scores: Double | None = None

    def fit(self, rows: Table) -> EstimatorRanker:
        """Learn from training rows, calibrate on validation rows.

        Raises
        ------
        AdvpriorError
            ``RNK038`` for whatever the estimator raises, and for answers that are no probabilities.
        """
        bare = make_estimator(self.arm, self.seed)
        weights: dict[str, Any] = {}
        if rows.weight is not None:
            weights["sample_weight"] = rows.weight
        self.encoder, self.estimator = rows.encoder, bare
        if needs := preparation_of(self.arm, bare):
            self.estimator = prepared(bare, rows.encoder, needs)
            weights = {f"ranker__{name}": value for name, value in weights.items()}
        with _coded(self.arm, "fit"):
            self.estimator.fit(rows.train, rows.label, **weights)
        self.correction = rows.correction
        raw = self._raw(rows.valid)
        self.calibration = fit_calibration(self.config.calibration, raw, rows.valid_label)
        self.valid_scores = apply_calibration(self.calibration, raw)
        return self

    def predict_matrix(self, matrix: Float | EncodedRows) -> Double:
        """Calibrated probabilities of encoded rows, [rows]."""
        if isinstance(matrix, EncodedRows):
            return np.concatenate([self.predict_matrix(block) for block in matrix.blocks()])
        return apply_calibration(self.calibration, self._raw(frame_of(self.encoder, matrix)))

    def _raw(self, rows: pd.DataFrame) -> Double:
        """Log-odds of label 1, corrected for negatives that were left out, [rows]."""
        with _coded(self.arm, "predict_proba"):
            values = np.asarray(self.estimator.predict_proba(rows), dtype=np.float64)
            classes = list(np.asarray(getattr(self.estimator, "classes_", (0, 1))).tolist())
            if values.shape != (len(rows), len(classes)) or 1 not in classes:
                raise ValueError(f"an array {values.shape} of classes {classes}; expected [{len(rows)}, 2] of 0 and 1")
            values = values[:, classes.index(1)]
            if not np.isfinite(values).all():
                raise ValueError(f"{int((~np.isfinite(values)).sum())} of {len(values)} probabilities are not finite")
        values = np.clip(values, SMALLEST, 1 - SMALLEST)
        return np.asarray(np.log(values) - np.log1p(-values) + self.correction)

    def importance(self) -> dict[str, float]:
        """Shares by feature where the estimator has ``feature_importances_``, one a feature; else zeros."""
        names = self.encoder.features
        shares = np.asarray(getattr(self.estimator, "feature_importances_", ()), dtype=np.float64)
        if shares.shape != (len(names),) or not np.isfinite(shares).all():
            shares = np.zeros(len(names))
        return dict(zip(names, (shares / max(np.abs(shares).sum(), 1e-12)).tolist(), strict=True))


@contextmanager
def _coded(arm: Arm, step: str) -> Iterator[None]:
    """Whatever a ranker of the user's own raises, as one coded error; --debug shows where it came from."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise AdvpriorError(
            "RNK038",
            f"the ranker of arm `{arm.name}` failed",
            where=f"{arm.ranker}: {step}",
            actual=f"{type(error).__name__}: {reason[0][:300] if reason else 'no message'}",
            expected="scikit-learn's fit(X, y) and predict_proba(X), X a data frame",
            fix="correct it, or its params in the arms file; --debug shows where it came from",
        ) from error
