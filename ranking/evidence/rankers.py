"""The rankers of an ablation: a frame encoded once, and every arm's rankers fitted and scored on its columns."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from ranking.evidence.segments import SEGMENT_PREFIX, segment_columns, segments_of
from ranking.frame.checks import require_own_slates
from ranking.frame.read import SPLITS
from ranking.frame.row_blocks import FrameSource, together
from ranking.models.arms import Arm, Arms, arm_features
from ranking.models.binning import Examples, Prepared, dataset_params, prepare
from ranking.models.config import RankerConfig
from ranking.models.encoded import EncodedRows, fit_encoder
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
    """The rows of one split.

    Parameters
    ----------
    encoded : EncodedRows
        Of every feature that some arm reads.
    keys : DataFrame [rows]
        impression_id, user_id, slate_id, advertiser_id, label.
    """

    encoded: EncodedRows
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
        """Index of the user of each row, in the order of their ids."""
        codes, users = pd.factorize(self.keys[USER_ID])  # a text is sorted once a user, not once a row
        return np.unique(users.astype(str), return_inverse=True)[1][codes]

    @cached_property
    def digest(self) -> str:
        """Of which rows these are, and their labels."""
        return row_digest(self.keys[IMPRESSION_ID].to_numpy(), self.label)

    def rows_of(self, encoder: Encoder) -> EncodedRows:
        """The rows as the features of an arm, read when they are needed."""
        return replace(self.encoded, encoder=encoder)


@dataclass(frozen=True, eq=False)
class Encoded:
    """A frame as its rankers read it: where it lies, no copy of it.

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
    def of(
        cls, source: FrameSource, features: Sequence[Feature], arms: Arms, only: NDArray[np.bool_] | None = None
    ) -> Encoded:
        """What the arms read of a frame, or of those of its rows that ``only`` marks.

        Raises
        ------
        AdvpriorError
            ``DAT016`` when a slate has several users; ``RNK027`` when a split of a finished frame is empty.
        """
        keys = source.read([*_KEYS, "split"])
        require_own_slates(keys)
        used = {feature for arm in arms.arms for feature in arm_features(arm, features)}
        chosen = [feature for feature in features if feature in used]
        names = [feature.name for feature in chosen]
        chosen_rows = np.ones(len(keys), bool) if only is None else only
        at = {name: np.flatnonzero((keys["split"] == name).to_numpy() & chosen_rows) for name in SPLITS}
        encoder = fit_encoder(source, names, at["train"])
        blocks = {
            name: Block(EncodedRows(source, encoder, rows), keys[_KEYS].iloc[rows].reset_index(drop=True))
            for name, rows in at.items()
        }
        test = together(source, segment_columns(source.names), at["test"])
        return cls(chosen, encoder, blocks, segments_of(test))

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
            for matrix in self.blocks[name].encoded.blocks():
                for state, values in zip(states.values(), matrix.T, strict=True):
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


class PreparedOnce:
    """Binned rows that several arms can share: those with the same features that are binned and drawn alike.

    Parameters
    ----------
    arms : Arms
    features : sequence of Feature
        Of the frame.
    """

    def __init__(self, arms: Arms, features: Sequence[Feature]) -> None:
        of_arms = [arm for arm in arms.arms if arm.ranker is None]
        self._left = Counter(self._key(arm_features(arm, features), arms.config_of(arm)) for arm in of_arms)
        self._made: dict[str, Prepared] = {}

    def of(self, features: list[Feature], config: RankerConfig, rows: tuple[Encoder, Examples, Examples]) -> Prepared:
        """Made for the first arm that needs them, let go of after the last."""
        key = self._key(features, config)
        made = self._made.get(key) or prepare(*rows, config)
        self._left[key] -= 1
        if self._left[key] > 0:
            self._made[key] = made
        else:
            self._made.pop(key, None)
        return made

    @staticmethod
    def _key(features: Sequence[Feature], config: RankerConfig) -> str:
        drawn = {"objective", "start_from", "negatives", "negatives_per_positive"}
        return digest([feature_digest(features), dataset_params(config), config.model_dump(include=drawn)])


def _fitter(
    arm: Arm,
    features: list[Feature],
    config: RankerConfig,
    rows: tuple[Encoder, Examples, Examples],
    prepared: PreparedOnce | None,
) -> Callable[[int], Ranker | EstimatorRanker]:
    """What fits an arm's ranker of a seed; what the seeds share is done once."""
    if arm.ranker is None:
        binned = prepare(*rows, config) if prepared is None else prepared.of(features, config, rows)
        return lambda seed: Ranker(arm.service, features, config, seed).fit_prepared(binned)
    table = Table.of(*rows, config, weights=takes_weights(make_estimator(arm, 0)))
    return lambda seed: EstimatorRanker(arm, config, seed).fit(table)


def fit_arm(
    arm: Arm,
    arms: Arms,
    encoded: Encoded,
    resampler: Resampler,
    seeds: Iterable[int],
    prepared: PreparedOnce | None = None,
) -> ArmScores:
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
    prepared : PreparedOnce, optional
        Where arms with the same features find rows that were binned for another.
    """
    begun = time.time()
    features, config = arm_features(arm, encoded.features), arms.config_of(arm)
    names = [feature.name for feature in features]
    encoder = encoded.encoder.select(names)
    train, valid, test = (encoded.blocks[name] for name in SPLITS)
    learned, held = (Examples(block.rows_of(encoder), block.label, block.slate) for block in (train, valid))
    fit = _fitter(arm, features, config, (encoder, learned, held), prepared)
    del learned, held
    reached, importance, rounds = ArmScores(test.digest), np.zeros(len(features)), []
    scored = test.rows_of(encoder)
    for seed in seeds:
        ranker = fit(seed)
        importance += np.array(list(ranker.importance().values()))
        rounds.append(ranker.rounds)
        assert ranker.valid_scores is not None
        reached.add_valid(arm.name, ranker.valid_scores, valid, resampler)
        reached.add(arm.name, ranker.predict_matrix(scored), resampler)
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
