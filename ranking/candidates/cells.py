"""The cells of a two-by-two and their effects, from scores and candidates alone: a benchmark replays them too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from advprior.store.arrays import Bool, Double
from advprior.store.progress import Progress
from ranking.evidence.bootstrap import Draws, Outcomes, Resampler, Resampling, lifts_of
from ranking.evidence.lift import Lifts

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
    first, *others = priors
    beside = {first: others} if beside is None else beside
    of = {name: None if name == first else name for name in priors}
    cells = {NEITHER: _within(plain, alone)}
    for name, (scores, augmented) in priors.items():
        cells[cell(BOTH, of[name])] = _within(scores, augmented)
        cells[cell(RETRIEVAL, of[name])] = _within(plain, augmented)
        cells[cell(RANKING, of[name])] = _within(scores, alone)
    resampler = Resampler.of(outcomes, options)
    draws: dict[str, list[Draws]] = {name: [] for name in cells}
    with Progress(sum(map(len, cells.values())), "two-by-two", "ranking", shown=options.progress) as progress:
        for name, of_cell in cells.items():
            for score in of_cell:
                draws[name].append(resampler.draws(score)[0])
                progress.update()
    held = list(dict.fromkeys([*beside, *(other for others in beside.values() for other in others)]))
    pairs = [(cell(name, of[arm]), NEITHER) for arm in priors for name in CELLS]
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
    return lifts_of(draws, pairs, options, outcomes.telling)


def _within(scores: Sequence[Double], candidates: Bool) -> list[Double]:
    """Scores of each seed with every ad that is no candidate behind all that are."""
    return [np.where(candidates, score, -1.0) for score in scores]
