"""The two-by-two: candidates with and without priors, ranked with and without priors, end to end.

Within each test slate the towers choose k candidates (alone, or with the quota of slots for predicted advertisers),
an arm's ranker orders them, and the first ``slots`` are what the user would have seen. The measure is the positives
among those, per slate, and NDCG over them, against what the slate held: an ad that was not a candidate ranks behind
all that were. The slate, all that a user was shown, stands for the inventory; what a user would have done with an ad
that was not shown is unknown, so this is unbiased for re-ordering shown ads, and no forecast of a larger corpus.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from advprior.store.arrays import Double
from advprior.store.contract import AD_ID, IMPRESSION_ID, LABEL, SLATE_ID, TIMESTAMP, USER_ID, prior_view
from advprior.store.errors import AdvpriorError
from advprior.store.runs import read_manifest, write_json
from advprior.store.tables import read_parquet
from ranking.candidates.cells import BOTH, CONTROL, EFFECTS, NEITHER, PLACEBO_ROLE, RANKING, RETRIEVAL, cell, effects_of
from ranking.candidates.choose import choose
from ranking.candidates.curve import QUOTAS
from ranking.candidates.retrieval import retrieval_scores
from ranking.candidates.towers import Towers
from ranking.evidence.bootstrap import Outcomes, Resampling
from ranking.evidence.claims import Beside, Claim, gaps_from_json
from ranking.evidence.lift import Lift, Lifts, as_lifts
from ranking.evidence.metrics import Conversions, Ndcg
from ranking.evidence.ordering import Sorted
from ranking.evidence.result import ABLATION_FILE, AblationResult, load_seeds
from ranking.evidence.verdict import name_of
from ranking.evidence.wording import signed
from ranking.frame.read import FRAME_FILE, FRAME_FIX

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEP = "rank two-by-two"
FILE = "two_by_two.json"


@dataclass(repr=False)
class TwoByTwo:
    """Effects of priors in retrieval, in ranking and in both.

    Parameters
    ----------
    lifts : Lifts
        Arms are the cells ``neither``, ``candidates``, ``ranker`` and ``both``; metrics ``conversions_<slots>`` (per
        slate) and ``ndcg_<slots>``. The same effects of the arm's best control and placebo are there too, their cells
        named by `cell`, and what the arm's cells gain over theirs.
    about : dict
        k, slots, quota and how it was chosen, arm, rows; ``references``: the best control and the placebo by role, as
        far as the ablation and the frame have them.
    """

    lifts: Lifts
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def references(self) -> dict[str, str]:
        """Names of the arms that the effects are held against: ``control``, ``placebo``, where they were measured."""
        return dict(self.about.get("references", {}))

    def effect(self, name: str, against: str, *, role: str | None = None, metric: str | None = None) -> Lift:
        """What one cell gains over another.

        Parameters
        ----------
        name, against : str
            Cells, as in `EFFECTS`.
        role : str, optional
            ``control`` or ``placebo``: the same effect of that arm's priors.
        metric : str, optional
            Conversions per slate without.
        """
        arm = None if role is None else self.references[role]
        return self.lifts.get(cell(name, arm), cell(against, arm), metric or self._conversions)

    def over(self, name: str, role: str, metric: str | None = None) -> Lift:
        """What one cell gains over the same cell of the ``control`` or the ``placebo``."""
        return self.lifts.get(name, cell(name, self.references[role]), metric or self._conversions)

    @property
    def _conversions(self) -> str:
        return f"conversions_{self.about['slots']}"

    def frame(self) -> pd.DataFrame:
        """One row per effect of the arm and metric."""
        named = {(arm, against): label for arm, against, label in EFFECTS}
        table = Lifts(lift for lift in self.lifts if (lift.arm, lift.baseline) in named).frame()
        table.insert(0, "effect", [named[pair] for pair in zip(table["arm"], table["baseline"], strict=True)])
        return table

    def table(self, metric: str | None = None) -> pd.DataFrame:
        """The four cells: rows candidates without and with priors, columns ranker without and with."""
        metric = metric or f"conversions_{self.about['slots']}"
        base = self.lifts.get(RETRIEVAL, NEITHER, metric)
        cells = [
            [base.baseline_value, self.lifts.get(RANKING, NEITHER, metric).value],
            [base.value, self.lifts.get(BOTH, NEITHER, metric).value],
        ]
        return pd.DataFrame(
            cells,
            index=["candidates without priors", "candidates with priors"],
            columns=["ranker without priors", "ranker with priors"],
        )

    def claim(self, name: str, against: str) -> Claim:
        """What may be said of one effect on conversions, beside the best control's and the placebo's.

        Parameters
        ----------
        name, against : str
            Cells, as in `EFFECTS`.
        """
        labels, arm = self.about.get("labels", {}), str(self.about["arm"])
        gaps = gaps_from_json(self.about.get("gaps"))

        def beside(role: str) -> Beside | None:
            if role not in self.references:
                return None
            other = self.references[role]
            over = self.over(name, role) if against == NEITHER else None
            return Beside(labels.get(other, other), self.effect(name, against, role=role), over, gaps.get(other))

        lift = self.lifts.get(name, against, self._conversions)
        return Claim(labels.get(arm, arm), lift, beside(CONTROL), beside(PLACEBO_ROLE), gaps.get(arm))

    def sentences(self) -> list[str]:
        """Each effect on conversions in words: whose priors, and what control and placebo did in the same step."""
        slots, told = self.about["slots"], [(label, self.claim(name, against)) for name, against, label in EFFECTS]
        return [
            f"{label}, of {claim.name}: conversions per slate at {slots} ads {claim.lift.text()} "
            f"({signed(100 * claim.lift.relative, 2)} %), {claim.outcome()}. {claim.beside()}"
            for label, claim in told
        ]

    def __repr__(self) -> str:
        """One sentence an effect."""
        return "\n".join(self.sentences())

    def plot(self) -> Figure:
        """Each effect with its interval."""
        from ranking.candidates.plots import effects

        slots, table = self.about["slots"], self.frame()
        axis = f"Change in conversions per slate at {slots} of {self.about['k']} candidates, 95 % interval"
        return effects(table[table["metric"] == f"conversions_{slots}"], axis)

    def _repr_html_(self) -> str:
        from html import escape

        return f"{self.table().round(4).to_html()}<ul>{''.join(f'<li>{escape(s)}</li>' for s in self.sentences())}</ul>"

    def save(self, folder: Path) -> None:
        """Write ``two_by_two.json``."""
        write_json(Path(folder) / FILE, {"lifts": [asdict(lift) for lift in self.lifts], **self.about})

    @classmethod
    def load(cls, folder: Path) -> TwoByTwo:
        """Read a finished run.

        Raises
        ------
        AdvpriorError
            ``RUN001`` … ``RUN003``, ``RNK032`` when its file cannot be read.
        """
        read_manifest(folder, step=STEP, fix="advprior rank two-by-two --help")
        path = Path(folder) / FILE
        try:
            about = json.loads(path.read_text())
            return cls(as_lifts(about.pop("lifts")), about)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AdvpriorError(
                "RNK032",
                "the two-by-two cannot be read",
                where=str(path),
                actual=str(error).splitlines()[0],
                fix="run advprior rank two-by-two again",
            ) from error


@dataclass(frozen=True)
class TwoByTwoOptions:
    """What a two-by-two compares.

    Parameters
    ----------
    arm, baseline : str
        Arms of the ablation: the ranker with priors, and without.
    k : int
        Candidates per slate.
    slots : int
        Ads that the user sees.
    replicates : int
        Resamplings of users behind the intervals.
    """

    arm: str = "llm"
    baseline: str = "baseline"
    k: int = 15
    slots: int = 5
    replicates: int = 1000


def two_by_two(
    tables: Path, frame: Path, ablation: Path, towers: Towers, options: TwoByTwoOptions | None = None
) -> TwoByTwo:
    """Measure the four cells on the test slates of an ablation.

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
    columns, references = {options.arm: f"{prior_view(options.arm)}_top20"}, {}
    named, labels = _references(ablation, options.arm)
    for role, name in named.items():
        if name in scores and (column := f"{prior_view(name)}_top20") in _frame_columns(frame):
            references[role], columns[name] = name, column
    valid, test = _splits(frame, columns)
    if not np.array_equal(test[IMPRESSION_ID].to_numpy(), scored[IMPRESSION_ID].to_numpy()):
        raise AdvpriorError(
            "RNK006",
            "the ablation was measured on other test rows than this frame's",
            where=str(ablation),
            fix="advprior rank ablate on this frame again",
        )
    of_valid, of_test = retrieval_scores(tables, towers, valid, test)
    rows = Sorted.of(test[SLATE_ID].to_numpy(), of_test)
    alone = choose(rows, np.zeros(len(test), bool), options.k, 0.0)
    augmented, quotas, tried = {}, {}, {}
    for name, top20 in columns.items():
        quotas[name], tried[name] = _quota(valid, of_valid, top20, options.k)
        augmented[name] = choose(rows, test[top20].to_numpy(np.float64) == 1, options.k, quotas[name])
    lifts = effects_of(
        scores[options.baseline],
        alone,
        {name: (scores[name], candidates) for name, candidates in augmented.items()},
        Outcomes.of(test[LABEL], test[USER_ID].astype(str), slate=test[SLATE_ID]),
        Resampling((Conversions(options.slots), Ndcg(options.slots)), replicates=options.replicates, progress=True),
    )
    among = {"alone": int(test[LABEL][alone].sum()), "augmented": int(test[LABEL][augmented[options.arm]].sum())}
    among |= {name: int(test[LABEL][augmented[name]].sum()) for name in references.values()}
    about = {
        "k": options.k,
        "slots": options.slots,
        "quota": quotas[options.arm],
        "tried": tried[options.arm],
        "arm": options.arm,
        "baseline": options.baseline,
        "references": references,
        "labels": labels,
        "gaps": _gaps(ablation),
        "quotas": quotas,
        "slates": int(test[SLATE_ID].nunique()),
        "users": int(test[USER_ID].nunique()),
        "positives": int(test[LABEL].sum()),
        "among_candidates": among,
        "data": read_manifest(tables)["facts"].get("note"),
    }
    return TwoByTwo(lifts, about)


def _references(ablation: Path, arm: str) -> tuple[dict[str, str], dict[str, str]]:
    """The arm's best control and its placebo by the ablation, and what arms are called; nothing without its file."""
    if not (Path(ablation) / ABLATION_FILE).is_file():
        return {}, {}
    result = AblationResult.load(ablation)
    placebo = result.arms.placebo_of(result.arms.find(arm))
    named = {CONTROL: result.best_controls.get(arm), PLACEBO_ROLE: placebo.name if placebo else None}
    labels = {one.name: name_of(one) for one in result.arms.arms}
    return {role: name for role, name in named.items() if name not in (None, arm)}, labels


def _gaps(ablation: Path) -> dict[str, Any]:
    """Arms whose prior too few impressions have, by the ablation: nothing is said of them here either."""
    if not (Path(ablation) / ABLATION_FILE).is_file():
        return {}
    return dict(AblationResult.load(ablation).about.get("gaps", {}))


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


def _frame_columns(frame: Path) -> set[str]:
    """Columns of a frame's table; none where there is no table."""
    import pyarrow.parquet as pq

    path = Path(frame) / FRAME_FILE
    return set(pq.read_schema(path).names) if path.is_file() else set()


def _splits(frame: Path, top20: Mapping[str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Validation and test rows of a frame, with the columns that a two-by-two reads; ``top20`` by arm."""
    columns = [IMPRESSION_ID, SLATE_ID, USER_ID, AD_ID, TIMESTAMP, LABEL, "split", *top20.values()]
    table = read_parquet(Path(frame) / FRAME_FILE, fix=FRAME_FIX)
    for name, column in top20.items():
        if column not in table:
            raise AdvpriorError(
                "RNK022",
                f"the frame has no priors of the arm `{name}`",
                where=column,
                expected="an arm whose priors say who is likely: "
                + ", ".join(
                    str(c).removeprefix("prior_").removesuffix("_top20") for c in table if str(c).endswith("_top20")
                ),
                fix="name one of these as --arm; or publish priors of that name, apply, and build the frame again",
            )
    valid, test = (table.loc[table["split"] == name, columns].reset_index(drop=True) for name in ("valid", "test"))
    return valid, test


def _quota(valid: pd.DataFrame, score: Double, top20: str, k: int) -> tuple[float, dict[str, float]]:
    """The quota above zero with the most engaged ads among validation's candidates, and their share at each quota."""
    rows, wanted = Sorted.of(valid[SLATE_ID].to_numpy(), score), valid[top20].to_numpy(np.float64) == 1
    won = valid[LABEL].to_numpy() == 1
    recall = {q: float((choose(rows, wanted, k, q) & won).sum() / max(won.sum(), 1)) for q in QUOTAS}
    best = max((q for q in QUOTAS if q > 0), key=lambda q: (recall[q], -q))
    return best, {str(q): round(value, 5) for q, value in recall.items()}
