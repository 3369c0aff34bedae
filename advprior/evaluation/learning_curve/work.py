"""The cells of a map: drawn, measured or read, and their cost said first.

A stopped run goes on where it was: a cell is a file of its own, whose name holds what it depends on.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from advprior.evaluation.learning_curve.arms import Kin, Source
from advprior.evaluation.learning_curve.cells import CellResult, CutOff, measure
from advprior.evaluation.learning_curve.cost import Costs, forecast, measure_costs
from advprior.evaluation.learning_curve.encoders import DEFAULT
from advprior.evaluation.learning_curve.result import Cells
from advprior.evaluation.protocol import first_labels
from advprior.evaluation.split import Split
from advprior.history.catalog import Catalog
from advprior.history.histories import Histories, micros
from advprior.store.arrays import Float, Int
from advprior.store.errors import AdvpriorError
from advprior.store.progress import Progress, duration
from advprior.store.times import DAY_US

STEP = "learning curve"


@dataclass(frozen=True)
class CurveOptions:
    """What is measured.

    Attributes
    ----------
    sizes : tuple of int or None
        Numbers of users to fit on, ascending; None means all.
    cutoffs : tuple of datetime
    draws : int
        Of users, at each size but "all"; a smaller one lies inside a larger.
    bases : tuple of str
        Encoders, as `advprior.predictors.encoding.settings.parse_encoding` reads them.
    layers : int, optional
        Of each encoder that names none; by default as many as the text prior reads.
    tested : int
        Users tested at a cut-off, at most; drawn once.
    horizon_days : int, optional
        By default what `horizon_of` allows.
    seed : int
    masked : bool
        Whether texts are read without advertisers' names as well.
    """

    sizes: tuple[int | None, ...]
    cutoffs: tuple[datetime, ...]
    draws: int = 3
    bases: tuple[str, ...] = (DEFAULT,)
    layers: int | None = None
    tested: int = 4000
    horizon_days: int | None = None
    seed: int = 0
    masked: bool = False


@dataclass(frozen=True)
class CurveInputs:
    """What the cells are measured on.

    Attributes
    ----------
    histories : Histories
        All events, labels included.
    catalog : Catalog
    cosines : dict of str to float32 [N, N]
        Of the advertisers' texts by source, the lexical one among them.
    sources : dict of str to Source
        What is behind each, without the lexical one.
    horizon : int
        Microseconds.
    where : str
        The tables, for messages.
    """

    histories: Histories
    catalog: Catalog
    cosines: Mapping[str, Float]
    sources: Mapping[str, Source]
    horizon: int
    where: str = "events"


@dataclass
class Work:
    """The cells of one call, and what they took.

    Parameters
    ----------
    inputs : CurveInputs
    options : CurveOptions
    folder : Path, optional
        Where cells are kept; None: nowhere.
    key : str
        What the cells depend on.
    """

    inputs: CurveInputs
    options: CurveOptions
    folder: Path | None = None
    key: str = ""
    spent: float = 0.0
    foretold: float = 0.0
    costs: Costs | None = None

    def run(self) -> Cells:
        """All cells, measured or read."""
        cells = Cells(len(self.inputs.histories))
        total = len(self.options.cutoffs) * sum(1 if n is None else self.options.draws for n in self.options.sizes)
        with Progress(total, STEP, "cell", shown=self.folder is not None) as progress:
            for moment in self.options.cutoffs:
                case = self.case(moment)
                pool = np.flatnonzero(np.diff(case.histories.offsets) > 0)
                if self.costs is None and self.folder is not None:
                    self._foretell(case, len(pool), self.folder)
                cells.tested[moment] = case.labels.user
                for size, draw in self._wanted(len(pool)):
                    chosen = np.sort(self._shuffled(pool, moment, draw)[: size or len(pool)])
                    cell = self._cell(case, chosen, f"{moment:%Y%m%d}-{size or 'all'}-{draw}")
                    cells.add(moment, size, cell)
                    progress.update()
        return cells

    def _foretell(self, case: CutOff, pool: int, folder: Path) -> None:
        """Say what the cells will cost, before the first of them."""
        self.costs = measure_costs(case)
        self.foretold = forecast(self.costs, case, self._wanted(pool), len(self.options.cutoffs))
        measured = len(list(folder.glob(f"2*-{self.key}.npz")))
        print(
            f"  … {STEP}: about {duration(self.foretold)} of CPU time in all, by {len(case.labels):,} users tested at "
            f"the first cut-off over {self.inputs.horizon // DAY_US} days; {measured} cells are measured already",
            file=sys.stderr,
            flush=True,
        )

    def _wanted(self, pool: int) -> list[tuple[int | None, int]]:
        """(size, draw) of a cut-off; a size that is not smaller than the pool says nothing beside all of it."""
        sizes = [size for size in self.options.sizes if size is None or size < pool]
        return [(size, draw) for size in sizes for draw in range(1 if size is None else self.options.draws)]

    def _shuffled(self, pool: Int, moment: datetime, draw: int) -> Int:
        """The pool in an order of its own for each draw: the first n of it are the draw of n users."""
        return np.random.default_rng([self.options.seed, draw, micros(moment) // 1_000_000]).permutation(pool)

    def case(self, moment: datetime) -> CutOff:
        """What the cells of a cut-off share; ``PRI041`` when nobody has a label."""
        split = Split(self.inputs.histories, self.inputs.catalog, micros(moment), self.inputs.horizon)
        labels = first_labels(split.histories, split.now, split.ahead).sample(self.options.tested, self.options.seed)
        if not len(labels):
            raise AdvpriorError(
                "PRI041",
                "no user can be tested at a cut-off",
                where=self.inputs.where,
                actual=f"no user with an event before {moment:%Y-%m-%d} and one within the horizon",
                expected="events on both sides of every cut-off",
                fix="another of --cutoffs, or a longer --horizon",
            )
        return CutOff(
            split.past,
            labels,
            split.now,
            split.back,
            self.inputs.cosines,
            self.inputs.sources,
            split.size,
            self.options.seed,
            split.pace,
        )

    def _cell(self, case: CutOff, chosen: Int, name: str) -> CellResult | None:
        """One cell, read where it was measured before."""
        path = None if self.folder is None else self.folder / f"{name}-{self.key}.npz"
        if path is not None and path.exists():
            with np.load(path) as kept:
                self.spent += float(kept["spent"])
                return _read(kept)
        started = time.process_time()
        cell = measure(case, chosen)
        spent = time.process_time() - started
        self.spent += spent
        if cell is not None and path is not None:
            _write(path, cell, spent)
        return cell


def _write(path: Path, cell: CellResult, spent: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp.npz")
    np.savez_compressed(
        beside,
        names=np.asarray(cell.names),
        kin=np.asarray([json.dumps([name, *astuple(kin)]) for name, kin in cell.kin.items()], np.str_),
        sums=cell.sums,
        weights=cell.weights,
        valid_nll=cell.valid_nll,
        fitted=np.asarray([cell.fitted_users, cell.fitted_labels, cell.fitted_from]),
        spent=np.asarray(spent),
    )
    beside.rename(path)


def _read(kept: Any) -> CellResult:
    users, labels, first = kept["fitted"].tolist()
    kin = [json.loads(text) for text in kept["kin"].tolist()]
    return CellResult(
        tuple(kept["names"].tolist()),
        {name: Kin(*facts) for name, *facts in kin},
        kept["sums"],
        kept["weights"],
        kept["valid_nll"],
        int(users),
        int(labels),
        int(first),
    )
