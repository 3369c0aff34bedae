"""The ranker: LightGBM on one arm's features, stopped early and calibrated on validation rows.

A saved ranker says what it must be fed: its feature service, its features in order and the categories it knows.
The same seed, rows, settings and threads give the same trees.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from advprior.store.arrays import Double, Float
from advprior.store.contract import LABEL, SLATE_ID
from advprior.store.errors import AdvpriorError
from advprior.store.features import Feature, features_from_json, features_to_json, groups_of
from advprior.store.runs import sha256_file, write_json
from advprior.store.versions import versions
from ranking.models.binning import Examples, Prepared, dataset_params, prepare
from ranking.models.calibration import apply_calibration, fit_calibration
from ranking.models.config import RankerConfig
from ranking.models.encoded import EncodedRows
from ranking.models.encoder import Encoder
from ranking.models.lightgbm_library import lightgbm_errors, lightgbm_module
from ranking.models.params import bagging
from ranking.models.start import Start

if TYPE_CHECKING:
    import lightgbm as lgb
    import pandas as pd

MODEL_FILE = "model.txt"
RANKER_FILE = "ranker.json"
_FORMAT = 2  # 2: features as data
#: Its log-odds start somewhere, or are corrected for negatives left out: who reads format 2 alone would leave that out.
_WITH_START, _CORRECTED = 3, 4


#: What LightGBM minimises, and what stops it on validation rows.
_OBJECTIVES: dict[str, dict[str, Any]] = {
    "binary": {"objective": "binary", "metric": "binary_logloss"},
    "lambdarank": {"objective": "lambdarank", "metric": "ndcg", "eval_at": [10]},
}


#: Which way a monotone ranker's score may go with each quantity of a prior.
_DIRECTIONS = {"log_prob": 1, "log_ratio": 1, "interest_log_prob": 1, "top20": 1, "rank": -1}


def direction(feature: Feature) -> int:
    """Which way a monotone ranker's score may go with a feature: a prior's own, and nothing else, is bound.

    >>> [direction(Feature(f"prior_llm_{name}", "prior_llm", "prior_llm")) for name in ("log_prob", "rank", "entropy")]
    [1, -1, 0]
    >>> direction(Feature("history_ad_all", "history", "user_history"))
    0
    """
    return 0 if feature.predictor is None else _DIRECTIONS.get(feature.quantity, 0)


@dataclass
class Ranker:
    """A LightGBM ranker of one arm.

    Parameters
    ----------
    service : str
        Feast feature service that serves its features.
    features : list of Feature
        What it is fed, in order.
    config : RankerConfig
    seed : int
    facts : dict
        What else the manifest keeps: time plan, frame digest.
    """

    service: str
    features: list[Feature]
    config: RankerConfig = field(default_factory=RankerConfig)
    seed: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    encoder: Encoder | None = None
    booster: lgb.Booster | None = None
    calibration: dict[str, Any] = field(default_factory=dict)
    rounds: int = 0
    start: Start | None = None
    #: Log-odds added for the training negatives that were left out (`ranking.models.sampling`).
    correction: float = 0.0
    #: Calibrated probabilities of the validation rows; only where the ranker was just fitted.
    valid_scores: Double | None = field(default=None, repr=False)

    @property
    def names(self) -> list[str]:
        """Columns of its features, in order."""
        return [feature.name for feature in self.features]

    def fit(self, train: pd.DataFrame, valid: pd.DataFrame) -> Ranker:
        """Train on one frame; stop and calibrate on another, later one."""
        encoder = Encoder.fit(train, self.names)
        learned, held = (
            Examples(encoder.encode(rows), rows[LABEL].to_numpy(np.int8), rows[SLATE_ID].to_numpy())
            for rows in (train, valid)
        )
        return self.fit_prepared(prepare(encoder, learned, held, self.config))

    def fit_prepared(self, prepared: Prepared) -> Ranker:
        """Train on rows that `prepare` binned."""
        lgb = lightgbm_module()

        params = {
            **dataset_params(self.config),
            **_OBJECTIVES[self.config.objective],
            "learning_rate": self.config.learning_rate,
            "num_leaves": self.config.num_leaves,
            "feature_fraction": self.config.feature_fraction,
            **bagging(self.config.bagging_fraction, self.config.params),
            "lambda_l2": self.config.lambda_l2,
            "bagging_seed": 100 + self.seed,
            "feature_fraction_seed": 200 + self.seed,
            "drop_seed": 300 + self.seed,
            "extra_seed": 400 + self.seed,
            "objective_seed": 500 + self.seed,
            **self.config.params,
        }
        if self.config.monotone:
            params["monotone_constraints"] = [direction(feature) for feature in self.features]
        if prepared.start is not None:  # a split that gains nothing is none
            params["feature_contri"] = [float(name != prepared.start.feature) for name in self.names]
        # dart changes earlier trees with each round: there is no best one to go back to
        stop = [] if params.get("boosting") == "dart" else [lgb.early_stopping(self.config.patience, verbose=False)]
        with lightgbm_errors(self.service):
            booster = lgb.train(
                params,
                prepared.train,
                num_boost_round=self.config.max_rounds,
                valid_sets=[prepared.valid],
                callbacks=stop,
            )
        self.encoder, self.booster, self.start = prepared.encoder, booster, prepared.start
        self.correction = prepared.correction
        self.rounds = booster.best_iteration or booster.current_iteration()
        raw = self.raw(prepared.valid_rows)
        self.calibration = fit_calibration(self.config.calibration, raw, prepared.valid_label)
        self.valid_scores = apply_calibration(self.calibration, raw)
        return self

    def raw(self, matrix: Float | EncodedRows) -> Double:
        """Uncalibrated log-odds of encoded rows, [rows]."""
        if isinstance(matrix, EncodedRows):
            return np.concatenate([self.raw(block) for block in matrix.blocks()])
        return self.started(matrix, self.trees(matrix, self.config.threads))

    def trees(self, matrix: Float, threads: int) -> Double:
        """What the trees alone add up to [rows]."""
        booster, _ = self._fitted()
        scores = booster.predict(matrix, raw_score=True, num_iteration=self.rounds, num_threads=threads)
        return np.asarray(scores, dtype=np.float64)

    def started(self, matrix: Float, trees: Double) -> Double:
        """Log-odds of rows from what their trees add up to, whoever summed them [rows]."""
        corrected = trees + self.correction if self.correction else trees
        return corrected if self.start is None else corrected + self.start.log_odds(matrix)

    def predict_matrix(self, matrix: Float | EncodedRows) -> Double:
        """Calibrated probabilities of encoded rows, [rows]."""
        return apply_calibration(self.calibration, self.raw(matrix))

    def predict(self, frame: pd.DataFrame) -> Double:
        """Calibrated probability of label 1 for each row of a frame, [rows]."""
        return self.predict_matrix(self._fitted()[1].encode(frame))

    def importance(self) -> dict[str, float]:
        """Share of the total gain by feature; sums to 1."""
        booster, encoder = self._fitted()
        gain = np.asarray(booster.feature_importance("gain", iteration=self.rounds), dtype=np.float64)
        return dict(zip(encoder.features, (gain / max(gain.sum(), 1e-12)).tolist(), strict=True))

    def save(self, folder: Path) -> None:
        """Write ``model.txt`` and ``ranker.json`` into a folder."""
        booster, encoder = self._fitted()
        assert encoder.features == self.names
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        booster.save_model(str(folder / MODEL_FILE), num_iteration=self.rounds)
        about = {
            "format": _CORRECTED if self.correction else _FORMAT if self.start is None else _WITH_START,
            "start": None if self.start is None else self.start.to_json(),
            "correction": self.correction,
            "model_sha256": sha256_file(folder / MODEL_FILE),
            "service": self.service,
            "features": features_to_json(self.features),
            "categories": encoder.categories,
            "config": self.config.model_dump(),
            "seed": self.seed,
            "rounds": self.rounds,
            "calibration": self.calibration,
            "versions": versions(),
            "facts": self.facts,
        }
        write_json(folder / RANKER_FILE, about)

    @classmethod
    def load(cls, folder: Path) -> Ranker:
        """Read what `save` wrote.

        Raises
        ------
        AdvpriorError
            ``RNK025`` when the folder holds no ranker, or one that cannot be read.
        """
        lgb = lightgbm_module()

        folder = Path(folder)
        fix = "advprior rank train --frame FRAME --service SERVICE --out OUT"
        try:
            about = json.loads((folder / RANKER_FILE).read_text())
            if about["format"] not in (_FORMAT, _WITH_START, _CORRECTED):
                raise ValueError(f"format {about['format']}, made by another version: train it again")
            # LightGBM ends the whole process on a truncated model: look before it does
            if sha256_file(folder / MODEL_FILE) != about["model_sha256"]:
                raise ValueError(f"{MODEL_FILE} is not what {RANKER_FILE} says: truncated, or from elsewhere")
            booster = lgb.Booster(model_file=str(folder / MODEL_FILE))
            features = features_from_json(about["features"])
            encoder = Encoder([feature.name for feature in features], about["categories"])
            if booster.num_feature() != len(encoder.features):
                raise ValueError(f"model of {booster.num_feature()} features, {len(encoder.features)} named")
            config = RankerConfig(**about["config"])
            start = Start(**about["start"]) if about.get("start") else None
        except (OSError, ValueError, KeyError, TypeError, lgb.basic.LightGBMError) as error:
            raise AdvpriorError(
                "RNK025",
                "no ranker can be read here",
                where=str(folder),
                actual=str(error).splitlines()[0],
                expected=f"{MODEL_FILE} and {RANKER_FILE}",
                fix=fix,
            ) from error
        return cls(
            about["service"],
            features,
            config,
            about["seed"],
            about["facts"],
            encoder,
            booster,
            about["calibration"],
            about["rounds"],
            start,
            float(about.get("correction", 0.0)),
        )

    def _fitted(self) -> tuple[lgb.Booster, Encoder]:
        if self.booster is None or self.encoder is None:
            raise RuntimeError("the ranker is not fitted")
        return self.booster, self.encoder


def importance_by_group(importance: Mapping[str, float], features: Sequence[Feature]) -> dict[str, float]:
    """Shares of gain summed by feature group, largest first.

    >>> features = [Feature("ad_rate", "ad", "ad_stats"), Feature("prior_llm_rank", "prior_llm", "prior_llm")]
    >>> importance_by_group({"prior_llm_rank": 0.2, "ad_rate": 0.8}, features)
    {'ad': 0.8, 'prior_llm': 0.2}
    """
    shares = {
        group: sum(importance[feature.name] for feature in members) for group, members in groups_of(features).items()
    }
    return dict(sorted(shares.items(), key=lambda share: -share[1]))
