"""What each user adds to each cell of a two-by-two, which is all that a resampling of users needs.

Conversions per slate and NDCG are means over slates, so that a cell is a sum and a count for each user. The sums of a
finished two-by-two are kept beside it: those of several cut-offs are resampled together, with no ranker and no tower
at hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from advprior.store.arrays import Bool, Double
from advprior.store.contract import USER_ID
from advprior.store.progress import Progress
from advprior.store.tables import read_parquet, write_parquet
from ranking.evidence.bootstrap import Draws, Outcomes, Resampling, user_weights
from ranking.evidence.lift import OVERALL
from ranking.evidence.metrics import SlateMetric, ratio

SUMS_FILE = "users.parquet"
_ENGAGED, _SLATES = "engaged", "slates"
_CELLS = 5_000_000  # of [users, replicates] at a time, at most: 40 MB
_BLOCK = 50


@dataclass(frozen=True, eq=False)
class CellSums:
    """Sums of every cell at one cut-off.

    Parameters
    ----------
    users : array [users]
        Ids, sorted.
    engaged : bool array [users]
        Whether a user engaged with any ad: a difference of cells is told by those.
    slates : mapping of metric to float array [users]
        Slates of each user that a metric is a mean over.
    columns : tuple of (cell, seed, metric)
    totals : float array [users, columns]
        Sum of the metric over the user's slates.
    """

    users: NDArray[Any]
    engaged: Bool
    slates: Mapping[str, Double]
    columns: tuple[tuple[str, int, str], ...]
    totals: Double

    @property
    def seeds(self) -> int:
        """Rankers of each cell."""
        return 1 + max(seed for _, seed, _ in self.columns)

    def of_cell(self, cell: str) -> Double:
        """Values of one cell, [users, seeds × metrics], in the order of the columns."""
        chosen = [place for place, (name, _, _) in enumerate(self.columns) if name == cell]
        values: Double = self.totals[:, chosen]
        return values

    def with_cells(self, renamed: Mapping[str, str]) -> CellSums:
        """The same with further cells: new name to the cell that it stands for here."""
        columns, values = list(self.columns), [self.totals]
        for name, cell in renamed.items():
            columns += [(name, seed, metric) for own, seed, metric in self.columns if own == cell]
            values.append(self.of_cell(cell))
        return CellSums(self.users, self.engaged, self.slates, tuple(columns), np.concatenate(values, axis=1))

    def save(self, folder: Path) -> None:
        """Write ``users.parquet``: a row per user; a column of sums is named by cell, seed and metric as JSON."""
        table = pd.DataFrame({USER_ID: self.users, _ENGAGED: self.engaged})
        more = {json.dumps([_SLATES, metric]): values for metric, values in self.slates.items()}
        more |= {json.dumps(column): self.totals[:, place] for place, column in enumerate(self.columns)}
        write_parquet(pd.concat([table, pd.DataFrame(more)], axis=1), Path(folder) / SUMS_FILE)

    @classmethod
    def load(cls, folder: Path) -> CellSums:
        """What `save` wrote.

        Raises
        ------
        AdvpriorError
            ``DAT001``, ``DAT002``: a two-by-two of an earlier version has none.
        """
        table = read_parquet(Path(folder) / SUMS_FILE, fix="advprior rank two-by-two again, with --force")
        named = {name: json.loads(name) for name in table.columns if str(name).startswith("[")}
        slates = {key[1]: table[name].to_numpy(np.float64) for name, key in named.items() if len(key) == 2}
        sums = {name: (key[0], int(key[1]), key[2]) for name, key in named.items() if len(key) == 3}
        values = table[list(sums)].to_numpy(np.float64)
        users, engaged = table[USER_ID].astype(str).to_numpy(object), table[_ENGAGED].to_numpy(bool)
        return cls(users, engaged, slates, tuple(sums.values()), values)


def sums_of(
    cells: Mapping[str, tuple[Sequence[Double], Bool]],
    outcomes: Outcomes,
    users: NDArray[Any],
    metrics: Sequence[SlateMetric],
    *,
    progress: bool = False,
) -> list[CellSums]:
    """Sums of every cell, at each cut-off of the outcomes.

    Parameters
    ----------
    cells : mapping of cell to (scores, candidates)
        Scores of its rankers, one array [rows] per seed, and who may be shown: an ad that is no candidate ranks behind
        all that are.
    outcomes : Outcomes
    users : array [users]
        Ids in the order of the outcomes' users.
    metrics : sequence of SlateMetric
    progress : bool
    """
    seeds = [(name, seed) for name, (scores, _) in cells.items() for seed in range(len(scores))]
    columns = tuple((name, seed, metric.name) for name, seed in seeds for metric in metrics)
    values = [np.empty((outcomes.users, len(columns))) for _ in range(outcomes.cutoffs)]
    slates: list[dict[str, Double]] = [{} for _ in range(outcomes.cutoffs)]
    place = 0
    with Progress(len(seeds), "two-by-two", "ranking", shown=progress) as bar:
        for scores, candidates in cells.values():
            for score in scores:
                for segment, c, rows in outcomes.rows(np.where(candidates, score, -1.0)):
                    if segment != OVERALL:
                        continue
                    for i, metric in enumerate(metrics):
                        values[c][:, place + i], slates[c][metric.name] = metric.per_user(rows)
                place += len(metrics)
                bar.update()
    sums = []
    for c in range(outcomes.cutoffs):
        here = outcomes.cutoff == c
        counts = np.bincount(outcomes.user[here], minlength=outcomes.users)
        wins = np.bincount(outcomes.user[here & (outcomes.label == 1)], minlength=outcomes.users)
        seen = counts > 0
        of_seen = {name: count[seen] for name, count in slates[c].items()}
        sums.append(CellSums(users[seen], wins[seen] > 0, of_seen, columns, values[c][seen]))
    return sums


def draws_of(cutoffs: Sequence[CellSums], options: Resampling) -> tuple[dict[str, list[Draws]], int]:
    """Values of every cell's rankers in every replicate, and how many users engaged with anything.

    A user that is drawn is drawn at every cut-off, as in `ranking.evidence.bootstrap`.

    Parameters
    ----------
    cutoffs : sequence of CellSums
        With the same columns.
    options : Resampling
    """
    names = np.unique(np.concatenate([sums.users for sums in cutoffs]))
    drawn = user_weights(len(names), options.replicates, options.seed)
    columns, shape = cutoffs[0].columns, (len(cutoffs), 1 + options.replicates)
    metrics = list(cutoffs[0].slates)
    of_metric = [metrics.index(metric) for _, _, metric in columns]
    means = np.empty((*shape, len(columns)))
    engaged = np.zeros(len(names), bool)
    for c, sums in enumerate(cutoffs):
        place = np.searchsorted(names, sums.users)
        engaged[place] |= sums.engaged
        counts = np.stack([sums.slates[metric] for metric in metrics], axis=1)
        means[c, 0] = ratio(sums.totals.sum(axis=0), counts.sum(axis=0)[of_metric])
        size = max(1, min(_BLOCK, _CELLS // max(len(place), 1)))
        for start in range(0, options.replicates, size):
            weights = drawn[start : start + size][:, place].astype(np.float64)
            block = slice(1 + start, 1 + start + len(weights))
            means[c, block] = ratio(weights @ sums.totals, (weights @ counts)[:, of_metric])
    draws: dict[str, list[Draws]] = {}
    for i, (name, seed, metric) in enumerate(columns):
        of_cell = draws.setdefault(name, [])
        if len(of_cell) <= seed:
            of_cell.append({})
        of_cell[seed][OVERALL, metric] = means[:, :, i]
    return draws, int(engaged.sum())
