"""The cells of a two-by-two and their effects, from scores and candidates alone: a benchmark replays them too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from advprior.store.arrays import Bool, Double
from ranking.candidates.sums import CellSums, draws_of, sums_of
from ranking.evidence.bootstrap import Outcomes, Resampling, lifts_of
from ranking.evidence.lift import OVERALL, Lifts
from ranking.evidence.metrics import SlateMetric

#: candidates, ranker: with priors or without.
NEITHER, RETRIEVAL, RANKING, BOTH = "neither", "candidates", "ranker", "both"
#: The whole effect first, then each step by itself, then what a step adds to the other.
EFFECTS = (
    (BOTH, NEITHER, "Priors in both"),
    (RETRIEVAL, NEITHER, "Priors in retrieval"),
    (RANKING, NEITHER, "Priors in ranking"),
    (BOTH, RETRIEVAL, "Ranking, once in retrieval"),
    (BOTH, RANKING, "Retrieval, once in ranking"),
)
CELLS = (BOTH, RETRIEVAL, RANKING)
CONTROL, PLACEBO_ROLE = "control", "placebo"


def cell(name: str, reference: str | None = None) -> str:
    """A cell's name; that of another arm bears the arm's. Without priors all have the same cell.

    >>> cell(BOTH), cell(BOTH, "neighbours"), cell(NEITHER, "neighbours")
    ('both', 'both:neighbours', 'neither')
    """
    return name if reference is None or name == NEITHER else f"{name}:{reference}"


def addition(name: str, against: str, reference: str | None = None) -> str:
    """Name of what one cell adds to another, as the side of a difference: two arms' additions are compared.

    >>> addition(BOTH, RETRIEVAL, "neighbours"), addition(BOTH, NEITHER)
    ('both-candidates:neighbours', 'both')
    """
    return cell(name if against == NEITHER else f"{name}-{against}", reference)


def effects_of(
    plain: Sequence[Double],
    alone: Bool,
    priors: Mapping[str, tuple[Sequence[Double], Bool]],
    outcomes: Outcomes,
    options: Resampling,
    beside: Mapping[str, Sequence[str]] | None = None,
) -> Lifts:
    """Effects of every arm's priors, and what arms' effects gain over those of the arms beside them.

    Cells share rankers: all are compared seed by seed, so that what a ranker owes to its seed cancels where both cells
    have it.

    Parameters
    ----------
    plain : list of float array [rows]
        Scores of the ranker without priors, one array per seed.
    alone : bool array [rows]
        Candidates of the towers alone.
    priors : mapping of arm to (scores, candidates)
        Of the ranker with the arm's priors, and of the towers with its slots. The first arm's cells bear no name.
    outcomes : Outcomes
    options : Resampling
    beside : mapping of arm to list of arm, optional
        Whose effects each arm's are held against; all others' beside the first, where it is not given.

    Returns
    -------
    Lifts
        Arms are cells as `cell` names them, and what cells add to others as `addition` does.
    """
    arms = list(priors)
    metrics = [cast("SlateMetric", metric) for metric in options.metrics]
    cells = cells_of(plain, alone, priors)
    cutoffs = sums_of(cells, outcomes, np.arange(outcomes.users), metrics, progress=options.progress)
    return effects_of_sums(cutoffs, arms, options, {arms[0]: arms[1:]} if beside is None else beside)


def cells_of(
    plain: Sequence[Double], alone: Bool, priors: Mapping[str, tuple[Sequence[Double], Bool]]
) -> dict[str, tuple[Sequence[Double], Bool]]:
    """Scores and candidates of every cell, by its name; parameters as of `effects_of`."""
    first = next(iter(priors))
    cells: dict[str, tuple[Sequence[Double], Bool]] = {NEITHER: (plain, alone)}
    for name, (scores, augmented) in priors.items():
        own = None if name == first else name
        cells[cell(BOTH, own)] = scores, augmented
        cells[cell(RETRIEVAL, own)] = plain, augmented
        cells[cell(RANKING, own)] = scores, alone
    return cells


def effects_of_sums(
    cutoffs: Sequence[CellSums], arms: Sequence[str], options: Resampling, beside: Mapping[str, Sequence[str]]
) -> Lifts:
    """Effects of every arm's priors from what each user adds to each cell, at one cut-off or pooled over several.

    Parameters
    ----------
    cutoffs : sequence of CellSums
        With the same cells, in time order.
    arms : sequence of str
        The first one's cells bear no name.
    options : Resampling
    beside : mapping of arm to list of arm
        Whose effects each arm's are held against.
    """
    first = arms[0]
    of = {name: None if name == first else name for name in arms}
    draws, engaged = draws_of(cutoffs, options)
    held = list(dict.fromkeys([*beside, *(other for others in beside.values() for other in others)]))
    pairs = [(cell(name, of[arm]), NEITHER) for arm in arms for name in CELLS]
    for name, against, _ in EFFECTS:
        if against == NEITHER:
            pairs += [(cell(name, of[a]), cell(name, of[b])) for a, others in beside.items() for b in others]
            continue
        for arm in held:
            sides = (draws[cell(name, of[arm])], draws[cell(against, of[arm])])
            draws[addition(name, against, of[arm])] = [
                {key: a[key] - b[key] for key in a} for a, b in zip(*sides, strict=True)
            ]
            pairs.append((cell(name, of[arm]), cell(against, of[arm])))
        pairs += [
            (addition(name, against, of[a]), addition(name, against, of[b]))
            for a, others in beside.items()
            for b in others
        ]
    return lifts_of(draws, pairs, options, {OVERALL: engaged})
