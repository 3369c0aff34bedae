"""``advprior evaluate --learning-curve``: tables and encoders in, one result and its cells out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from advprior.evaluation.learning_curve.arms import with_averages
from advprior.evaluation.learning_curve.encoders import catalog_cosines, identities, sources_of
from advprior.evaluation.learning_curve.result import Cells, result_of
from advprior.evaluation.learning_curve.sentence import verdict_of
from advprior.evaluation.learning_curve.work import STEP, CurveInputs, CurveOptions, Work
from advprior.history.histories import micros
from advprior.history.read import load_histories
from advprior.store.errors import AdvpriorError
from advprior.store.runs import digest, manifest_digest, read_manifest, write_json
from advprior.store.tables import TABLES_FIX, load_time_plan
from advprior.store.times import DAY_US
from advprior.store.versions import versions

CODE_VERSION = 10
YEAR_US = 365 * DAY_US
PARTS = 4  # of the past before the first cut-off: labels are looked for over one of them at most


def learning_curve(tables: Path, options: CurveOptions, out: Path) -> dict[str, Any]:
    """Measure what is not measured yet, and write the result to ``out`` (JSON); cells lie beside it.

    Raises
    ------
    AdvpriorError
        ``PRI082`` when texts may tell of what came after a cut-off, ``PRI041`` when nobody can be tested at one.
    """
    read_manifest(tables, step="data", fix=TABLES_FIX)
    _require_old_texts(tables, options.cutoffs)
    work = _work(tables, options, out.with_suffix(".cells"))
    cells = work.run()
    assert work.costs is not None
    result = result_of(cells, options.sizes, options.cutoffs)
    result["verdict"] = verdict_of(result)
    result["warnings"] = _newer_texts(tables, cells)
    result["about"] = {
        "step": STEP,
        "tables": manifest_digest(tables),
        "sizes": ["all" if size is None else size for size in options.sizes],
        "cutoffs": [moment.isoformat() for moment in options.cutoffs],
        "draws": options.draws,
        "encoders": list(options.bases),
        "layers": options.layers,
        "masked": options.masked,
        "horizon_days": work.inputs.horizon // DAY_US,
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


def _newer_texts(tables: Path, cells: Cells) -> list[str]:
    """Whether texts were written after labels that weights are fitted on: they look better there than later.

    A few users leave few labels, so that much older ones are read too. On named_brands, with texts as of the first of
    three cut-offs, words lost 0.10 nats to counts at that one and 0.03 at the next, and gained 0.01 at the last
    (docs/experiments, 2026-11-26-map).
    """
    written = load_time_plan(tables).finetune_end
    moments: dict[int, int] = {}
    for cell in (cell for draws in cells.by_place.values() for cell in draws):
        moments[cell.fitted_users] = min(cell.fitted_from, moments.get(cell.fitted_users, cell.fitted_from))
    early = {users: first for users, first in sorted(moments.items()) if first < micros(written)}
    if not early:
        return []
    starts = ", ".join(f"{_day(first)} with {users:,} users" for users, first in early.items())
    return [
        f"texts are as of {written:%Y-%m-%d}, after labels that weights are fitted on, which start at {starts}: they "
        f"look better there than they are; build the tables with a finetune_end by {_day(min(early.values()))}"
    ]


def _day(moment: int) -> str:
    return f"{datetime.fromtimestamp(moment / 1_000_000, UTC):%Y-%m-%d}"


def horizon_of(first: int, end: int, cutoffs: Sequence[int]) -> int:
    """How far labels are looked for after each cut-off, in whole days: the same after every one.

    A year, where the data has one after the last cut-off and four before the first; less where it is shorter.

    >>> day = DAY_US
    >>> horizon_of(0, 3650 * day, [2000 * day, 3000 * day]) // day, horizon_of(0, 366 * day, [300 * day]) // day
    (365, 66)
    """
    ahead, past = end - max(cutoffs), (min(cutoffs) - first) // PARTS
    return max(min(YEAR_US, ahead, past) // DAY_US, 1) * DAY_US


def _work(tables: Path, options: CurveOptions, folder: Path) -> Work:
    """What is to be measured, with the encodings, which are made where they are not kept."""
    histories, catalog = load_histories(tables)
    moments = [micros(moment) for moment in options.cutoffs]
    first, end = int(histories.time.min(initial=min(moments))), micros(load_time_plan(tables).end)
    days = options.horizon_days
    horizon = horizon_of(first, end, moments) if days is None else days * DAY_US
    encoders = identities(options.bases, options.layers)
    about = [manifest_digest(tables), list(options.bases), encoders, options.tested, horizon, options.seed]
    about.append(options.masked)
    cosines, spent = catalog_cosines(catalog, options.bases, options.layers, min(moments), masked=options.masked)
    cosines, sources = with_averages(cosines, sources_of(options.bases, masked=options.masked))
    inputs = CurveInputs(histories, catalog, cosines, sources, horizon, where=f"{tables}/events.parquet")
    return Work(inputs, options, folder, digest([*about, CODE_VERSION])[:16], spent)
