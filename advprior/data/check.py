"""The two checks of `advprior data check`: a user's own files through their mapping, or a folder of canonical tables.

Every problem is reported at once; nothing is written unless all is sound.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from advprior.data.conversion import load_mapped, resolve_time_plan, table_file
from advprior.data.late import GONE_FILE, LATE_FILE, WAS_LATE, LateRows, mark_late
from advprior.data.lookups import coverage, coverage_warnings
from advprior.data.mapping import DataMapping, read_mapping
from advprior.data.periods import check_periods, period_counts, young_labels
from advprior.store.contract import (
    EVENTS,
    IMPRESSIONS,
    LABEL,
    LABEL_DELAY,
    PREDICTOR_ONLY,
    SLATE_ID,
    TABLES,
    TIMESTAMP,
    USER_ID,
)
from advprior.store.errors import AdvpriorError
from advprior.store.runs import MANIFEST, digest, is_current, new_run, read_manifest, run_key, sha256_file
from advprior.store.tables import read_parquet, write_parquet

if TYPE_CHECKING:
    import pandas as pd

#: Rows that a warning names.
_NAMED = 3
CODE_VERSION = 5  # 4: warns of labels that may not be complete
#: The warning when tables without ads and impressions pass: right for a predictor, wrong if they were forgotten.
ONLY_A_PREDICTOR = "no ads and no impressions: the tables measure a predictor, `advprior rank` refuses them"


def check_mapping(
    path: Path, out: Path | None = None, *, late: bool = False, force: bool = False
) -> tuple[dict[str, Any], bool]:
    """Check a user's own tables through their mapping; write them in canonical form when ``out`` is given.

    Parameters
    ----------
    path : Path
        The ``mapping.yaml``.
    out : Path, optional
        Run folder to write, as a whole or not at all.
    late : bool
        Rows that the tables in ``out`` lack and that are older than their newest snapshot count from it on
        (`advprior.data.late`). Tables that hold such rows already keep to it.
    force : bool
        Write even when ``out`` is up to date.

    Returns
    -------
    facts : dict
        ``rows`` by table, ``time_plan``, ``warnings`` and more; ``purpose`` where there are no impressions.
    made : bool
        False when ``out`` was up to date and left alone.

    Raises
    ------
    AdvpriorError
        What `read_mapping`, `load_mapped`, `resolve_time_plan`, `check_periods` and
        `advprior.store.schemas.validate_tables` raise.
    """
    path = Path(path)
    mapping = read_mapping(path)
    config = {"mapping": mapping.model_dump(mode="json")}
    inputs: dict[str, str] = {}
    key = ""
    if out is not None:
        inputs = _file_digests(path, mapping, Path(out))
        key = run_key("data", config, inputs, CODE_VERSION)
        if not force and is_current(out, key):
            return dict(read_manifest(out)["facts"]), False
    tables, facts = _checked(path, mapping)
    if out is not None:
        marked = None
        if late or (Path(out) / LATE_FILE).is_file():
            marked = mark_late(tables[EVENTS], Path(out))
        with new_run(out, "data", config=config, inputs=inputs, key=key) as run:
            if marked is not None:
                tables[EVENTS] = marked.events
                marked.save(run.path)
                facts |= {"late_rows": len(marked.ledger), "late_rows_came": marked.came, "rows_gone": len(marked.gone)}
                facts["warnings"] += _late_warnings(marked)
            for name, table in tables.items():
                write_parquet(table, run.path / f"{name}.parquet")
            run.facts.update(facts)
    return facts, True


def _late_warnings(marked: LateRows) -> list[str]:
    warnings = []
    if marked.came:
        warnings.append(
            f"{marked.came:,} events came late, after a snapshot that would have seen them: they count from the next on"
        )
    if len(marked.gone):
        late, few = int(marked.gone[WAS_LATE].sum()), marked.gone[:_NAMED]
        rows = [f"user {u} at {t.isoformat()}" for u, t in zip(few[USER_ID], few[TIMESTAMP], strict=True)]
        warnings.append(
            f"{len(marked.gone):,} events before the newest snapshot are gone"
            + (f", {late:,} of which had come late" if late else "")
            + ": histories of past snapshots now lack them; "
            + "; ".join([*rows, *(["…"] if len(marked.gone) > len(few) else [])])
            + f"; all in {GONE_FILE}"
        )
    return warnings


def _file_digests(path: Path, mapping: DataMapping, out: Path) -> dict[str, str]:
    """Digests of the user's files by table, after a look that ``out`` replaces none of them."""
    names = (*mapping.tables.present(), *mapping.tables.lookups())
    files = {name: table_file(mapping, path.parent, name) for name in names}
    if any(out.resolve() in file.resolve().parents for file in [path, *files.values()]):
        raise AdvpriorError(
            "DAT044",
            "--out would replace your own files",
            where=str(out),
            actual=f"{path} reads from there",
            expected="another folder",
            fix="choose another --out",
        )
    for file in files.values():
        if not file.exists():
            read_parquet(file, fix="correct `folder` or `file` in the mapping")  # raises the coded error
    return {name: _digest_of(file) for name, file in files.items()}


def _digest_of(file: Path) -> str:
    """Digest of a file, or of a folder of Parquet parts as Spark and DuckDB write it."""
    if file.is_file():
        return sha256_file(file)
    parts = sorted(part for part in file.rglob("*") if part.is_file() and not part.name.startswith((".", "_")))
    return digest({str(part.relative_to(file)): sha256_file(part) for part in parts})


def _checked(path: Path, mapping: DataMapping) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The user's tables in canonical form, and the facts of them; raises when they are not sound."""
    from advprior.store.problems import Earlier
    from advprior.store.schemas import table_warnings, validate_tables

    tables, sources, missing, made = load_mapped(mapping, path.parent)
    fix = "correct the tables or the mapping, then run the command again"
    label_delay = LABEL_DELAY if mapping.label_delay is None else mapping.label_delay
    earlier = Earlier(sources, tuple(missing))
    validate_tables(tables, label_delay=label_delay, where=str(path), fix=fix, earlier=earlier)
    plan = resolve_time_plan(mapping, tables, str(path))
    facts: dict[str, Any] = {
        "source": str(path.name),
        "time_plan": plan.to_json(),
        "time_plan_proposed": mapping.time_plan is None,
        "rows": {name: len(table) for name, table in tables.items()},
        "warnings": [*made, *table_warnings(tables, plan)],
    }
    facts |= {"periods": period_counts(tables, plan), "snapshots": len(plan.snapshots()), "coverage": coverage(tables)}
    facts["warnings"] += coverage_warnings(tables, facts["coverage"])
    shown = label_delay if IMPRESSIONS in tables else None
    facts["warnings"] += check_periods(facts["periods"], plan, shown, str(path))
    if IMPRESSIONS in tables:
        if young := young_labels(tables, plan, label_delay):  # by a delay that is a guess it is no more than a note
            facts |= {"young_labels": young} if mapping.label_delay is None else {}
            facts["warnings"] += [young] if mapping.label_delay is not None else []
        facts["positives"] = int(tables[IMPRESSIONS][LABEL].sum())
        facts["slates"] = int(tables[IMPRESSIONS][SLATE_ID].nunique())
        facts["label_delay_s"] = label_delay.total_seconds()
        facts["label_delay_stated"] = mapping.label_delay is not None
    else:
        facts["purpose"] = PREDICTOR_ONLY
        facts["warnings"].append(ONLY_A_PREDICTOR)
    return tables, facts


def check_folder(folder: Path) -> dict[str, Any]:
    """Check a folder of tables that are canonical already.

    Parameters
    ----------
    folder : Path
        Holds ``<table>.parquet`` for each table (ads and impressions may both be absent); with a manifest, times are
        compared with its time plan.

    Returns
    -------
    dict
        ``rows`` by table and ``warnings``; with a manifest ``time_plan``, ``periods`` and ``snapshots``.
    """
    from advprior.store.schemas import validate_tables
    from advprior.store.tables import load_label_delay, load_time_plan, predictor_only, present_tables

    folder = Path(folder)
    fix = "advprior data check --mapping mapping.yaml --out DIR converts names and types"
    # what the manifest promises is read; without one, the files that exist
    promised = (folder / MANIFEST).is_file() and not predictor_only(folder)
    names = TABLES if promised else present_tables(folder)
    tables = {name: read_parquet(folder / f"{name}.parquet", fix=fix) for name in names}
    made = (folder / MANIFEST).is_file()
    plan, label_delay = (load_time_plan(folder), load_label_delay(folder)) if made else (None, LABEL_DELAY)
    warnings = validate_tables(tables, plan=plan, label_delay=label_delay, where=str(folder), fix=fix)
    if names != TABLES:
        warnings.append(ONLY_A_PREDICTOR)
    facts: dict[str, Any] = {}
    if plan is not None:
        facts = {
            "time_plan": plan.to_json(),
            "periods": period_counts(tables, plan),
            "snapshots": len(plan.snapshots()),
        }
        shown = label_delay if IMPRESSIONS in tables else None
        warnings += check_periods(facts["periods"], plan, shown, str(folder))
        young = young_labels(tables, plan, label_delay)
        stated = read_manifest(folder)["facts"].get("label_delay_stated", False)
        warnings += [young] if young and stated else []
    else:
        warnings.append(
            f"{folder} has no manifest.json, so other commands refuse it; write one with "
            "advprior data check --mapping mapping.yaml --out DIR"
        )
    facts["coverage"] = coverage(tables)
    warnings += coverage_warnings(tables, facts["coverage"])
    return {"rows": {name: len(table) for name, table in tables.items()}, "warnings": warnings, **facts}
