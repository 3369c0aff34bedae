"""One two-by-two of several cut-offs: the same effects, over users, seeds and cut-offs at once.

Each cut-off has its own towers, rankers and quota, and its own best control, chosen on its own validation slates: a
later one's have been test slates before. Where the choices differ, an arm ``best_control_both`` stands for them with
each cut-off's own. A user who is drawn in a resampling is drawn at every cut-off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from advprior.store.errors import AdvpriorError
from ranking.candidates.bothsteps import all_of
from ranking.candidates.cells import BOTH, CELLS, CONTROL, NEITHER, RANKING, RETRIEVAL, cell, effects_of_sums
from ranking.candidates.endtoend import TwoByTwo
from ranking.candidates.sums import CellSums
from ranking.evidence.bootstrap import Resampling
from ranking.evidence.claims import gaps_from_json, gaps_to_json
from ranking.evidence.metrics import Conversions, Ndcg
from ranking.evidence.wording import at_cutoffs, plain_label
from ranking.frame.coverage import CoverageGap

BEST_CONTROL = "best_control_both"  # the arm that stands for unlike choices; the ablation's may be other ones
_References = dict[str, dict[str, dict[str, str]]]


def pool(folders: Sequence[Path], *, replicates: int = 1000) -> TwoByTwo:
    """One two-by-two of several.

    Parameters
    ----------
    folders : sequence of Path
        Finished ``advprior rank two-by-two`` runs with the same arms, in time order.
    replicates : int
        Resamplings of users behind the intervals.

    Returns
    -------
    TwoByTwo
        ``about`` is the last one's, with counts summed and ``cutoffs``: of each its test window, quota, counts, and
        effects with their intervals.

    Raises
    ------
    AdvpriorError
        ``RNK033`` when they differ in arms, seeds or sizes, ``DAT001`` where one is of an earlier version; ``RUN001`` …
        ``RUN003``, ``RNK032``.
    """
    results = [TwoByTwo.load(folder) for folder in folders]
    _check_alike(results, folders)
    sums = [CellSums.load(folder) for folder in folders]
    if len({one.columns for one in sums}) > 1:
        raise _unlike(folders, f"{len({one.seeds for one in sums})} numbers of seeds, or other cells")
    references, stand_ins = _references(results)
    if stand_ins:
        first = results[0].arm
        sums = [one.with_cells(_cells_of(stand_ins, place, first)) for place, one in enumerate(sums)]
    arms = list(dict.fromkeys([results[0].arm, *results[0].arms, *stand_ins]))  # a file has them by the alphabet
    beside = {arm: all_of(by_cell) for arm, by_cell in references.items()} or {arms[0]: arms[1:]}
    slots = results[0].about["slots"]
    options = Resampling((Conversions(slots), Ndcg(slots)), replicates=replicates)
    about = _about(results, sums) | {"references": references}
    about["quotas"] |= dict.fromkeys(stand_ins)
    labels = about["labels"]
    about["labels"] = labels | {
        name: f"that of each cut-off ({at_cutoffs([plain_label(labels.get(one, one)) for one in chosen])})"
        for name, chosen in stand_ins.items()
    }
    return TwoByTwo(effects_of_sums(sums, arms, options, beside), about)


def _check_alike(results: Sequence[TwoByTwo], folders: Sequence[Path]) -> None:
    keys = ("arm", "baseline", "k", "slots", "treatments", "decide_on")
    shapes = {str([result.about.get(key) for key in keys] + sorted(result.arms)) for result in results}
    if len(results) < 2 or len(shapes) > 1:
        raise _unlike(folders, f"{len(results)} with {len(shapes)} sets of arms, candidates, shown ads and metrics")
    if any("cutoffs" in result.about for result in results):
        raise _unlike(folders, "one that is pooled already")


def _unlike(folders: Sequence[Path], actual: str) -> AdvpriorError:
    return AdvpriorError(
        "RNK033",
        "these two-by-twos cannot be pooled",
        where=", ".join(map(str, folders)),
        actual=actual,
        expected="two or more of single cut-offs, with the same arms, seeds, candidates and shown ads",
        fix="advprior rank two-by-two on every cut-off's ablation, with the same --arm, --k and --slots",
    )


def _references(results: Sequence[TwoByTwo]) -> tuple[_References, dict[str, tuple[str, ...]]]:
    """Whom each arm's cells are held against, and the arms that stand for unlike choices, with each cut-off's own.

    A role that a cut-off lacks is left out.
    """
    stand_ins: dict[tuple[str, ...], str] = {}
    references: _References = {}
    for arm in results[0].treatments:
        for name in CELLS:
            by_cutoff = [result.references(arm, name) for result in results]
            roles = [role for role in by_cutoff[0] if all(role in of_one for of_one in by_cutoff)]
            pooled = references.setdefault(arm, {}).setdefault(name, {})
            for role in roles:
                chosen = tuple(of_one[role] for of_one in by_cutoff)
                if len(set(chosen)) == 1:
                    pooled[role] = chosen[0]
                elif role == CONTROL:
                    number = len(stand_ins) + 1
                    stand_ins.setdefault(chosen, BEST_CONTROL if number == 1 else f"{BEST_CONTROL}_{number}")
                    pooled[role] = stand_ins[chosen]
    return references, {name: chosen for chosen, name in stand_ins.items()}


def _cells_of(stand_ins: Mapping[str, Sequence[str]], place: int, first: str) -> dict[str, str]:
    """Cells of the arms that stand for a choice, at one cut-off: new name to the chosen arm's cell."""
    return {
        cell(name, arm): cell(name, None if chosen[place] == first else chosen[place])
        for arm, chosen in stand_ins.items()
        for name in CELLS
    }


def _about(results: Sequence[TwoByTwo], sums: Sequence[CellSums]) -> dict[str, Any]:
    """The last one's, with counts summed and every cut-off named."""
    about = dict(results[-1].about)
    for key in ("slates", "positives"):
        about[key] = sum(result.about[key] for result in results)
    about["users"] = len(set().union(*(one.users for one in sums)))
    among = [result.about["among_candidates"] for result in results]
    about["among_candidates"] = {name: sum(counts[name] for counts in among) for name in among[0]}
    quotas = [result.about["quotas"] for result in results]
    about["quotas"] = {name: sum(of_one[name] for of_one in quotas) / len(quotas) for name in quotas[0]}
    about["quota"] = about["quotas"].get(about["arm"], about["quota"])
    gaps: dict[str, CoverageGap] = {}
    for result in results:  # the cut-off with the fewest priors
        of_one = gaps_from_json(result.about.get("gaps"))
        gaps |= {name: gap for name, gap in of_one.items() if name not in gaps or gap.share < gaps[name].share}
    about["gaps"] = gaps_to_json(gaps)
    about["cutoffs"] = [_cutoff(result, number) for number, result in enumerate(results, start=1)]
    for key in ("tried", "test"):
        about.pop(key, None)
    return about


def _cutoff(result: TwoByTwo, number: int) -> dict[str, Any]:
    """One cut-off's row: its window, counts, and effects of the first arm."""
    about = result.about
    steps = {"both steps": BOTH, "retrieval alone": RETRIEVAL, "ranking alone": RANKING}
    lifts = {words: result.effect(name, NEITHER) for words, name in steps.items()}
    window = str(about.get("test", "")).split(" to ")
    when = f", test {window[0][:10]} to {window[-1][:10]}" if window[0] else ""
    claim = result.claim(BOTH, NEITHER)
    beside = {"best control": claim.control, "placebo": claim.placebo}
    parts = [f"{words} {lift.text()}" for words, lift in lifts.items()]
    parts[0] += "".join(f", {role} {'not measured' if one is None else one.own.text()}" for role, one in beside.items())
    others = {arm: result.effect(BOTH, NEITHER, arm=arm) for arm in result.treatments if arm != result.arm}
    parts += [f"with {about['labels'].get(arm, arm)} both steps {lift.text()}" for arm, lift in others.items()]
    return {
        "test": about.get("test"),
        "quota": about["quota"],
        **{key: about[key] for key in ("slates", "users", "positives")},
        "effects": {words: {"value": lift.text(), "difference": lift.difference} for words, lift in lifts.items()},
        "control": None if claim.control is None else claim.control.name,
        "line": f"Cut-off {number}{when}, with {claim.name}: {'; '.join(parts)}.",
    }
