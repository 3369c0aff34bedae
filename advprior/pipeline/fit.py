"""From tables to a fitted predictor in a run folder: ``advprior finetune``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from advprior.history.withheld import without
from advprior.predictors.base import BEFORE, FitData
from advprior.predictors.encoding.settings import ENCODING_VERSION
from advprior.predictors.labels import LabelSpan
from advprior.predictors.registry import predictor_class
from advprior.store.contract import EVENTS, SASREC, USERS
from advprior.store.device import process
from advprior.store.errors import AdvpriorError
from advprior.store.project_files import SETTINGS_FILES, read_yaml
from advprior.store.runs import (
    Origin,
    digest,
    is_current,
    manifest_digest,
    new_run,
    read_manifest,
    run_key,
    write_manifest,
)
from advprior.store.spent import Stopwatch
from advprior.store.tables import TABLES_FIX, load_tables, load_time_plan

STEP = "finetune"
CODE_VERSION = 5


def read_settings(kind: str, path: Path | None, changes: Sequence[str] = (), *, project: Path | None = None) -> Any:
    """Checked settings of a predictor from a YAML file (defaults without one), with some of them changed.

    Parameters
    ----------
    kind : str
    path : Path, optional
    changes : sequence of str
        ``key=value``, dots between levels, the value as YAML: ``encoder.twin=true``.
    project : Path, optional
        Project folder whose file under ``configs/`` is read where no path is given.

    Raises
    ------
    AdvpriorError
        ``CFG001`` when the file is missing or no YAML mapping, or a change is no ``key=value``; ``CFG002`` when a
        setting is unknown or wrong.
    """
    where = str(path or "--set")
    raw = {} if path is None else read_yaml(path, "the config")
    if path is None and project is not None and (name := SETTINGS_FILES.get(kind)) is not None:
        raw, where = own_settings(kind, project), str(project / name)
    for change in changes:
        _change(raw, change)
    return validated_settings(kind, raw, where)


def own_settings(kind: str, project: Path) -> dict[str, Any]:
    """What a project's file under ``configs/`` says of a predictor; empty where it has none.

    Raises
    ------
    AdvpriorError
        ``CFG001`` when the file cannot be read.
    """
    name = SETTINGS_FILES.get(kind)
    if name is None or not (project / name).is_file():
        return {}
    raw = read_yaml(project / name, "the config")
    if kind == SASREC:  # shares the hybrid's file, and has no encoder
        raw.pop("encoder", None)
    return raw


def validated_settings(kind: str, raw: dict[str, Any], where: str) -> Any:
    """Checked settings of a predictor; an unknown key is refused with the nearest known one.

    Raises
    ------
    AdvpriorError
        ``CFG002``.
    """
    from pydantic import ValidationError

    from advprior.store.keys import explain

    predictor = predictor_class(kind)
    try:
        return predictor.settings(raw)
    except ValidationError as error:
        raise AdvpriorError(
            "CFG002",
            "the config has settings that do not fit",
            where=where,
            actual=explain(error, type(predictor.settings({}))),
            expected=f"the settings of predictor {kind}",
            fix="advprior init DIR writes a commented config",
        ) from error


def _change(raw: dict[str, Any], change: str) -> None:
    """Put ``key=value`` into nested settings, in place."""
    import yaml

    name, equals, text = change.partition("=")
    *levels, last = name.strip().split(".")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        equals = ""
    place: Any = raw
    for level in levels:
        place = place.setdefault(level, {}) if isinstance(place, dict) else None
    if not equals or not last or not isinstance(place, dict):
        raise AdvpriorError(
            "CFG001",
            "a changed setting is no key=value of this config",
            where="--set",
            actual=change,
            expected="such as encoder.twin=true",
        )
    place[last] = value


def finetune(
    tables: Path, out: Path, kind: str, settings: Any, *, force: bool = False, withheld: tuple[str, ...] = ()
) -> bool:
    """Fit a predictor on the histories before the first snapshot; True when it ran, False when reused.

    Events of advertisers in ``withheld`` (ids) are left out; the advertisers stay in the catalog.
    """
    config: dict[str, Any] = {"predictor": kind, "settings": settings.model_dump(mode="json")}
    if withheld:
        config["withheld"] = sorted(withheld)
    read_manifest(tables, step="data", fix=TABLES_FIX)
    inputs = {"tables": manifest_digest(tables), **_base_on_disk(config["settings"])}
    key = run_key(STEP, config, inputs, CODE_VERSION)
    if not force and is_current(out, key):
        return False

    data, plan = _fit_data(tables, withheld), load_time_plan(tables)
    if process():  # one of several that fit together: the first one writes
        with TemporaryDirectory() as folder:
            predictor_class(kind).fit(data, settings, Path(folder))
        return True
    stopwatch = Stopwatch()
    with new_run(out, STEP, config=config, inputs=inputs, key=key, resume=True) as run:
        facts = predictor_class(kind).fit(data, settings, run.path)
        run.facts.update(
            {**LabelSpan(plan.finetune_end, plan.finetune_end).to_json(), **facts},
            predictor=kind,
            catalog_version=data.catalog.version,
            advertisers=len(data.catalog),
            users=len(data.histories),
            events=len(data.histories.time),
            history_start=plan.start.isoformat(),
        )
        if BEFORE in facts:  # a run of its own, for `advprior export` and `advprior evaluate --earlier`
            apart = {**config, BEFORE: True}
            origin = Origin(STEP, apart, inputs, run_key(STEP, apart, inputs, CODE_VERSION))
            write_manifest(run.path / BEFORE, origin, {**run.facts, **facts[BEFORE]}, stopwatch)
    return True


def _fit_data(tables: Path, withheld: tuple[str, ...]) -> FitData:
    """Histories, catalog and interests before ``finetune_end``: what a predictor never sees it cannot leak.

    Raises
    ------
    AdvpriorError
        ``PRI006`` when no event lies before it.
    """
    from advprior.history.catalog import Catalog
    from advprior.history.histories import build_histories, micros
    from advprior.history.interests import build_interests
    from advprior.store.contract import ADVERTISERS

    plan = load_time_plan(tables)
    loaded = load_tables(tables, USERS, ADVERTISERS, EVENTS)
    loaded[EVENTS] = without(loaded[EVENTS], withheld)
    catalog = Catalog.from_table(loaded[ADVERTISERS])
    cutoff = micros(plan.finetune_end)
    histories = build_histories(loaded[USERS], loaded[EVENTS], catalog).before(cutoff)
    if not len(histories.time):
        raise AdvpriorError(
            "PRI006",
            "no event lies before finetune_end",
            where=f"{tables}/events.parquet",
            actual="0 events",
            expected=f"events before {plan.finetune_end.isoformat()}",
            fix="move finetune_end later in the time plan",
        )
    return FitData(
        histories,
        catalog,
        micros(plan.start),
        cutoff,
        round(plan.snapshot_every.total_seconds() * 1_000_000),
        build_interests(loaded[USERS], loaded[EVENTS], cutoff),
    )


def _base_on_disk(settings: dict[str, Any]) -> dict[str, str]:
    """Digest of the weights that ``base`` means on this machine: under one name they can change, or be another copy.

    Where texts are encoded, the version of how that is done is part of it.

    Raises
    ------
    AdvpriorError
        ``PRI020``, ``PRI021`` where there are none.
    """
    from advprior.predictors.encoding.encode import encoder_identity

    model = settings if settings.get("base") else settings.get("encoder") or {}
    if not model:
        return {}
    identity = encoder_identity(model["base"])
    return {"base": digest(identity | {"encoding": ENCODING_VERSION} if "pooling" in model else identity)}
