"""Measuring a two-by-two: every arm of an ablation that says who is likely, through both steps, on the same slates.

What an arm is held against is chosen on validation slates, cell by cell: the control with the most conversions there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.arrays import Bool, Double
from advprior.store.contract import AD_ID, IMPRESSION_ID, LABEL, SLATE_ID, TIMESTAMP, USER_ID, prior_view
from advprior.store.errors import AdvpriorError
from advprior.store.runs import read_manifest
from advprior.store.tables import read_parquet
from ranking.candidates.cells import BOTH, CELLS, CONTROL, PLACEBO_ROLE, RETRIEVAL, cells_of, effects_of_sums
from ranking.candidates.choose import choose
from ranking.candidates.curve import QUOTAS
from ranking.candidates.endtoend import TwoByTwo
from ranking.candidates.retrieval import retrieval_scores
from ranking.candidates.sums import sums_of
from ranking.candidates.towers import Towers
from ranking.evidence.bootstrap import Outcomes, Resampling
from ranking.evidence.deciding import slate_sizes
from ranking.evidence.metrics import Conversions, Ndcg, Rows
from ranking.evidence.ordering import Sorted
from ranking.evidence.result import ABLATION_FILE, AblationResult, Validation, load_seeds, load_validation
from ranking.evidence.verdict import name_of
from ranking.frame.read import FRAME_FILE, FRAME_FIX, column_names
from ranking.models.arms import Arm, Arms


@dataclass(frozen=True)
class TwoByTwoOptions:
    """What a two-by-two compares.

    Parameters
    ----------
    arm, baseline : str
        Arms of the ablation: the ranker with priors that the result is about first, and the one without.
    k : int, optional
        Candidates per slate; by default what `slate_sizes` says of the test slates.
    slots : int, optional
        Ads that the user sees; by default as many as the ablation counted conversions at.
    replicates : int
        Resamplings of users behind the intervals.
    """

    arm: str = "llm"
    baseline: str = "baseline"
    k: int | None = None
    slots: int | None = None
    replicates: int = 1000


def two_by_two(
    tables: Path, frame: Path, ablation: Path, towers: Towers, options: TwoByTwoOptions | None = None
) -> TwoByTwo:
    """Measure the four cells on the test slates of an ablation, with the priors of each of its arms.

    Parameters
    ----------
    tables, frame, ablation : Path
        Canonical tables; what ``rank frame`` and ``rank ablate`` made of them. Predicted advertisers are the frame's
        top-20 members, as joined through the store.
    towers : Towers
    options : TwoByTwoOptions, optional

    Raises
    ------
    AdvpriorError
        ``RNK021`` when the ablation has no such arm, ``RNK022`` when the frame lacks the arm's priors, ``RNK006`` when
        frame and ablation are of different rows.
    """
    options = options or TwoByTwoOptions()
    scored, scores = load_seeds(ablation)
    _check_arms(scores, options, ablation)
    result = AblationResult.load(ablation) if (Path(ablation) / ABLATION_FILE).is_file() else None
    columns = _columns(frame, result, options)
    valid, test = _splits(frame, columns)
    if not np.array_equal(test[IMPRESSION_ID].to_numpy(), scored[IMPRESSION_ID].to_numpy()):
        raise AdvpriorError(
            "RNK006",
            "the ablation was measured on other test rows than this frame's",
            where=str(ablation),
            fix="advprior rank ablate on this frame again",
        )
    usual = slate_sizes(len(test) / max(test[SLATE_ID].nunique(), 1))
    slots = options.slots or (usual[1] if result is None else result.slots)
    k = options.k or max(usual[0], slots + 1)
    of_valid, of_test = retrieval_scores(tables, towers, valid, test)
    held, shown = _Slates.of(valid, of_valid, k, columns), _Slates.of(test, of_test, k, columns)
    tried = {name: held.recall_by_quota(name) for name in columns}
    quotas = {name: _best_quota(of_arm) for name, of_arm in tried.items()}
    augmented = {name: shown.candidates(name, quota) for name, quota in quotas.items()}
    references: dict[str, dict[str, dict[str, str]]] = {}
    if result is not None:
        reached = held.conversions(load_validation(ablation), options.baseline, quotas, slots)
        told = (arm for arm in _told(result.arms, options) if arm.name in columns)  # who predicts nobody gets no slot
        references = {arm.name: _references(result, arm, columns, reached) for arm in told}
    arms = list(augmented)
    beside = {arm: all_of(by_cell) for arm, by_cell in references.items()} or {arms[0]: arms[1:]}
    priors = {name: (scores[name], candidates) for name, candidates in augmented.items()}
    cells = cells_of(scores[options.baseline], shown.candidates(None, 0.0), priors)
    users, metrics = test[USER_ID].astype(str), (Conversions(slots), Ndcg(slots))
    outcomes = Outcomes.of(test[LABEL], users, slate=test[SLATE_ID])
    (sums,) = sums_of(cells, outcomes, np.unique(users), metrics, progress=True)
    lifts = effects_of_sums([sums], arms, Resampling(metrics, replicates=options.replicates), beside)
    won = test[LABEL].to_numpy() == 1
    named = {"alone": shown.candidates(None, 0.0), "augmented": augmented[options.arm]}
    named |= {name: of_arm for name, of_arm in augmented.items() if name != options.arm}
    about = {
        "k": k,
        "slots": slots,
        "quota": quotas[options.arm],
        "tried": tried[options.arm],
        "arm": options.arm,
        "baseline": options.baseline,
        "treatments": list(references) or [options.arm],
        "references": references,
        "quotas": quotas,
        "slates": int(test[SLATE_ID].nunique()),
        "users": int(test[USER_ID].nunique()),
        "positives": int(won.sum()),
        "among_candidates": {name: int((won & candidates).sum()) for name, candidates in named.items()},
        **_said_of_tables(tables),
        **_said_of(result),
    }
    return TwoByTwo(lifts, about, sums)


def _columns(frame: Path, result: AblationResult | None, options: TwoByTwoOptions) -> dict[str, str]:
    """Column of each arm's top-20 membership, the first arm's first: of all whose own prior is in the frame."""
    names = set(column_names(frame))
    columns = {options.arm: f"{prior_view(options.arm)}_top20"}
    if result is None:
        return columns
    method = result.arms.method_of(result.arms.baseline)
    others = [arm.name for arm in result.arms.arms if not arm.is_baseline and result.arms.method_of(arm) == method]
    return columns | {name: column for name in others if (column := f"{prior_view(name)}_top20") in names}


def _told(arms: Arms, options: TwoByTwoOptions) -> list[Arm]:
    """Arms that something is said of: the first one, then every treatment."""
    first = arms.find(options.arm)
    return [first, *(arm for arm in arms.of_role("treatment") if arm.name != first.name)]


def _references(
    result: AblationResult, arm: Arm, measured: Mapping[str, Any], reached: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, str]]:
    """Whom each of an arm's cells is held against: the best control on validation, the placebo, controls of a kind.

    Parameters
    ----------
    result : AblationResult
    arm : Arm
    measured : mapping
        Arms that ran through both steps.
    reached : mapping of cell to mapping of arm to float
        Conversions per slate on validation; without any, the ablation's own choice stands for all cells.
    """
    controls = [c.name for c in result.arms.controls_of(arm) if c.name in measured and c.name != arm.name]
    others: dict[str, Arm | None] = {str(kind): control for kind, control in result.arms.kin_of(arm).items()}
    others[PLACEBO_ROLE] = result.arms.placebo_of(arm)
    fixed = {role: one.name for role, one in others.items() if one is not None and one.name in measured}
    references = {}
    for name in CELLS:
        best: str | None = result.best_controls.get(arm.name)
        if name in reached:
            best = max(controls, key=lambda control: reached[name][control], default=None)
        control = {CONTROL: best} if best in controls else {}
        references[name] = {**control, **fixed} if arm.role != "control" else control
    return references


def all_of(by_cell: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Whom any cell of an arm is held against, each once."""
    return list(dict.fromkeys(other for of_cell in by_cell.values() for other in of_cell.values()))


def _said_of_tables(tables: Path) -> dict[str, Any]:
    """What the data is, and when it was tested."""
    facts = read_manifest(tables)["facts"]
    plan = facts.get("time_plan", {})
    window = {"test": f"{plan['valid_end']} to {plan['end']}"} if plan else {}
    return {"data": facts.get("note"), **window}


def _said_of(result: AblationResult | None) -> dict[str, Any]:
    """What the ablation says of its arms: names, gaps, controls that there should be, the metric that is decided on."""
    if result is None:
        return {"labels": {}, "gaps": {}}
    return {
        "labels": {one.name: name_of(one) for one in result.arms.arms},
        "gaps": dict(result.about.get("gaps", {})),
        "expected": dict(result.about.get("expected_kinds", {})),
        "decide_on": result.metric.name,
    }


@dataclass(frozen=True, eq=False)
class _Slates:
    """The slates of one split, ordered by the towers."""

    table: pd.DataFrame
    rows: Sorted
    k: int
    columns: Mapping[str, str]

    @classmethod
    def of(cls, table: pd.DataFrame, score: Double, k: int, columns: Mapping[str, str]) -> _Slates:
        return cls(table, Sorted.of(table[SLATE_ID].to_numpy(), score), k, columns)

    def candidates(self, arm: str | None, quota: float) -> Bool:
        """Candidates, some slots kept for the advertisers that an arm predicts; bool [rows]."""
        wanted = np.zeros(len(self.table), bool)
        if arm is not None:
            wanted = self.table[self.columns[arm]].to_numpy(np.float64) == 1
        return choose(self.rows, wanted, self.k, quota)

    def recall_by_quota(self, arm: str) -> dict[str, float]:
        """Share of engaged ads among the candidates at each quota."""
        won = self.table[LABEL].to_numpy() == 1
        recall = {q: float((self.candidates(arm, q) & won).sum() / max(won.sum(), 1)) for q in QUOTAS}
        return {str(q): round(value, 5) for q, value in recall.items()}

    def conversions(
        self, validation: Validation | None, baseline: str, quotas: Mapping[str, float], slots: int
    ) -> dict[str, dict[str, float]]:
        """Conversions per slate of each arm's cells, means over seeds; nothing without scores of these rows."""
        ids = self.table[IMPRESSION_ID].to_numpy()
        if validation is None or not np.array_equal(validation.ids, ids):
            return {}
        alone, metric = self.candidates(None, 0.0), Conversions(slots)

        def mean(scores: Sequence[Double], candidates: Bool) -> float:
            ranked = (np.where(candidates, score, -1.0) for score in scores)
            label, slate = self.table[LABEL], self.table[SLATE_ID]
            return float(np.mean([metric(Rows.of(label, score, slate=slate)) for score in ranked]))

        reached: dict[str, dict[str, float]] = {name: {} for name in CELLS}
        for arm, quota in quotas.items():
            augmented = self.candidates(arm, quota)
            for name in CELLS:
                scores = validation.scores[baseline if name == RETRIEVAL else arm]
                reached[name][arm] = mean(scores, augmented if name in (BOTH, RETRIEVAL) else alone)
        return reached


def _best_quota(recall: Mapping[str, float]) -> float:
    """The quota above zero with the most engaged ads among validation's candidates, the smallest of equals."""
    return max((float(q) for q in recall if float(q) > 0), key=lambda q: (recall[str(q)], -q))


def _check_arms(scores: Mapping[str, Any], options: TwoByTwoOptions, ablation: Path) -> None:
    for name in (options.arm, options.baseline):
        if name not in scores:
            raise AdvpriorError(
                "RNK021",
                "the ablation has no such arm",
                where=str(ablation),
                actual=name,
                expected=", ".join(scores),
                fix="advprior rank ablate --arm " + name,
            )


def _splits(frame: Path, top20: Mapping[str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Validation and test rows of a frame, with the columns that a two-by-two reads; ``top20`` by arm."""
    columns = [IMPRESSION_ID, SLATE_ID, USER_ID, AD_ID, TIMESTAMP, LABEL, "split", *top20.values()]
    path, names = Path(frame) / FRAME_FILE, column_names(frame)
    if not names:
        read_parquet(path, fix=FRAME_FIX)  # says what is missing
    for name, column in top20.items():
        if column not in names:
            raise AdvpriorError(
                "RNK022",
                f"the frame has no priors of the arm `{name}`",
                where=column,
                expected="an arm whose priors say who is likely: "
                + ", ".join(c.removeprefix("prior_").removesuffix("_top20") for c in names if c.endswith("_top20")),
                fix="name one of these as --arm; or publish priors of that name, apply, and build the frame again",
            )
    table = read_parquet(path, columns=columns, fix=FRAME_FIX)
    valid, test = (table.loc[table["split"] == name, columns].reset_index(drop=True) for name in ("valid", "test"))
    return valid, test
