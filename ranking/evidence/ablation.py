"""The ablation: every arm trains on the same rows, is measured on the same rows, and gets its lift with an interval.

One frame is encoded once; an arm is a choice of its columns. The best control is chosen on validation rows, so that
the test rows are used once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.contract import ADVERTISER_ID, IMPRESSION_ID, LABEL, SLATE_ID, USER_ID
from advprior.store.errors import AdvpriorError
from advprior.store.features import Feature, groups_of
from advprior.store.progress import Progress
from advprior.store.runs import read_manifest
from advprior.store.spent import peak_memory_mb
from ranking.evidence.bootstrap import Resampler, Resampling, lifts_of
from ranking.evidence.claims import expected_kinds, gaps_of, gaps_to_json, jointly
from ranking.evidence.deciding import deciding_metric, metrics_at, slate_sizes
from ranking.evidence.lift import OVERALL, Lifts
from ranking.evidence.metrics import Auc, Metric
from ranking.evidence.rankers import (
    MEASURED,
    ArmScores,
    Encoded,
    PreparedOnce,
    feature_digest,
    fit_arm,
    row_digest,
)
from ranking.evidence.result import VALID_FILE, AblationResult, Validation
from ranking.evidence.value import LOADS, value_at_loads
from ranking.evidence.verdict import judge
from ranking.evidence.wording import segment_label
from ranking.frame.checks import Finding, check_placebo, check_same_test_rows, enforce
from ranking.frame.read import load_features
from ranking.frame.row_blocks import InMemory, InParquet
from ranking.frame.table import Frame, how_made
from ranking.models.arms import Arm, Arms, arm_features, load_arms
from ranking.models.available import with_available
from ranking.models.estimators import ranker_identity


def usable_arms(
    arms: Arms, features: Sequence[Feature], named: Sequence[str] = (), *, optional: bool = False
) -> tuple[Arms, dict[str, str]]:
    """The arms that a frame can feed, and what the others lack (`ranking.models.available.with_available`).

    Raises
    ------
    AdvpriorError
        ``RNK021``, ``RNK022``; ``RNK028`` when neither a treatment nor a control is left to measure.
    """
    usable, left_out = with_available(arms, features, named, optional=optional)
    if not usable.on_trial:
        lacking = "; ".join(f"{arm} adds {what}" for arm, what in left_out.items())
        raise AdvpriorError(
            "RNK028",
            "there is nothing to measure beside the baseline",
            actual=f"arms {', '.join(arm.name for arm in usable.arms)}; not in the frame: {lacking or 'nothing'}",
            expected="a treatment or a control whose features are in the frame",
            fix="publish priors of those names (advprior publish PRIORS --repo REPO), feast apply, and build the frame"
            " again; or write in arms.yaml what the frame has",
        )
    return usable, left_out


def ablate(
    frame: Frame,
    arms: Arms | None = None,
    *,
    seeds: int = 3,
    replicates: int = 1000,
    decide_on: str | None = None,
    reuse: AblationResult | None = None,
) -> AblationResult:
    """Train and measure every arm.

    Parameters
    ----------
    frame : Frame
        Not changed.
    arms : Arms, optional
        The package's own without. Those whose priors the frame lacks are left out, and named in ``about["left_out"]``.
    seeds : int
        Rankers per arm.
    replicates : int
        Resamplings of users.
    decide_on : str, optional
        The metric of the verdict, one of `advprior.store.project_files.DECIDE_ON`; conversions per slate where slates
        leave a choice.
    reuse : AblationResult, optional
        A finished ablation of the same rows: arms that it measured with the same settings and the same values of their
        features are not fitted again; ``about["reused"]`` names them.

    Returns
    -------
    AblationResult

    Raises
    ------
    AdvpriorError
        ``DAT016`` when a slate has several users; ``RNK006`` when ``reuse`` was trained or measured on other rows;
        ``RNK022`` when an arm adds what the frame lacks, ``RNK024`` when a split has no positives, ``RNK028`` when
        nothing is left to measure.

    Examples
    --------
    With a feature of one's own, on a finished demo::

        frame = ranking.Frame.load("runs/demo/frame")
        frame = frame.with_prior("hour", frame.rows["timestamp"].dt.hour)
        arms = ranking.load_arms().with_arm("hour", adds=["prior_hour"], label="+ hour of day")
        result = ranking.ablate(frame, arms, reuse=ranking.AblationResult.load("runs/demo/ablation"))
        print(result.compare("hour", "baseline"))
    """
    usable, left_out = usable_arms(load_arms() if arms is None else arms, frame.features)
    result = measure(
        Encoded.of(InMemory(frame.rows), frame.features, usable),
        usable,
        AblationOptions(seeds, replicates, dict(frame.facts), dict(frame.manifest), reuse, decide_on),
    )
    result.about["left_out"] = left_out
    return result


@dataclass(frozen=True)
class AblationOptions:
    """How an ablation is measured.

    Parameters
    ----------
    seeds : int
        Rankers per arm.
    replicates : int
        Resamplings of users.
    facts : dict
        Of the frame's manifest; kept in the result.
    manifest : dict
        What else it says of how the frame was made.
    reuse : AblationResult, optional
        Whose arms need not be fitted again.
    decide_on : str, optional
        The metric of the verdict, one of `advprior.store.project_files.DECIDE_ON`.
    slots : int, optional
        Shown ads of a slate when conversions are counted; by default what `slate_sizes` says of the test slates.
    """

    seeds: int = 3
    replicates: int = 1000
    facts: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    reuse: AblationResult | None = None
    decide_on: str | None = None
    slots: int | None = None


def measure(encoded: Encoded, arms: Arms, options: AblationOptions) -> AblationResult:
    """Train and measure every arm on an encoded frame; see `ablate`."""
    started = time.time()
    options = _with_slots(options, encoded)
    assert options.slots is not None
    metrics = metrics_at(options.slots)
    metric = deciding_metric(options.decide_on, options.slots, encoded.blocks["test"].slate)
    resampler = Resampler.of(encoded.outcomes, Resampling(metrics, options.replicates))
    previous, prepared = Previous.of(encoded, options), PreparedOnce(arms, encoded.features)
    reached: dict[str, ArmScores] = {}
    reused: list[str] = []
    with Progress(len(arms.arms) * options.seeds, "rankers", "ranker") as progress:

        def seeds_of(arm: Arm) -> Iterator[int]:
            for seed in range(options.seeds):
                progress.note(f"{arm.name}, seed {seed}")
                yield seed
                progress.update()

        for arm in arms.arms:
            old = previous.scores(arm, arms, encoded, resampler) if previous else None
            old = old if old is not None and len(old.scores) == options.seeds else None
            reached[arm.name] = old or fit_arm(arm, arms, encoded, resampler, seeds_of(arm), prepared)
            if old:
                reused.append(arm.name)
                progress.update(options.seeds)
    enforce([check_same_test_rows({name: one.rows for name, one in reached.items()})], "the test rows")

    measured = pd.DataFrame([row for one in reached.values() for row in one.measured], columns=MEASURED)
    best_controls = best_controls_of(arms, measured, metric)
    best_control = best_controls.get(arms.on_trial[0].name)
    gaps = gaps_of(arms, encoded.features, options.facts)
    expected = expected_kinds(arms, encoded.features, options.facts)
    draws = {name: one.draws for name, one in reached.items()}
    lifts = lifts_of(draws, pairs_of(arms), resampler.options, resampler.outcomes.telling)
    return AblationResult(
        arms,
        lifts,
        judge(lifts, arms, best_controls=best_controls, metric=metric, gaps=gaps, expected=expected),
        best_control,
        measured,
        _about(encoded, arms, reached, (lifts, metric), options)
        | {"gaps": gaps_to_json(gaps), "expected_kinds": expected}
        | {"seconds": round(time.time() - started, 1), "reused": reused},
        encoded.test_rows(),
        {name: one.scores for name, one in reached.items()},
        validation=Validation(encoded.blocks["valid"].ids, {name: one.valid for name, one in reached.items()}),
        best_controls=best_controls,
    )


def _about(
    encoded: Encoded,
    arms: Arms,
    reached: Mapping[str, ArmScores],
    told: tuple[Lifts, Metric],
    options: AblationOptions,
) -> dict[str, Any]:
    """What a report says beside lifts and measures."""
    lifts, metric = told
    assert options.slots is not None
    test = encoded.blocks["test"]
    masks = {OVERALL: np.ones(len(test.keys), bool), **encoded.segments}
    return {
        "per_arm": {name: one.about for name, one in reached.items()},
        "segment_order": list(masks),
        "segments": segment_counts(test.keys, masks),
        "splits": {name: _counts(block.keys) for name, block in encoded.blocks.items()},
        "groups": sorted(groups_of(encoded.features)),
        "test_rows": test.digest,
        "trained_on": encoded.trained_on,
        "settings": {
            "seeds": options.seeds,
            "replicates": options.replicates,
            "slots": options.slots,
            "decide_on": metric.name,
            "ranker": arms.ranker.model_dump(),
        },
        "value": value_at_loads(
            test.slate,
            test.label,
            pd.factorize(test.keys[ADVERTISER_ID].astype(str))[0].astype(np.int64),
            {name: one.scores for name, one in reached.items()},
            sorted({*LOADS, options.slots}),
        ),
        "warnings": [finding.to_json() for finding in warnings_of(lifts, arms, metric)],
        "peak_memory_mb": round(peak_memory_mb()),
        "frame_facts": dict(options.facts),
        "frame_manifest": dict(options.manifest),
    }


def _with_slots(options: AblationOptions, encoded: Encoded) -> AblationOptions:
    """With the number of shown ads that fits the test slates, where nothing says it."""
    if options.slots is not None:
        return options
    slate = encoded.blocks["test"].slate
    return replace(options, slots=slate_sizes(len(slate) / max(len(np.unique(slate)), 1))[1])


@dataclass(frozen=True, eq=False)
class Previous:
    """A finished ablation of the same rows, whose arms need not be fitted again."""

    result: AblationResult
    rows: str  # digest of the rows that its scores belong to, and their labels

    @classmethod
    def of(cls, encoded: Encoded, options: AblationOptions) -> Previous | None:
        """None where nothing is to be reused; a finished ablation of other rows is refused."""
        result = options.reuse
        if result is None or (result.folder is not None and not (result.folder / VALID_FILE).is_file()):
            return None  # of an earlier version: without scores of validation rows
        rows = result.load_scores().rows
        assert rows is not None
        own = row_digest(rows[IMPRESSION_ID].to_numpy(), rows[LABEL].to_numpy(np.int8))
        enforce([check_same_test_rows({"reused arms": own, "new arms": encoded.blocks["test"].digest})], "reuse")
        if result.about.get("trained_on") != encoded.trained_on:
            raise AdvpriorError(
                "RNK006",
                "the arms to reuse were trained on other rows",
                where=str(result.folder or "reuse"),
                expected="an ablation of the same impressions, with the same split",
                fix="ablate without reuse",
            )
        return cls(result, own)

    def scores(self, arm: Arm, arms: Arms, encoded: Encoded, resampler: Resampler) -> ArmScores | None:
        """An arm's scores, resampled anew; None where it was not measured with these settings."""
        about = self.result.about["per_arm"].get(arm.name, {})
        features = arm_features(arm, encoded.features)
        # what it is called, and its role, are no part of a fit
        if about.get("feature_digest") != feature_digest(features):
            return None
        if about.get("values_digest") != encoded.values_digest(features):
            return None
        if arm.given is not None or about.get("ranker") != ranker_identity(arm):
            return None
        if self.result.arms.config_of(self.result.arms.find(arm.name)) != arms.config_of(arm):
            return None
        reached = ArmScores(self.rows, about=about)
        assert self.result.validation is not None
        for score in self.result.validation.scores[arm.name]:
            reached.add_valid(arm.name, score, encoded.blocks["valid"], resampler)
        for score in self.result.scores[arm.name]:
            reached.add(arm.name, score, resampler)
        return reached


def run_ablation(
    frame_folder: Path,
    out: Path,
    arms: Arms,
    options: AblationOptions | None = None,
    *,
    asked: Sequence[str] = (),
    optional: bool = False,
) -> tuple[AblationResult, dict[str, str]]:
    """Ablate the frame of a run folder; write ``ablation.json``, ``predictions.parquet`` and ``seeds.parquet``.

    Returns
    -------
    AblationResult
    dict of str to str
        Arms left out, and what the frame lacks of them.
    """
    options = options or AblationOptions()
    features, manifest = load_features(frame_folder), read_manifest(frame_folder)
    usable, left_out = usable_arms(arms, features, asked, optional=optional)
    options = replace(options, facts=manifest["facts"], manifest=how_made(manifest))
    result = measure(Encoded.of(InParquet(frame_folder), features, usable), usable, options)
    result.about["left_out"] = left_out
    result.write(out)
    return result, left_out


def warnings_of(lifts: Lifts, arms: Arms, metric: Metric) -> list[Finding]:
    """What the result itself says against being trusted."""
    names = {arm.name for arm in arms.of_role("placebo")}
    placebos = [
        jointly(lift)
        for lift in lifts
        if lift.arm in names and lift.baseline == arms.baseline.name and lift.metric in (Auc.name, metric.name)
    ]
    return [
        finding
        for lift in placebos
        if (finding := check_placebo(lift.arm, lift.low, lift.high, segment_label(lift.segment))) is not None
    ]


def segment_counts(rows: pd.DataFrame, masks: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows, positives, users and slates of each segment, and its share of the rows and of their users."""
    users = max(rows[USER_ID].nunique(), 1)
    counts = {name: _counts(rows[mask]) for name, mask in masks.items()}
    return {
        name: {**of, "share_of_rows": of["rows"] / max(len(rows), 1), "share_of_users": of["users"] / users}
        for name, of in counts.items()
    }


def _counts(rows: pd.DataFrame) -> dict[str, int]:
    return {
        "rows": len(rows),
        "positives": int(rows[LABEL].sum()),
        "users": int(rows[USER_ID].nunique()),
        "slates": int(rows[SLATE_ID].nunique()),
    }


def pairs_of(arms: Arms) -> list[tuple[str, str]]:
    """Every arm against the baseline; every treatment against its controls and its placebo."""
    comparisons = [(arm.name, arms.baseline.name) for arm in arms.arms if not arm.is_baseline]
    for treatment in arms.of_role("treatment"):
        placebo = arms.placebo_of(treatment)
        against = arms.controls_of(treatment) + ([] if placebo is None else [placebo])
        comparisons += [(treatment.name, arm.name) for arm in against]
    return comparisons


def best_controls_of(arms: Arms, values: pd.DataFrame, metric: Metric) -> dict[str, str]:
    """The control with the best mean of a metric on validation rows, of each arm on trial that has one."""
    valid = values[(values["split"] == "valid") & (values["metric"] == metric.name)]
    mean = valid.groupby("arm")["value"].mean().dropna() * (1 if metric.higher_is_better else -1)
    best = {}
    for treatment in arms.on_trial:
        reached = mean[mean.index.isin([arm.name for arm in arms.controls_of(treatment)])]
        if len(reached):
            best[treatment.name] = str(reached.idxmax())
    return best
