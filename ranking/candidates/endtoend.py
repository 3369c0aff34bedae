"""The two-by-two: candidates with and without priors, ranked with and without priors, end to end.

Within each test slate the towers choose k candidates (alone, or with the quota of slots for predicted advertisers),
an arm's ranker orders them, and the first ``slots`` are what the user would have seen. The measure is the positives
among those, per slate, and NDCG over them, against what the slate held: an ad that was not a candidate ranks behind
all that were. The slate, all that a user was shown, stands for the inventory; what a user would have done with an ad
that was not shown nobody knows, so this is unbiased for re-ordering shown ads, and no forecast of a larger corpus.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.contract import AD_ID, IMPRESSION_ID, LABEL, SLATE_ID, TIMESTAMP, USER_ID, prior_view
from advprior.store.errors import AdvpriorError
from advprior.store.runs import read_manifest, write_json
from advprior.store.tables import load_tables, load_time_plan, read_parquet
from ranking.candidates.choose import Mask, Sorted, choose
from ranking.candidates.curve import QUOTAS
from ranking.candidates.inputs import Pasts, snapshot_of
from ranking.candidates.towers import Towers
from ranking.evidence.ablation import load_seeds
from ranking.evidence.lift import Lifts, as_lifts, paired_bootstrap
from ranking.evidence.metrics import Conversions, Floats, Ndcg
from ranking.evidence.verdict import with_interval
from ranking.frame.counts import micros, moment_us
from ranking.frame.read import FRAME_FILE, FRAME_FIX

STEP = "rank two-by-two"
FILE = "two_by_two.json"
#: candidates, ranker: with priors or without.
NEITHER, RETRIEVAL, RANKING, BOTH = "neither", "candidates", "ranker", "both"
EFFECTS = (
    (RETRIEVAL, NEITHER, "Priors in retrieval"),
    (RANKING, NEITHER, "Priors in ranking"),
    (BOTH, NEITHER, "Priors in both"),
    (BOTH, RETRIEVAL, "Ranking, once in retrieval"),
    (BOTH, RANKING, "Retrieval, once in ranking"),
)


@dataclass
class TwoByTwo:
    """Effects of priors in retrieval, in ranking and in both.

    Parameters
    ----------
    lifts : Lifts
        Arms are the cells ``neither``, ``candidates``, ``ranker`` and ``both``; metrics ``conversions_<slots>`` (per
        slate) and ``ndcg_<slots>``.
    about : dict
        k, slots, quota and how it was chosen, arm, rows.
    """

    lifts: Lifts
    about: dict[str, Any] = field(default_factory=dict)

    def frame(self) -> pd.DataFrame:
        """One row per effect and metric."""
        named = {(arm, against): label for arm, against, label in EFFECTS}
        table = self.lifts.frame()
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

    def sentences(self) -> list[str]:
        """Each effect on conversions in words."""
        slots = self.about["slots"]
        said = []
        for arm, against, label in EFFECTS:
            lift = self.lifts.get(arm, against, f"conversions_{slots}")
            word = "a clear gain" if lift.better else "a clear loss" if lift.worse else "no clear effect"
            said.append(
                f"{label}: conversions per slate at {slots} ads {with_interval(lift)} ({lift.relative:+.2%}), {word}"
            )
        return said

    def plot(self) -> Any:
        """Each effect with its interval."""
        from ranking.evidence.plots import effects

        return effects(self)

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


def two_by_two(
    tables: Path,
    frame: Path,
    ablation: Path,
    towers: Towers,
    *,
    arm: str = "llm",
    baseline: str = "baseline",
    k: int = 15,
    slots: int = 5,
    replicates: int = 1000,
) -> TwoByTwo:
    """Measure the four cells on the test slates of an ablation.

    Parameters
    ----------
    tables, frame, ablation : Path
        Canonical tables; what ``rank frame`` and ``rank ablate`` made of them. Predicted advertisers are the frame's
        top-20 members, as joined through the store.
    towers : Towers
    arm, baseline : str
        Arms of the ablation: the ranker with priors, and without.
    k, slots : int
        Candidates per slate; ads that the user sees.
    replicates : int

    Raises
    ------
    AdvpriorError
        ``RNK021`` when the ablation has no such arm, ``RNK022`` when the frame lacks the arm's priors, ``RNK006`` when
        frame and ablation are of different rows.
    """
    rows, scores = load_seeds(ablation)
    for name in (arm, baseline):
        if name not in scores:
            raise AdvpriorError(
                "RNK021",
                "the ablation has no such arm",
                where=str(ablation),
                actual=name,
                expected=", ".join(scores),
                fix="advprior rank ablate --arm " + name,
            )
    top20 = f"{prior_view(arm)}_top20"
    table = read_parquet(Path(frame) / FRAME_FILE, fix=FRAME_FIX)
    if top20 not in table:
        raise AdvpriorError(
            "RNK022",
            "the frame has no priors of this arm",
            where=top20,
            fix="build the frame with that predictor's priors",
        )
    table = table[[IMPRESSION_ID, SLATE_ID, USER_ID, AD_ID, TIMESTAMP, LABEL, "split", top20]]
    test = table[table["split"] == "test"].reset_index(drop=True)
    if not np.array_equal(test[IMPRESSION_ID].to_numpy(), rows[IMPRESSION_ID].to_numpy()):
        raise AdvpriorError(
            "RNK006",
            "the ablation was measured on other test rows than this frame's",
            where=str(ablation),
            fix="advprior rank ablate on this frame again",
        )
    valid = table[table["split"] == "valid"].reset_index(drop=True)
    quota, tried = _quota(valid, retrieval_scores(tables, towers, valid), top20, k)

    sorted_rows = Sorted.of(test[SLATE_ID].to_numpy(), retrieval_scores(tables, towers, test))
    wanted = test[top20].to_numpy(np.float64) == 1
    alone, augmented = choose(sorted_rows, wanted, k, 0.0), choose(sorted_rows, wanted, k, quota)
    cells = {
        NEITHER: [_behind(score, alone) for score in scores[baseline]],
        RETRIEVAL: [_behind(score, augmented) for score in scores[baseline]],
        RANKING: [_behind(score, alone) for score in scores[arm]],
        BOTH: [_behind(score, augmented) for score in scores[arm]],
    }
    lifts = paired_bootstrap(
        cells,
        test[LABEL],
        test[USER_ID].astype(str),
        [(a, b) for a, b, _ in EFFECTS],
        slate=test[SLATE_ID],
        metrics=(Conversions(slots), Ndcg(slots)),
        replicates=replicates,
        progress=True,
    )
    about = {
        "k": k,
        "slots": slots,
        "quota": quota,
        "tried": tried,
        "arm": arm,
        "baseline": baseline,
        "slates": int(test[SLATE_ID].nunique()),
        "users": int(test[USER_ID].nunique()),
        "positives": int(test[LABEL].sum()),
        "among_candidates": {"alone": int(test[LABEL][alone].sum()), "augmented": int(test[LABEL][augmented].sum())},
        "data": read_manifest(tables)["facts"].get("note"),
    }
    return TwoByTwo(lifts, about)


def retrieval_scores(tables: Path, towers: Towers, rows: pd.DataFrame) -> Floats:
    """The towers' score of each row's user and ad, the user as of the newest snapshot known at the row's time."""
    plan, loaded = load_time_plan(tables), load_tables(tables, "users", "ads", "events")
    pasts = Pasts(loaded["users"], loaded["events"], towers.vocabulary)
    vectors, bias = towers.ads(loaded["ads"])
    user = pd.Index(pasts.ids).get_indexer(pd.Index(rows[USER_ID].astype(str)))
    ad = pd.Index(loaded["ads"][AD_ID].astype(str)).get_indexer(pd.Index(rows[AD_ID].astype(str)))
    at = snapshot_of(micros(rows[TIMESTAMP]), plan)
    moments = [moment_us(s) for s in plan.feature_snapshots()]
    score = np.empty(len(rows))
    for snapshot in np.unique(at):
        mine = np.flatnonzero(at == snapshot)
        who, place = np.unique(user[mine], return_inverse=True)
        of_user = towers.users(pasts.at(moments[snapshot])[who])
        score[mine] = (of_user[place] * vectors[ad[mine]]).sum(axis=1) + bias[ad[mine]]
    return score


def _quota(valid: pd.DataFrame, score: Floats, top20: str, k: int) -> tuple[float, dict[str, float]]:
    """The quota above zero with the most engaged ads among validation's candidates, and what each quota found."""
    rows, wanted = Sorted.of(valid[SLATE_ID].to_numpy(), score), valid[top20].to_numpy(np.float64) == 1
    won = valid[LABEL].to_numpy() == 1
    found = {q: float((choose(rows, wanted, k, q) & won).sum() / max(won.sum(), 1)) for q in QUOTAS}
    best = max((q for q in QUOTAS if q > 0), key=lambda q: (found[q], -q))
    return best, {str(q): round(recall, 5) for q, recall in found.items()}


def _behind(score: Floats, candidates: Mask) -> Floats:
    """Scores with every ad that is no candidate behind all that are."""
    return np.where(candidates, score, -1.0)
