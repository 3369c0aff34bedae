"""The two-by-two: candidates with and without priors, ranked with and without priors, end to end.

Within each test slate the towers choose k candidates (alone, or with the quota of slots for predicted advertisers),
an arm's ranker orders them, and the first ``slots`` are what the user would have seen. The measure is the positives
among those, per slate, and NDCG over them, against what the slate held: an ad that was not a candidate ranks behind
all that were. The slate, all that a user was shown, stands for the inventory; what a user would have done with an ad
that was not shown is unknown, so this is unbiased for re-ordering shown ads, and no forecast of a larger corpus.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from advprior.store.errors import AdvpriorError
from advprior.store.runs import read_manifest, write_json
from ranking.candidates.cells import BOTH, CONTROL, EFFECTS, NEITHER, PLACEBO_ROLE, RANKING, RETRIEVAL, addition, cell
from ranking.candidates.sums import CellSums
from ranking.evidence.claims import KINDS, Beside, Claim, gaps_from_json, jointly
from ranking.evidence.lift import Lift, Lifts, as_lifts
from ranking.evidence.wording import signed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEP = "rank two-by-two"
FILE = "two_by_two.json"
#: Where an arm's priors are used, in the middle of a sentence.
_WHERE = {
    (BOTH, NEITHER): "in retrieval and in ranking",
    (RETRIEVAL, NEITHER): "in retrieval alone",
    (RANKING, NEITHER): "in ranking alone",
    (BOTH, RETRIEVAL): "in ranking, once in retrieval",
    (BOTH, RANKING): "in retrieval, once in ranking",
}


@dataclass(repr=False)
class TwoByTwo:
    """Effects of priors in retrieval, in ranking and in both.

    Parameters
    ----------
    lifts : Lifts
        Arms are the cells ``neither``, ``candidates``, ``ranker`` and ``both``; metrics ``conversions_<slots>`` (per
        slate) and ``ndcg_<slots>``. The same effects of every other arm are there too, their cells named by `cell`, and
        what effects gain over those of the arms beside them (`ranking.candidates.cells.addition`).
    about : dict
        k, slots, arm, rows; by arm: its quota, ``labels``, ``gaps``, ``expected`` controls; ``references``: of each
        arm and cell the best control on validation, the placebo, and controls of a kind, by role. ``cutoffs``: of one
        that is pooled, a row for each.
    sums : CellSums, optional
        What each user adds to each cell, which `ranking.candidates.pooling.pool` needs; None in a loaded result.
    """

    lifts: Lifts
    about: dict[str, Any] = field(default_factory=dict)
    sums: CellSums | None = None

    @property
    def arm(self) -> str:
        """Whose priors it is about first."""
        return str(self.about["arm"])

    @property
    def arms(self) -> list[str]:
        """All whose priors were measured, that one first."""
        return list(self.about.get("quotas", {})) or [self.arm]

    @property
    def treatments(self) -> list[str]:
        """Those of them that are on trial, that one first."""
        return list(self.about.get("treatments", [self.arm]))

    def references(self, arm: str | None = None, name: str = BOTH) -> dict[str, str]:
        """Arms that an arm's effect is held against, by role: ``control``, ``placebo``, and kinds of controls.

        Parameters
        ----------
        arm : str, optional
        name : str
            Cell: each has a best control of its own.
        """
        by_arm: dict[str, dict[str, dict[str, str]]] = self.about.get("references", {})
        return dict(by_arm.get(arm or self.arm, {}).get(name, {}))

    def effect(self, name: str, against: str, *, arm: str | None = None, metric: str | None = None) -> Lift:
        """What one cell gains over another.

        Parameters
        ----------
        name, against : str
            Cells, as in `EFFECTS`.
        arm : str, optional
            Whose priors, one of `arms`; the first one's without.
        metric : str, optional
            Conversions per slate without.

        Raises
        ------
        KeyError
            When it was not measured.
        """
        return self.lifts.get(self._cell(name, arm), self._cell(against, arm), metric or self._conversions)

    def over(self, name: str, against: str, other: str, *, arm: str | None = None) -> Lift:
        """What an arm's effect on conversions gains over the same effect of another arm.

        Raises
        ------
        KeyError
            When the two were not compared.
        """
        own, reference = (addition(name, against, None if one in (None, self.arm) else one) for one in (arm, other))
        return self.lifts.get(own, reference, self._conversions)

    def _cell(self, name: str, arm: str | None) -> str:
        return cell(name, None if arm in (None, self.arm) else arm)

    @property
    def _conversions(self) -> str:
        return f"conversions_{self.about['slots']}"

    def frame(self) -> pd.DataFrame:
        """One row per effect of the first arm and metric."""
        named = {(arm, against): label for arm, against, label in EFFECTS}
        lifts = {(lift.arm, lift.baseline, lift.metric): lift for lift in self.lifts}
        metrics = dict.fromkeys(lift.metric for lift in self.lifts)
        table = Lifts(lifts[*pair, metric] for metric in metrics for pair in named if (*pair, metric) in lifts).frame()
        table.insert(0, "effect", [named[pair] for pair in zip(table["arm"], table["baseline"], strict=True)])
        return table

    def table(self, metric: str | None = None) -> pd.DataFrame:
        """The four cells: rows candidates without and with priors, columns ranker without and with."""
        metric = metric or self._conversions
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

    def claim(self, name: str, against: str, arm: str | None = None, *, joint: bool = False) -> Claim:
        """What may be said of one effect on conversions, beside the best control's and the placebo's.

        Parameters
        ----------
        name, against : str
            Cells, as in `EFFECTS`.
        arm : str, optional
            One of `treatments`; the first one without.
        joint : bool
            By the interval that holds for all effects at once: of any arm but the first.
        """
        arm = arm or self.arm
        labels, gaps = self.about.get("labels", {}), gaps_from_json(self.about.get("gaps"))
        references = self.references(arm, name)

        def beside(role: str) -> Beside | None:
            other = references.get(role)
            if other is None:
                return None
            kind, over = role if role in KINDS else "", self._measured(self.over, name, against, other, arm=arm)
            own = self._measured(self.effect, name, against, arm=other)
            return None if own is None else Beside(labels.get(other, other), own, over, gaps.get(other), kind)

        control = beside(CONTROL)
        kinds = [kind for kind in KINDS if kind in references]
        kin = tuple(one for kind in kinds if references[kind] != references.get(CONTROL) and (one := beside(kind)))
        lacking = tuple(kind for kind in self.about.get("expected", {}).get(arm, ()) if kind not in references)
        own = self.effect(name, against, arm=arm)
        decides = str(self.about.get("decide_on") or "conversions").startswith("conversions")
        return Claim(
            labels.get(arm, arm),
            jointly(own) if joint else own,
            control,
            beside(PLACEBO_ROLE),
            kin,
            lacking,
            gaps.get(arm),
            decides=decides,
        )

    def _measured(self, get: Callable[..., Lift], *names: str, arm: str) -> Lift | None:
        try:
            return get(*names, arm=arm)
        except KeyError:
            return None

    def sentence(self, name: str, against: str, arm: str | None = None) -> str:
        """One effect on conversions in words: whose priors, and what controls and placebo did in the same step."""
        first, slots = arm in (None, self.arm), self.about["slots"]
        claim = self.claim(name, against, arm, joint=not first)
        lift = claim.lift
        return (
            f"With {claim.name} {_WHERE[name, against]}, conversions per slate at {slots} ad{'s' * (slots > 1)} change "
            f"by {lift.text()} ({signed(100 * lift.relative, 1)} %): {claim.outcome()} {claim.beside()}."
        )

    def sentences(self) -> list[str]:
        """Each effect of the first arm in words, both steps first."""
        return [self.sentence(name, against) for name, against, _ in EFFECTS]

    def others(self) -> list[str]:
        """Both steps with the priors of every other treatment, in words."""
        return [self.sentence(BOTH, NEITHER, arm) for arm in self.treatments if arm != self.arm]

    @property
    def cutoffs(self) -> list[str]:
        """A line for each cut-off of one that is pooled: its effects, best control and placebo."""
        return [str(row["line"]) for row in self.about.get("cutoffs", [])]

    def __repr__(self) -> str:
        """One sentence an effect, both steps first, each cut-off below it, and one of every other treatment."""
        first, *rest = self.sentences()
        return "\n".join([first, *self.cutoffs, *rest, *self.others()])

    def plot(self) -> Figure:
        """Each effect with its interval."""
        from ranking.candidates.plots import effects

        slots, table = self.about["slots"], self.frame()
        axis = f"Change in conversions per slate at {slots} of {self.about['k']} candidates, 95 % interval"
        return effects(table[table["metric"] == f"conversions_{slots}"], axis)

    def _repr_html_(self) -> str:
        from html import escape

        first, *rest = self.sentences()
        told = [first, *self.cutoffs, *rest, *self.others()]
        return f"{self.table().round(4).to_html()}<ul>{''.join(f'<li>{escape(s)}</li>' for s in told)}</ul>"

    def save(self, folder: Path) -> None:
        """Write ``two_by_two.json``, and what each user adds where it is at hand."""
        write_json(Path(folder) / FILE, {"lifts": [asdict(lift) for lift in self.lifts], **self.about})
        if self.sums is not None:
            self.sums.save(folder)

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
