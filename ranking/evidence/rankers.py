"""The rankers of an ablation: a frame encoded once, and every arm's rankers fitted and scored on its columns."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from advprior.store.arrays import Double
from advprior.store.contract import ADVERTISER_ID, IMPRESSION_ID, LABEL, SLATE_ID, USER_ID
from advprior.store.features import Feature, features_to_json
from advprior.store.runs import digest
from ranking.evidence.bootstrap import Draws, Outcomes, Resampler
from ranking.evidence.lift import OVERALL
from ranking.evidence.metrics import MORE_METRICS, Rows, calibration_curve
from ranking.evidence.segments import SEGMENT_PREFIX, segments_of
from ranking.frame.checks import require_own_slates
from ranking.frame.read import SPLITS
from ranking.models.arms import Arm, Arms, arm_features
from ranking.models.binning import Examples, prepare
from ranking.models.config import RankerConfig
from ranking.models.encoder import Encoder
from ranking.models.estimators import EstimatorRanker, Table, make_estimator, ranker_identity, takes_weights
from ranking.models.ranker import Ranker, importance_by_group

TOP_FEATURES = 20
MEASURED = ["arm", "seed", "split", "segment", "metric", "value"]
_KEYS = [IMPRESSION_ID, USER_ID, SLATE_ID, ADVERTISER_ID, LABEL]


def row_digest(ids: NDArray[Any], label: NDArray[Any]) -> str:
    """Digest of which rows were scored, in which order, with which labels."""
    state = hashlib.sha256(np.ascontiguousarray(ids).tobytes())
    state.update(np.ascontiguousarray(label).tobytes())
    return state.hexdigest()[:16]


def feature_digest(features: Sequence[Feature]) -> str:
    """Digest of what a ranker reads, in order."""
    return digest(features_to_json(features))


@dataclass(frozen=True, eq=False)
class Block:
    """The rows of one split, encoded.

    Parameters
    ----------
    columns : float32 array [features, rows]
        A feature's values stand together, so that an arm's choice of features is a copy of whole rows.
    keys : DataFrame [rows]
        impression_id, user_id, slate_id, advertiser_id, label.
    """

    columns: NDArray[np.float32]
    keys: pd.DataFrame

    @cached_property
    def label(self) -> NDArray[np.int8]:
        """Label of each row."""
        return self.keys[LABEL].to_numpy(np.int8)

    @cached_property
    def slate(self) -> NDArray[Any]:
        """Slate of each row."""
        return self.keys[SLATE_ID].to_numpy()

    @property
    def ids(self) -> NDArray[Any]:
        """Impression of each row."""
        ids: NDArray[Any] = self.keys[IMPRESSION_ID].to_numpy()
        return ids

    @cached_property
    def user(self) -> NDArray[np.int64]:
        """Index of the user of each row."""
        return np.unique(self.keys[USER_ID].astype(str), return_inverse=True)[1]

    @cached_property
    def digest(self) -> str:
        """Of which rows these are, and their labels."""
        return row_digest(self.keys[IMPRESSION_ID].to_numpy(), self.label)

    def matrix(self, places: Sequence[int]) -> NDArray[np.float32]:
        """Some features, [rows, features]."""
        return self.columns[places].T


@dataclass(frozen=True, eq=False)
class Encoded:
    """A frame as its rankers read it.

    Parameters
    ----------
    features : list of Feature
        Those that some arm reads, in the frame's order.
    encoder : Encoder
        Fitted on training rows.
    blocks : dict of str to Block
        train, valid, test.
    segments : dict of str to bool array [test rows]
    """

    features: list[Feature]
    encoder: Encoder
    blocks: dict[str, Block]
    segments: dict[str, NDArray[np.bool_]]

    @classmethod
    def of(cls, rows: pd.DataFrame, features: Sequence[Feature], arms: Arms) -> Encoded:
        """Encode what the arms read of a frame; the frame itself is not changed and can go afterwards."""
        require_own_slates(rows)
        used = {feature for arm in arms.arms for feature in arm_features(arm, features)}
        chosen = [feature for feature in features if feature in used]
        names = [feature.name for feature in chosen]
        at = {name: np.flatnonzero((rows["split"] == name).to_numpy()) for name in SPLITS}
        encoder = Encoder.fit(rows.iloc[at["train"]][names], names)
        columns = {name: np.empty((len(names), len(places)), np.float32) for name, places in at.items()}
        for i, values in enumerate(encoder.columns(rows)):
            for name, places in at.items():
                columns[name][i] = values[places]
        keys = rows[_KEYS]
        blocks = {name: Block(columns[name], keys.iloc[places].reset_index(drop=True)) for name, places in at.items()}
        return cls(chosen, encoder, blocks, segments_of(rows.iloc[at["test"]]))

    @property
    def outcomes(self) -> Outcomes:
        """What happened on the test rows."""
        test = self.blocks["test"]
        return Outcomes.of(test.label, test.user, slate=test.slate, segments=self.segments)

    @property
    def trained_on(self) -> str:
        """Digest of the rows that rankers learn from and stop by."""
        return "".join(self.blocks[name].digest for name in ("train", "valid"))

    @cached_property
    def _column_digests(self) -> dict[str, str]:
        """Digest of each feature's encoded values, in all splits."""
        states = {feature.name: hashlib.sha256() for feature in self.features}
        for name in SPLITS:
            for state, values in zip(states.values(), self.blocks[name].columns, strict=True):
                state.update(np.ascontiguousarray(values).data)
        return {name: state.hexdigest() for name, state in states.items()}

    def values_digest(self, features: Sequence[Feature]) -> str:
        """Digest of what rankers of some features learn from and score, to the bit."""
        return digest([self._column_digests[feature.name] for feature in features])

    def test_rows(self) -> pd.DataFrame:
        """Keys, labels and segments of the test rows."""
        rows = self.blocks["test"].keys[[IMPRESSION_ID, USER_ID, SLATE_ID, LABEL]].copy()
        for name, mask in self.segments.items():
            rows[SEGMENT_PREFIX + name] = mask
        return rows


@dataclass(eq=False)
class ArmScores:
    """What one arm's rankers reached.

    Parameters
    ----------
    rows : str
        Digest of the rows that were scored, and their labels.
    scores : list of float array [test rows]
        Probabilities, one array per seed.
    valid : list of float array [validation rows]
        The same of the validation rows.
    draws : list of Draws
        Metrics of each of them under every resampling.
    measured : list of dict
        Rows of the table of measures.
    about : dict
        Features, rounds, importance, calibration.
    """

    rows: str
    scores: list[Double] = field(default_factory=list)
    valid: list[Double] = field(default_factory=list)
    draws: list[Draws] = field(default_factory=list)
    measured: list[dict[str, Any]] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)

    def add(self, arm: str, score: Double, resampler: Resampler) -> None:
        """One more ranker's scores of the test rows, with their measures."""
        draws, more = resampler.draws(score, MORE_METRICS)
        seed = len(self.scores)
        self.scores.append(score)
        self.draws.append(draws)
        for segment in resampler.outcomes.segments:
            values = {m.name: float(draws[segment, m.name][0, 0]) for m in resampler.options.metrics}
            values |= {metric.name: more[segment, metric.name] for metric in MORE_METRICS}
            self.measured += measures(values, arm, seed, "test", segment)

    def add_valid(self, arm: str, score: Double, valid: Block, resampler: Resampler) -> None:
        """The same ranker's scores of the validation rows, with their measures."""
        rows = Rows.of(valid.label, score, user=valid.user, slate=valid.slate)
        values = {metric.name: metric(rows) for metric in (*resampler.options.metrics, *MORE_METRICS)}
        self.measured += measures(values, arm, len(self.valid), "valid", OVERALL)
        self.valid.append(score)


def measures(values: Mapping[str, float], arm: str, seed: int, split: str, segment: str) -> list[dict[str, Any]]:
    """Rows of the table of measures, one a metric."""
    return [
        dict(zip(MEASURED, (arm, seed, split, segment, metric, value), strict=True)) for metric, value in values.items()
    ]


def _fitter(
    arm: Arm, features: list[Feature], config: RankerConfig, rows: tuple[Encoder, Examples, Examples]
) -> Callable[[int], Ranker | EstimatorRanker]:
    """What fits an arm's ranker of a seed; what the seeds share is done once."""
    if arm.ranker is None:
        prepared = prepare(*rows, config)
        return lambda seed: Ranker(arm.service, features, config, seed).fit_prepared(prepared)
    table = Table.of(*rows, config, weights=takes_weights(make_estimator(arm, 0)))
    return lambda seed: EstimatorRanker(arm, config, seed).fit(table)


def fit_arm(arm: Arm, arms: Arms, encoded: Encoded, resampler: Resampler, seeds: Iterable[int]) -> ArmScores:
    """Fit, calibrate and measure an arm's rankers, one per seed.

    Parameters
    ----------
    arm : Arm
    arms : Arms
        Whose settings of the ranker hold.
    encoded : Encoded
    resampler : Resampler
        Of the test rows' outcomes.
    seeds : iterable of int
        Of each ranker; a progress bar can stand here.
    """
    begun = time.time()
    features, config = arm_features(arm, encoded.features), arms.config_of(arm)
    place = {feature.name: i for i, feature in enumerate(encoded.features)}
    names = [feature.name for feature in features]
    train, valid, test = (encoded.blocks[name] for name in SPLITS)
    chosen = [place[name] for name in names]
    learned, held = (Examples(block.matrix(chosen), block.label, block.slate) for block in (train, valid))
    fit = _fitter(arm, features, config, (encoded.encoder.select(names), learned, held))
    del learned, held
    reached, importance, rounds = ArmScores(test.digest), np.zeros(len(features)), []
    matrix = np.ascontiguousarray(test.matrix(chosen))  # trees are walked row by row
    for seed in seeds:
        ranker = fit(seed)
        importance += np.array(list(ranker.importance().values()))
        rounds.append(ranker.rounds)
        assert ranker.valid_scores is not None
        reached.add_valid(arm.name, ranker.valid_scores, valid, resampler)
        reached.add(arm.name, ranker.predict_matrix(matrix), resampler)
    shares = dict(zip(names, (importance / len(rounds)).tolist(), strict=True))
    reached.about = {
        "features": len(features),
        "feature_digest": feature_digest(features),
        "ranker": ranker_identity(arm),
        "values_digest": encoded.values_digest(features),
        "rounds": rounds,
        "seconds": round(time.time() - begun, 1),
        "importance": sorted(shares.items(), key=lambda share: -share[1])[:TOP_FEATURES],
        "importance_by_group": list(importance_by_group(shares, features).items()),
        "calibration": calibration_curve(test.label, np.mean(reached.scores, axis=0)),
    }
    return reached
