"""The ablation: every arm trains on the same rows, is measured on the same rows, and gets its lift with an interval.

One frame is encoded once; an arm is a choice of its columns. The best control is chosen on validation rows, so that
the test rows are not asked twice.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from advprior.store.contract import ADVERTISER_ID, IMPRESSION_ID, LABEL, SLATE_ID, USER_ID
from advprior.store.errors import AdvpriorError
from advprior.store.features import Feature, groups_of
from advprior.store.runs import MANIFEST, peak_memory_mb, read_manifest, write_json
from advprior.store.tables import read_parquet, write_parquet
from ranking.evidence.lift import OVERALL, Lifts, as_lifts, paired_bootstrap
from ranking.evidence.metrics import DEFAULT_METRICS, MORE_METRICS, Auc, Floats, Rows, calibration_curve
from ranking.evidence.segments import SEGMENT_PREFIX, segments_of
from ranking.evidence.value import value_at_loads
from ranking.evidence.verdict import Verdict, judge, segment_label, with_interval
from ranking.frame.checks import Finding, check_placebo, check_same_test_rows, enforce
from ranking.frame.read import SPLITS, load_features, load_frame
from ranking.models.arms import Arms, arm_features, with_available
from ranking.models.encoder import Encoder
from ranking.models.ranker import Ranker, importance_by_group, prepare

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEP = "rank ablate"
ABLATION_FILE = "ablation.json"
PREDICTIONS_FILE = "predictions.parquet"
SEEDS_FILE = "seeds.parquet"  # the same rows' scores of each single ranker, as ``<arm>.<seed>``
_TOP_FEATURES = 20
_MEASURED = ["arm", "seed", "split", "segment", "metric", "value"]


@dataclass
class AblationResult:
    """What an ablation found.

    Parameters
    ----------
    arms : Arms
        Those that were measured.
    lifts : Lifts
        Every arm against the baseline, and the treatments against every control and placebo.
    verdict : Verdict
    best_control : str or None
        The control with the best AUC on validation rows.
    measured : DataFrame
        Every metric of every ranker: columns arm, seed, split, segment, metric, value.
    about : dict
        Splits, segments, importance, calibration, provenance.
    scores : dict of str to list of array
        Test probabilities of each arm, one array per seed; only where the ablation was just run.
    """

    arms: Arms
    lifts: Lifts
    verdict: Verdict
    best_control: str | None
    measured: pd.DataFrame
    about: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, list[Floats]] = field(default_factory=dict, repr=False)

    def frame(self) -> pd.DataFrame:
        """Lifts, one row per arm, baseline, metric and segment."""
        return self.lifts.frame()

    def table(self, segment: str = OVERALL) -> pd.DataFrame:
        """Metrics of every arm on test rows, means over seeds: one row per arm, one column per metric."""
        chosen = self.measured[(self.measured["split"] == "test") & (self.measured["segment"] == segment)]
        wide = chosen.pivot_table(
            index="arm", columns="metric", values="value", aggfunc="mean", sort=False, dropna=False
        )
        return wide.reindex(index=[arm.name for arm in self.arms.arms])

    def value(self, load: int = 5) -> pd.DataFrame:
        """Conversions per slate and concentration of advertisers at an ad load, one row per arm."""
        rows = [row for row in self.about["value"] if row["load"] == load]
        return pd.DataFrame(rows).set_index("arm")

    def plot(self) -> Figure:
        """Lift over the baseline with intervals, overall and by segment."""
        from ranking.evidence.plots import forest

        return forest(self)

    def _repr_html_(self) -> str:
        baseline, auc = self.arms.baseline.name, self.table()[Auc.name]
        rows = []
        for arm in self.arms.arms:
            cells = [
                with_interval(lift)
                for lift in self.lifts
                if (lift.arm, lift.baseline, lift.metric) == (arm.name, baseline, Auc.name)
            ]
            rows.append([arm.label, f"{float(auc[arm.name]):.4f}", *(cells or ["baseline"])])
        head = ["Arm", "AUC", *(f"ΔAUC, {segment_label(s)}" for s in self.segments)]
        body = "".join(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in row)}</tr>" for row in rows)
        return (
            f"<p><b>{escape(self.verdict.headline)}.</b> {escape(self.verdict.sentence)}</p><table><thead><tr>"
            f"{''.join(f'<th>{escape(h)}</th>' for h in head)}</tr></thead><tbody>{body}</tbody></table>"
        )

    @property
    def segments(self) -> list[str]:
        """Overall first."""
        return list(self.about["segment_order"])

    def save(self, folder: Path) -> None:
        """Write ``ablation.json``."""
        write_json(
            Path(folder) / ABLATION_FILE,
            _without_nan(
                {
                    "arms": self.arms.model_dump(),
                    "lifts": [asdict(lift) for lift in self.lifts],
                    "verdict": self.verdict.to_json(),
                    "best_control": self.best_control,
                    "measured": self.measured.to_dict("records"),
                    **self.about,
                }
            ),
        )

    @classmethod
    def load(cls, folder: Path) -> AblationResult:
        """Read a finished ablation.

        Raises
        ------
        AdvpriorError
            ``RUN001`` … ``RUN003`` when the folder is none, ``RNK026`` when its file cannot be read.
        """
        fix = "advprior rank ablate --frame FRAME --out ABLATION"
        read_manifest(folder, step=STEP, fix=fix)
        path = Path(folder) / ABLATION_FILE
        try:
            about = json.loads(path.read_text())
            said = about.pop("verdict")
            return cls(
                Arms.model_validate(about.pop("arms")),
                as_lifts(about.pop("lifts")),
                Verdict(said["kind"], said["sentence"], said["details"]),
                about.pop("best_control"),
                pd.DataFrame(about.pop("measured"), columns=_MEASURED).astype({"value": np.float64}),
                about,
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AdvpriorError(
                "RNK026", "the ablation cannot be read", where=str(path), actual=str(error).splitlines()[0], fix=fix
            ) from error


def usable_arms(
    arms: Arms, features: Sequence[Feature], asked: Sequence[str] = (), *, optional: bool = False
) -> tuple[Arms, dict[str, str]]:
    """The arms that a frame can feed, and what the others lack (`ranking.models.arms.with_available`).

    Raises
    ------
    AdvpriorError
        ``RNK021``, ``RNK022``; ``RNK028`` when no treatment is left to measure.
    """
    kept, left_out = with_available(arms, features, asked, optional=optional)
    if not kept.of_role("treatment"):
        raise AdvpriorError(
            "RNK028",
            "there is no treatment to measure",
            actual=f"arms {', '.join(arm.name for arm in kept.arms)}",
            expected="an arm with `role: treatment` whose priors are in the frame",
            fix="publish the priors (advprior publish) and build the frame again",
        )
    return kept, left_out


def row_digest(ids: NDArray[Any], label: NDArray[Any]) -> str:
    """Digest of which rows were scored, in which order, with which labels."""
    found = hashlib.sha256(np.ascontiguousarray(ids).tobytes())
    found.update(np.ascontiguousarray(label).tobytes())
    return found.hexdigest()[:16]


def ablate(
    frame: pd.DataFrame,
    arms: Arms,
    features: Sequence[Feature],
    *,
    seeds: int = 2,
    replicates: int = 1000,
    facts: Mapping[str, Any] | None = None,
) -> tuple[AblationResult, pd.DataFrame]:
    """Train and measure every arm.

    Parameters
    ----------
    frame : DataFrame
        As ``advprior rank frame`` writes it. Its feature columns are dropped in place once encoded, to save memory.
    arms : Arms
    features : sequence of Feature
        Of the frame, as its manifest lists them.
    seeds : int
        Rankers per arm.
    replicates : int
        Resamplings of users.
    facts : mapping, optional
        Of the frame's manifest; kept in the result.

    Returns
    -------
    AblationResult
    DataFrame
        Test rows: impression_id, user_id, slate_id, label, segments, and one column per arm, the mean of its
        calibrated probabilities over seeds.

    Raises
    ------
    AdvpriorError
        ``RNK006`` when arms were measured on different rows, ``RNK022``, ``RNK024``, ``RNK028``.
    """
    from tqdm.auto import tqdm

    started = time.time()
    used = {feature for arm in arms.arms for feature in arm_features(arm, features)}
    columns = [feature.name for feature in features if feature in used]
    at = {name: np.flatnonzero((frame["split"] == name).to_numpy()) for name in SPLITS}
    encoder = Encoder.fit(frame.iloc[at["train"]], columns)
    matrix = encoder.encode(frame)
    segments = segments_of(frame.iloc[at["test"]])
    frame.drop(columns=[feature.name for feature in features], inplace=True)  # noqa: PD002 a copy would double the memory
    label = frame[LABEL].to_numpy(np.int8)
    place = {name: i for i, name in enumerate(columns)}

    scores: dict[str, list[Floats]] = {}
    values: list[dict[str, Any]] = []
    per_arm: dict[str, dict[str, Any]] = {}
    digests: dict[str, str] = {}
    test = frame.iloc[at["test"]]
    codes = {
        name: (
            np.unique(frame[USER_ID].iloc[rows].astype(str), return_inverse=True)[1],
            frame[SLATE_ID].iloc[rows].to_numpy(),
        )
        for name, rows in at.items()
        if name != "train"
    }
    bar = tqdm(total=len(arms.arms) * seeds, desc="rankers", unit="ranker", disable=None)
    for arm in arms.arms:
        begun = time.time()
        own = arm_features(arm, features)
        chosen = [place[feature.name] for feature in own]
        part = {name: np.ascontiguousarray(matrix[rows][:, chosen]) for name, rows in at.items()}
        prepared = prepare(
            encoder.select([feature.name for feature in own]),
            part.pop("train"),
            label[at["train"]],
            part["valid"],
            label[at["valid"]],
            arms.config_of(arm),
            (frame[SLATE_ID].to_numpy()[at["train"]], frame[SLATE_ID].to_numpy()[at["valid"]]),
        )
        importance, rounds = np.zeros(len(own)), []
        scores[arm.name] = []
        for seed in range(seeds):
            bar.set_postfix_str(f"{arm.name}, seed {seed}")
            ranker = Ranker(arm.service, own, arms.config_of(arm), seed).fit_prepared(prepared)
            importance += np.array(list(ranker.importance().values())) / seeds
            rounds.append(ranker.rounds)
            valid, tested = ranker.predict_matrix(part["valid"]), ranker.predict_matrix(part["test"])
            scores[arm.name].append(tested)
            rows = at["test"]
            digests[f"{arm.name}, seed {seed}"] = row_digest(frame[IMPRESSION_ID].to_numpy()[rows], label[rows])
            values += _values(arm.name, seed, "valid", label[at["valid"]], valid, *codes["valid"], {})
            values += _values(arm.name, seed, "test", label[at["test"]], tested, *codes["test"], segments)
            bar.update()
        shares = dict(zip([feature.name for feature in own], importance.tolist(), strict=True))
        per_arm[arm.name] = {
            "features": len(own),
            "rounds": rounds,
            "seconds": round(time.time() - begun, 1),
            "importance": sorted(shares.items(), key=lambda pair: -pair[1])[:_TOP_FEATURES],
            "importance_by_group": list(importance_by_group(shares, own).items()),
            "calibration": calibration_curve(test[LABEL], np.mean(scores[arm.name], axis=0)),
        }
        del prepared, part
    bar.close()
    del matrix
    enforce([check_same_test_rows(digests)], "the test rows")

    table = pd.DataFrame(values, columns=_MEASURED)
    best_control = best_control_of(arms, table)
    lifts = paired_bootstrap(
        scores,
        test[LABEL],
        test[USER_ID].astype(str),
        pairs_of(arms),
        slate=test[SLATE_ID],
        segments=segments,
        replicates=replicates,
        progress=True,
    )
    verdict = judge(lifts, arms, best_control=best_control)
    about = {
        "per_arm": per_arm,
        "segment_order": [OVERALL, *segments],
        "segments": {
            name: _counts(test[mask]) for name, mask in {OVERALL: np.ones(len(test), bool), **segments}.items()
        },
        "splits": {name: _counts(frame.iloc[rows]) for name, rows in at.items()},
        "groups": sorted(groups_of(used)),
        "test_rows": next(iter(digests.values())),
        "settings": {"seeds": seeds, "replicates": replicates, "ranker": arms.ranker.model_dump()},
        "value": value_at_loads(
            test[SLATE_ID].to_numpy(),
            test[LABEL],
            pd.factorize(test[ADVERTISER_ID].astype(str))[0].astype(np.int64),
            scores,
        ),
        "warnings": [finding.to_json() for finding in warnings_of(lifts, arms)],
        "seconds": round(time.time() - started, 1),
        "peak_memory_mb": round(peak_memory_mb()),
        "frame_facts": dict(facts or {}),
    }
    predictions = test[[IMPRESSION_ID, USER_ID, SLATE_ID, LABEL]].reset_index(drop=True)
    for name, mask in segments.items():
        predictions[SEGMENT_PREFIX + name] = mask
    for name, of_arm in scores.items():
        predictions[name] = np.mean(of_arm, axis=0).astype(np.float32)
    return AblationResult(arms, lifts, verdict, best_control, table, about, scores), predictions


def run_ablation(
    frame_folder: Path,
    out: Path,
    arms: Arms,
    *,
    asked: Sequence[str] = (),
    optional: bool = False,
    seeds: int,
    replicates: int,
) -> tuple[AblationResult, dict[str, str]]:
    """Ablate the frame of a run folder; write ``ablation.json``, ``predictions.parquet`` and ``seeds.parquet``."""
    frame, features = load_frame(frame_folder), load_features(frame_folder)
    kept, left_out = usable_arms(arms, features, asked, optional=optional)
    manifest = read_manifest(frame_folder)
    result, predictions = ablate(frame, kept, features, seeds=seeds, replicates=replicates, facts=manifest["facts"])
    result.about["left_out"] = left_out
    result.about["frame_manifest"] = {
        key: manifest.get(key)
        for key in ("key", "inputs", "config", "versions", "finished", "seconds", "peak_memory_mb")
    }
    result.save(out)
    write_parquet(predictions, Path(out) / PREDICTIONS_FILE)
    by_seed = {
        f"{arm}.{seed}": score.astype(np.float32)
        for arm, of_arm in result.scores.items()
        for seed, score in enumerate(of_arm)
    }
    write_parquet(predictions[[IMPRESSION_ID]].assign(**by_seed), Path(out) / SEEDS_FILE)
    return result, left_out


def _values(
    arm: str,
    seed: int,
    split: str,
    label: NDArray[Any],
    score: Floats,
    user: NDArray[Any],
    slate: NDArray[Any],
    segments: Mapping[str, NDArray[np.bool_]],
) -> list[dict[str, Any]]:
    """Every metric of one ranker, overall and by segment."""
    out = []
    for segment, mask in {OVERALL: np.ones(len(label), dtype=bool), **segments}.items():
        rows = Rows.of(label[mask], score[mask], user=user[mask], slate=slate[mask], users=int(user.max()) + 1)
        for metric in (*DEFAULT_METRICS, *MORE_METRICS):
            value = metric(rows)
            out.append(
                {"arm": arm, "seed": seed, "split": split, "segment": segment, "metric": metric.name, "value": value}
            )
    return out


def warnings_of(lifts: Lifts, arms: Arms) -> list[Finding]:
    """What the result itself says against being trusted."""
    placebos = [lifts.get(arm.name, arms.baseline.name, Auc.name) for arm in arms.of_role("placebo")]
    return [finding for lift in placebos if (finding := check_placebo(lift.arm, lift.low, lift.high)) is not None]


def _counts(rows: pd.DataFrame) -> dict[str, int]:
    return {
        "rows": len(rows),
        "positives": int(rows[LABEL].sum()),
        "users": int(rows[USER_ID].nunique()),
        "slates": int(rows[SLATE_ID].nunique()),
    }


def pairs_of(arms: Arms) -> list[tuple[str, str]]:
    """Every arm against the baseline; every treatment against its controls and its placebo."""
    others = [(arm.name, arms.baseline.name) for arm in arms.arms if not arm.is_baseline]
    for treatment in arms.of_role("treatment"):
        placebo = arms.placebo_of(treatment)
        against = arms.controls_of(treatment) + ([] if placebo is None else [placebo])
        others += [(treatment.name, arm.name) for arm in against]
    return others


def best_control_of(arms: Arms, values: pd.DataFrame) -> str | None:
    """The control of the first treatment with the best mean AUC on validation rows."""
    names = [arm.name for arm in arms.controls_of(arms.of_role("treatment")[0])]
    if not names:
        return None
    valid = values[(values["split"] == "valid") & (values["metric"] == Auc.name) & values["arm"].isin(names)]
    return str(valid.groupby("arm")["value"].mean().idxmax())


def _without_nan(value: Any) -> Any:
    """JSON knows no NaN: what is undefined becomes null."""
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return [_without_nan(inner) for inner in value] if isinstance(value, list | tuple) else value


def load_seeds(folder: Path) -> tuple[pd.DataFrame, dict[str, list[Floats]]]:
    """Test rows of a finished ablation, and each arm's scores by seed, in the same order.

    Raises
    ------
    AdvpriorError
        ``RUN001`` … ``RUN003``, ``DAT001``, ``DAT002``; ``RNK006`` when the two files are of different rows.
    """
    fix = "advprior rank ablate --frame FRAME --out ABLATION --force"
    read_manifest(folder, step=STEP, fix=fix)
    rows = read_parquet(Path(folder) / PREDICTIONS_FILE, fix=fix)
    by_seed = read_parquet(Path(folder) / SEEDS_FILE, fix=fix)
    digests = {
        name: row_digest(table[IMPRESSION_ID].to_numpy(), np.zeros(0))
        for name, table in ((PREDICTIONS_FILE, rows), (SEEDS_FILE, by_seed))
    }
    enforce([check_same_test_rows(digests)], str(folder))
    scores: dict[str, list[Floats]] = {}
    for column in by_seed.columns:
        if "." in str(column):
            scores.setdefault(str(column).split(".")[0], []).append(by_seed[column].to_numpy(np.float64))
    return rows, scores


def manifest_of(folder: Path) -> dict[str, Any]:
    """Manifest of a finished ablation, for the report's provenance."""
    manifest: dict[str, Any] = json.loads((Path(folder) / MANIFEST).read_text())
    return manifest
