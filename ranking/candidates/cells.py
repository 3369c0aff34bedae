"""The cells of a two-by-two and their effects, from scores and candidates alone: a benchmark replays them too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from advprior.store.arrays import Bool, Double
from ranking.evidence.bootstrap import Outcomes, Resampling, paired_bootstrap
from ranking.evidence.lift import Lifts

#: candidates, ranker: with priors or without.
NEITHER, RETRIEVAL, RANKING, BOTH = "neither", "candidates", "ranker", "both"
EFFECTS = (
    (RETRIEVAL, NEITHER, "Priors in retrieval"),
    (RANKING, NEITHER, "Priors in ranking"),
    (BOTH, NEITHER, "Priors in both"),
    (BOTH, RETRIEVAL, "Ranking, once in retrieval"),
    (BOTH, RANKING, "Retrieval, once in ranking"),
)
CONTROL, PLACEBO_ROLE = "control", "placebo"


def cell(name: str, reference: str | None = None) -> str:
    """A cell's name; that of the best control or the placebo bears theirs. Without priors all have the same cell.

    >>> cell(BOTH), cell(BOTH, "neighbours"), cell(NEITHER, "neighbours")
    ('both', 'both:neighbours', 'neither')
    """
    return name if reference is None or name == NEITHER else f"{name}:{reference}"


def effects_of(
    plain: Sequence[Double],
    alone: Bool,
    priors: Mapping[str, tuple[Sequence[Double], Bool]],
    outcomes: Outcomes,
    options: Resampling,
) -> Lifts:
    """Effects of the first arm's priors, of the others' beside it, and what its cells gain over theirs.

    Cells share rankers: all are compared seed by seed, so that what a ranker owes to its seed cancels where both cells
    have it.

    Parameters
    ----------
    plain : list of float array [rows]
        Scores of the ranker without priors, one array per seed.
    alone : bool array [rows]
        Candidates of the towers alone.
    priors : mapping of arm to (scores, candidates)
        Of the ranker with the arm's priors, and of the towers with its slots.
    outcomes : Outcomes
    options : Resampling
    """
    first, *references = priors
    cells = {NEITHER: _within(plain, alone)}
    for name, (scores, augmented) in priors.items():
        of = None if name == first else name
        cells[cell(RETRIEVAL, of)] = _within(plain, augmented)
        cells[cell(RANKING, of)] = _within(scores, alone)
        cells[cell(BOTH, of)] = _within(scores, augmented)
    return paired_bootstrap(cells, outcomes, _pairs(references), options)


def _pairs(references: Sequence[str]) -> list[tuple[str, str]]:
    """Effects of the arm, those of its references, and what its cells gain over theirs."""
    own = [(cell(arm, of), cell(against, of)) for of in (None, *references) for arm, against, _ in EFFECTS]
    return own + [(name, cell(name, of)) for of in references for name in (RETRIEVAL, RANKING, BOTH)]


def _within(scores: Sequence[Double], candidates: Bool) -> list[Double]:
    """Scores of each seed with every ad that is no candidate behind all that are."""
    return [np.where(candidates, score, -1.0) for score in scores]
