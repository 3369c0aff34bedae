"""What priors do to retrieval: recall of engaged ads, what it costs in concentration, for every quota.

Every ad that anybody was shown between two snapshots is retrievable for a request of that time. An ad that this user
was not shown cannot have been engaged with: recall counts what could be seen, and is unbiased for shown ads only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from advprior.store.claims import expected_of
from advprior.store.contract import prior_view, shuffled_source
from advprior.store.errors import AdvpriorError
from advprior.store.progress import Progress
from advprior.store.runs import read_manifest, write_json
from ranking.candidates.choose import choose
from ranking.candidates.contrasts import TOWERS, Hits, as_lift, contrasts, references, row_lift
from ranking.candidates.counting import Counts, Inventory, engaged_ads, measures
from ranking.candidates.priors import predicted, prior_rows
from ranking.candidates.towers import Towers
from ranking.evidence.claims import KINDS, Beside, Claim, jointly
from ranking.evidence.lift import Lift
from ranking.evidence.ordering import Sorted
from ranking.frame.coverage import CoverageGap, Uses, coverage_gap
from ranking.frame.views import view_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEP = "rank candidates"
CURVE_FILE = "candidates.json"
QUOTAS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
TOP_ADVERTISERS = 20
_CURVES = 8  # more make a picture that cannot be read
_COLUMNS = [
    "predictor",
    "split",
    "quota",
    "recall",
    "gain",
    "low",
    "high",
    "hits",
    "unique_hits",
    "lost_hits",
    "engaged",
    "hhi",
    "requests",
]


@dataclass(repr=False)
class CandidateCurve:
    """Recall and concentration against quota.

    Parameters
    ----------
    table : DataFrame
        One row per predictor, split and quota: ``recall`` of engaged ads among k candidates, its ``gain`` over the
        towers alone with a 95 % interval (users resampled), ``unique_hits`` that only the priors' slots brought and
        ``lost_hits`` that they displaced, ``hhi`` of advertisers over all slots.
    chosen : dict of str to float
        Predictor to the quota with the highest recall on validation (the smaller of equals).
    about : dict
        k, advertisers per prior, provenance; ``contrasts``, what each prior's slots bring over the towers alone and
        over its best control's and its placebo's, on test; ``beside``, which those are; ``gaps``, whose priors too
        few requests have.
    """

    table: pd.DataFrame
    chosen: dict[str, float]
    about: dict[str, Any] = field(default_factory=dict)

    def frame(self) -> pd.DataFrame:
        """One row per predictor, split and quota."""
        return self.table

    def at_choice(self, predictor: str, split: str = "test") -> pd.Series[Any]:
        """The row of the chosen quota."""
        return self._row(predictor, split, self.chosen[predictor])

    def _row(self, predictor: str, split: str, quota: float) -> pd.Series[Any]:
        """One row; by masks, for a query by local variables looks through the whole stack for them."""
        table = self.table
        return table[(table["predictor"] == predictor) & (table["split"] == split) & (table["quota"] == quota)].iloc[0]

    def claim(self, predictor: str) -> Claim:
        """What may be said of a predictor's slots, beside its best control's and its placebo's."""
        lifts = {(one["arm"], one["baseline"]): as_lift(one) for one in self.about.get("contrasts", [])}
        gaps = {name: CoverageGap(**gap) for name, gap in self.about.get("gaps", {}).items()}
        names: dict[str, str] = self.about.get("beside", {}).get(predictor, {})
        kinds = [kind for kind in KINDS if kind in names]
        lacking = tuple(kind for kind in self.about.get("expected", {}).get(predictor, ()) if kind not in kinds)
        own = lifts.get((predictor, TOWERS), self._lift(predictor))
        is_control = predictor in self.about.get("controls", [])

        def beside(role: str) -> Beside | None:
            name = names.get(role)
            if name is None:
                return None
            return Beside(
                name if role != "placebo" else f"placebo ({name})",
                lifts.get((name, TOWERS), self._lift(name)),
                lifts.get((predictor, name)),
                gaps.get(name),
                role if role in KINDS else "",
            )

        control, placebo = None if is_control else beside("control"), beside("placebo")
        return Claim(
            predictor,
            jointly(own),
            control,
            placebo,
            tuple(one for kind in kinds if names[kind] != names.get("control") and (one := beside(kind))),
            () if is_control else lacking,
            gap=gaps.get(predictor),
            is_control=is_control,
            trained="fit of the towers",
        )

    def _lift(self, predictor: str) -> Lift:
        return row_lift(predictor, self.at_choice(predictor), int(self.about.get("replicates", 0)))

    def sentence(self, predictor: str) -> str:
        """What the choice gives on test rows, in words, with the best control's and the placebo's."""
        row, quota, claim = self.at_choice(predictor), self.chosen[predictor], self.claim(predictor)
        if claim.gap is not None:
            return f"{predictor}: {claim.outcome()}"
        if quota == 0:
            return (
                f"{predictor}: validation gives its advertisers no slot; the towers alone recall {row.recall:.4f} "
                f"{claim.beside()}."
            )
        alone = self._row(predictor, "test", 0.0)
        return (
            f"{predictor}: with {100 * quota:.0f} % of {self.about['k']} slots (chosen on validation) test recall is "
            f"{row.recall:.4f}, {claim.lift.text()} over the towers alone: {claim.outcome()} {claim.beside()}; "
            f"{row.unique_hits:,.0f} unique hits, {row.lost_hits:,.0f} lost, HHI {alone.hhi:.4f} → {row.hhi:.4f}."
        )

    @property
    def told(self) -> list[str]:
        """Predictors that a sentence is about: placebos stand in those of the priors that they imitate."""
        return [name for name in self.chosen if shuffled_source(name) not in self.chosen]

    def __repr__(self) -> str:
        """One sentence a predictor."""
        return "\n".join(self.sentence(name) for name in self.told)

    def plot(self) -> Figure:
        """Recall gain and concentration against quota, on test requests: of what is on trial first, eight at most."""
        from ranking.candidates.plots import quota_curve

        beside: dict[str, dict[str, str]] = self.about.get("beside", {})
        others = (name for named in beside.values() for name in named.values())
        shown = list(dict.fromkeys([*beside, *others, *self.chosen]))[:_CURVES]
        chosen = {name: quota for name, quota in self.chosen.items() if name in shown}
        return quota_curve(self.table[self.table["split"] == "test"], chosen, self.about["k"])

    def _repr_html_(self) -> str:
        from html import escape

        lines = "".join(f"<li>{escape(self.sentence(name))}</li>" for name in self.told)
        test = self.table[self.table["split"] == "test"]
        return f"<ul>{lines}</ul>{test.round(4).to_html(index=False)}"

    def save(self, folder: Path) -> None:
        """Write ``candidates.json``."""
        rows = self.table.astype(object).where(self.table.notna(), None).to_dict("records")
        write_json(Path(folder) / CURVE_FILE, {"table": rows, "chosen": self.chosen, **self.about})

    @classmethod
    def load(cls, folder: Path) -> CandidateCurve:
        """Read a finished ``advprior rank candidates`` run.

        Raises
        ------
        AdvpriorError
            ``RUN001`` … ``RUN003``, ``RNK032`` when its file cannot be read.
        """
        fix = "advprior rank candidates --tables TABLES --repo FEATURE_REPO --towers TOWERS --out OUT"
        read_manifest(folder, step=STEP, fix=fix)
        path = Path(folder) / CURVE_FILE
        try:
            about = json.loads(path.read_text())
            numbers = dict.fromkeys(_COLUMNS[2:], np.float64)
            return cls(pd.DataFrame(about.pop("table"), columns=_COLUMNS).astype(numbers), about.pop("chosen"), about)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AdvpriorError(
                "RNK032",
                "the candidate curve cannot be read",
                where=str(path),
                actual=str(error).splitlines()[0],
                fix=fix,
            ) from error


@dataclass(frozen=True)
class CurveOptions:
    """What a curve measures.

    Parameters
    ----------
    k : int
        Candidates per request.
    top : int
        Advertisers per prior that count as predicted.
    quotas : tuple of float
        Shares of slots; 0, the towers alone, is always among them.
    replicates : int
        Resamplings of users behind the intervals.
    controls : tuple of str
        Predictors that the others are held against.
    kinds : mapping of str to tuple of str
        Of a control, a key of `ranking.evidence.claims.KINDS`, and all those whom it lacks that of.
    """

    k: int = 20
    top: int = TOP_ADVERTISERS
    quotas: tuple[float, ...] = QUOTAS
    replicates: int = 1000
    controls: tuple[str, ...] = ()
    kinds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def candidate_curve(
    tables: Path, repo: Path, towers: Towers, predictors: Sequence[str], options: CurveOptions | None = None
) -> CandidateCurve:
    """Retrieve for every request of validation and test, at every quota.

    Parameters
    ----------
    tables, repo : Path
        Canonical tables; the feature repository whose priors are joined.
    towers : Towers
    predictors : sequence of str
        Whose predicted advertisers get slots.
    options : CurveOptions, optional

    Raises
    ------
    AdvpriorError
        As `ranking.candidates.priors.prior_rows` raises it.
    """
    options = options or CurveOptions()
    options = replace(options, quotas=tuple(sorted({0.0, *options.quotas})))
    inventory = Inventory.of(tables, towers)
    asked = inventory.requests
    ids = [inventory.pasts.ids[u] for u in asked.user]
    pointers = {name: prior_rows(repo, name, ids, asked.time) for name in predictors}
    counts = {(name, q): Counts.empty(inventory) for name in predictors for q in options.quotas}
    with Progress(len(asked.user), "candidates", "request") as progress:
        for part, live, score in inventory.scores():
            ranked = Sorted.of(np.repeat(np.arange(len(part)), len(live)), score.ravel())
            engaged = engaged_ads(asked, part, live)
            for name in predictors:
                wanted = predicted(repo, name, pointers[name][part], inventory.ads.iloc[live], options.top).ravel()
                alone = None
                for q in options.quotas:
                    taken = choose(ranked, wanted, options.k, q).reshape(engaged.shape)
                    alone = taken & engaged if alone is None else alone
                    counts[name, q].add(inventory, part, live, (taken, engaged, alone))
            progress.update(len(part))
    table = pd.DataFrame(
        [
            dict(zip(_COLUMNS, (name, split, q, *values), strict=True))
            for name in predictors
            for split in ("valid", "test")
            for q in options.quotas
            for values in [measures(counts[name, q], counts[name, 0.0], inventory, split, options.replicates)]
        ],
        columns=_COLUMNS,
    )
    valid = table[table["split"] == "valid"]
    best = valid.sort_values(["recall", "quota"], ascending=[False, True]).groupby("predictor")["quota"].first()
    about = {
        "k": options.k,
        "top": options.top,
        "replicates": options.replicates,
        "data": read_manifest(tables)["facts"].get("note"),
        "towers": towers.facts,
    }
    chosen = {name: float(best[name]) for name in predictors}
    about |= _beside(CandidateCurve(table, chosen), counts, inventory, options)
    gaps: dict[str, Any] = {}
    exist = inventory.pasts.exist_from[asked.user] <= np.array(inventory.moments)[asked.snapshot]
    existing = np.array(ids, dtype=object)[exist].tolist()
    for name, rows in pointers.items():
        gap = coverage_gap(repo, name, Uses(existing, asked.time[exist], rows[exist] >= 0, of="requests"))
        gaps |= {name: gap.to_json()} if gap else {}
    expected = {name: expected_of(_source(repo, name)) for name in about["beside"]}
    return CandidateCurve(table, chosen, about | {"gaps": gaps, "expected": expected})


def _source(repo: Path, name: str) -> str:
    """Which predictor a prior was published from."""
    facts = read_manifest(view_folder(repo, prior_view(name)))["facts"]
    return str(facts.get("source_predictor", ""))


def _beside(
    curve: CandidateCurve, counts: dict[tuple[str, float], Counts], inventory: Inventory, options: CurveOptions
) -> dict[str, Any]:
    """Whose slots each predictor's are held against, and by how much they differ on test requests."""
    reached = {name: float(curve.at_choice(name, "valid")["recall"]) for name in curve.chosen}
    beside = references(reached, options.controls)
    for control, (kind, *of) in options.kinds.items():
        for predictor in of if control in reached else ():
            if predictor in beside:
                beside[predictor][kind] = control
    test = inventory.requests.split == "test"
    hits = {name: counts[name, quota].hits[test] for name, quota in curve.chosen.items()}
    hits[TOWERS] = counts[next(iter(curve.chosen)), 0.0].hits[test]
    pairs = [(name, TOWERS) for name in curve.chosen]
    pairs += [(name, other) for name, named in beside.items() for other in dict.fromkeys(named.values())]
    of_test = Hits(inventory.requests.user[test], inventory.engaged[test], hits)
    controls = [name for name in curve.chosen if name in options.controls]
    return {"contrasts": contrasts(of_test, pairs, options.replicates), "beside": beside, "controls": controls}
