"""``advprior evaluate --learning-curve``: every cell measured once and kept, then pooled into one result.

A stopped run goes on where it was: a cell is a file of its own, whose name holds what it depends on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from advprior.evaluation.learning_curve.cells import CellResult, CutOff, measure
from advprior.evaluation.learning_curve.cost import Costs, forecast, measure_costs
from advprior.evaluation.learning_curve.encoders import DEFAULT, catalog_cosines, identities, sources_of
from advprior.evaluation.learning_curve.result import Cells, result_of
from advprior.evaluation.learning_curve.sentence import verdict_of
from advprior.evaluation.protocol import first_labels
from advprior.evaluation.split import Split
from advprior.history.catalog import Catalog
from advprior.history.histories import Histories, micros
from advprior.history.read import load_histories
from advprior.store.arrays import Int
from advprior.store.errors import AdvpriorError
from advprior.store.progress import Progress, duration
from advprior.store.runs import digest, manifest_digest, read_manifest, versions, write_json
from advprior.store.tables import TABLES_FIX, load_time_plan
from advprior.store.times import DAY_US

STEP = "learning curve"
CODE_VERSION = 4
YEAR_US = 365 * DAY_US
PARTS = 4  # of the past before the first cut-off: labels are looked for over one of them at most


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
    """

    sizes: tuple[int | None, ...]
    cutoffs: tuple[datetime, ...]
    draws: int = 3
    bases: tuple[str, ...] = (DEFAULT,)
    layers: int | None = None
    tested: int = 4000
    horizon_days: int | None = None
    seed: int = 0


def learning_curve(tables: Path, options: CurveOptions, out: Path) -> dict[str, Any]:
    """Measure what is not measured yet, and write the result to ``out`` (JSON); cells lie beside it.

    Raises
    ------
    AdvpriorError
        ``PRI082`` when texts may tell of what came after a cut-off, ``PRI041`` when nobody can be tested at one.
    """
    read_manifest(tables, step="data", fix=TABLES_FIX)
    _require_old_texts(tables, options.cutoffs)
    work = _Work(tables, options, out.with_suffix(".cells"))
    cells = work.run()
    assert work.costs is not None
    result = result_of(cells, options.sizes, options.cutoffs)
    result["verdict"] = verdict_of(result)
    result["about"] = {
        "step": STEP,
        "tables": manifest_digest(tables),
        "sizes": ["all" if size is None else size for size in options.sizes],
        "cutoffs": [moment.isoformat() for moment in options.cutoffs],
        "draws": options.draws,
        "encoders": list(options.bases),
        "layers": options.layers,
        "horizon_days": work.horizon // DAY_US,
        "seed": options.seed,
        "cpu_seconds": round(work.spent, 1),
        "cpu_seconds_foretold": round(work.foretold, 1),
        "cpu_seconds_per_million_users": {name: round(cost) for name, cost in work.costs.by_arm.items()},
        "versions": versions(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, result)
    return result


def _require_old_texts(tables: Path, cutoffs: Sequence[datetime]) -> None:
    """Texts of advertisers are as of ``finetune_end``: no cut-off may lie before it."""
    written = load_time_plan(tables).finetune_end
    if min(cutoffs) < written:
        raise AdvpriorError(
            "PRI082",
            "texts of advertisers may tell of what came after a cut-off",
            where=f"--cutoffs {min(cutoffs):%Y-%m-%d}",
            actual=f"the tables were built as of {written:%Y-%m-%d} (finetune_end)",
            expected="no cut-off before it",
            fix="build the tables with an earlier cut-off (finetune_end of the time plan), or leave the early one out",
        )


def horizon_of(first: int, end: int, cutoffs: Sequence[int]) -> int:
    """How far labels are looked for after each cut-off, in whole days: the same after every one.

    A year, where the data has one after the last cut-off and four before the first; less where it is shorter.

    >>> day = DAY_US
    >>> horizon_of(0, 3650 * day, [2000 * day, 3000 * day]) // day, horizon_of(0, 366 * day, [300 * day]) // day
    (365, 66)
    """
    ahead, past = end - max(cutoffs), (min(cutoffs) - first) // PARTS
    return max(min(YEAR_US, ahead, past) // DAY_US, 1) * DAY_US


@dataclass
class _Work:
    """The cells of one call, and what they took."""

    tables: Path
    options: CurveOptions
    folder: Path
    spent: float = 0.0
    horizon: int = YEAR_US
    foretold: float = 0.0
    costs: Costs | None = None
    _key: str = field(init=False, default="")

    def run(self) -> Cells:
        """All cells, measured or read."""
        histories, catalog = load_histories(self.tables)
        moments = [micros(moment) for moment in self.options.cutoffs]
        wanted_days = self.options.horizon_days
        plan_end = micros(load_time_plan(self.tables).end)
        self.horizon = (
            horizon_of(int(histories.time.min(initial=min(moments))), plan_end, moments)
            if wanted_days is None
            else wanted_days * DAY_US
        )
        encoders = identities(self.options.bases, self.options.layers)
        about = [manifest_digest(self.tables), list(self.options.bases), encoders, self.options.tested]
        self._key = digest([*about, self.horizon, self.options.seed, CODE_VERSION])[:16]
        cosines, spent = catalog_cosines(catalog, self.options.bases, self.options.layers, min(moments))
        self.spent += spent  # when they were made
        cells = Cells(len(histories))
        total = len(self.options.cutoffs) * sum(1 if n is None else self.options.draws for n in self.options.sizes)
        with Progress(total, STEP, "cell") as progress:
            for moment in self.options.cutoffs:
                case = self._case(histories, catalog, cosines, moment)
                pool = np.flatnonzero(np.diff(case.histories.offsets) > 0)
                if self.costs is None:
                    self._foretell(case, len(pool))
                cells.tested[moment] = case.labels.user
                for size, draw in self._wanted(len(pool)):
                    chosen = np.sort(self._shuffled(pool, moment, draw)[: size or len(pool)])
                    cell = self._cell(case, chosen, f"{moment:%Y%m%d}-{size or 'all'}-{draw}")
                    cells.add(moment, size, cell)
                    progress.update()
        return cells

    def _foretell(self, case: CutOff, pool: int) -> None:
        """Say what the cells will cost, before the first of them."""
        self.costs = measure_costs(case)
        self.foretold = forecast(self.costs, case, self._wanted(pool), len(self.options.cutoffs))
        measured = len(list(self.folder.glob(f"2*-{self._key}.npz")))
        print(
            f"  … {STEP}: about {duration(self.foretold)} of CPU time in all, by {len(case.labels):,} users tested at "
            f"the first cut-off over {self.horizon // DAY_US} days; {measured} cells are measured already",
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

    def _case(self, histories: Histories, catalog: Catalog, cosines: dict[str, Any], moment: datetime) -> CutOff:
        """What the cells of a cut-off share; ``PRI041`` when nobody has a label."""
        split = Split(histories, catalog, micros(moment), self.horizon)
        labels = first_labels(histories, split.now, split.ahead).sample(self.options.tested, self.options.seed)
        if not len(labels):
            raise AdvpriorError(
                "PRI041",
                "no user can be tested at a cut-off",
                where=f"{self.tables}/events.parquet",
                actual=f"no user with an event before {moment:%Y-%m-%d} and one within the horizon",
                expected="events on both sides of every cut-off",
                fix="another of --cutoffs, or a longer --horizon",
            )
        return CutOff(
            split.past,
            labels,
            split.now,
            split.back,
            cosines,
            sources_of(self.options.bases),
            len(catalog),
            self.options.seed,
            split.pace,
        )

    def _cell(self, case: CutOff, chosen: Int, name: str) -> CellResult | None:
        """One cell, read where it was measured before."""
        path = self.folder / f"{name}-{self._key}.npz"
        if path.exists():
            with np.load(path) as kept:
                self.spent += float(kept["spent"])
                return _read(kept)
        started = time.process_time()
        cell = measure(case, chosen)
        spent = time.process_time() - started
        self.spent += spent
        if cell is not None:
            _write(path, cell, spent)
        return cell


def _write(path: Path, cell: CellResult, spent: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp.npz")
    np.savez_compressed(
        beside,
        names=np.asarray(cell.names),
        llms=np.asarray([[name, control] for name, control in cell.llms.items()], np.str_).reshape(-1, 2),
        sums=cell.sums,
        weights=cell.weights,
        valid_nll=cell.valid_nll,
        fitted=np.asarray([cell.fitted_users, cell.fitted_labels]),
        spent=np.asarray(spent),
    )
    beside.rename(path)


def _read(kept: Any) -> CellResult:
    users, labels = kept["fitted"].tolist()
    return CellResult(
        tuple(kept["names"].tolist()),
        dict(kept["llms"].tolist()),
        kept["sums"],
        kept["weights"],
        kept["valid_nll"],
        int(users),
        int(labels),
    )
