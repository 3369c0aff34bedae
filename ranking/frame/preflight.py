"""What must hold before a join starts: refused here in a second, not found out after minutes.

Runs without importing Feast.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from advprior.store.contract import (
    BASELINE_SERVICE,
    CATALOG_FILE,
    CATALOG_VERSION,
    CREATED_TIMESTAMP,
    MATRIX_FILE,
    PREDICTORS,
    PRIOR_ROW,
    PRIOR_VIEW_PREFIX,
    TABLE_FILE,
    TAIL_FILE,
    TOP_INDEX_FILE,
    prior_service,
    prior_view,
    shuffled_source,
)
from advprior.store.errors import AdvpriorError
from advprior.store.matrix import matrix_path, open_matrix
from advprior.store.offline import SPARK, STORE_FILE, check_spark, offline_kind, store_config
from advprior.store.project_files import PROJECT_FILE, counted_tables
from advprior.store.runs import MANIFEST, manifest_digest, run_key
from ranking.frame.views import BASELINE_VIEWS, view_folder

_REFUSED = ("file", "dask")  # two names of one store
FEATURES_VERSION = 10  # of what `ranking.frame.publish` computes: raise it when the same tables give other features


def features_run_key(tables: Path, view: str) -> str:
    """Run key of a baseline view: cheap, so that an unchanged one is known before anything is loaded."""
    return run_key(f"rank features {view}", {}, {"tables": manifest_digest(tables)}, FEATURES_VERSION)


def publish_command(view: str, repo: Path | str = "REPO") -> str:
    """The command that publishes a view; of a project's repository with the project's own folders in it."""
    project = Path(repo).parent
    if view in BASELINE_VIEWS:
        tables = counted_tables(project)
        if not tables.is_dir() and (project / PROJECT_FILE).is_file():
            return f"advprior run {project} --until 'rank features'"  # it makes them first
        return f"advprior rank features --tables {tables if tables.is_dir() else 'TABLES'} --repo {repo}"
    predictor = view.removeprefix(PRIOR_VIEW_PREFIX)
    source = shuffled_source(predictor) or predictor
    priors = project / "priors" / source
    scored = source  # a run publishes under its predictor's name, unless it is told another
    if (priors / MANIFEST).is_file():
        scored = str(json.loads((priors / MANIFEST).read_text()).get("facts", {}).get("predictor", source))
    named = f"advprior publish {priors if priors.is_dir() else f'PRIORS/{source}'} --repo {repo}"
    return named + (f" --as {predictor}" if scored != predictor else "")


def service_fix(name: str, repo: Path) -> str:
    """How a feature service that is not there comes to be.

    `feast apply` leaves a service out, without an error, as long as a view of it is not published: so what is lacking
    is published first. A definition that fails is another matter, and only Feast's own message says which.
    """
    predictor = next((p for p in PREDICTORS if prior_service(p) == name), "")
    predictor = predictor or name.removeprefix("ranker_with_").removesuffix("_v1")
    views = [*BASELINE_VIEWS] if name == BASELINE_SERVICE else [*BASELINE_VIEWS, prior_view(predictor)]
    lacking = [view for view in views if not (view_folder(repo, view) / TABLE_FILE).is_file()]
    commands = list(dict.fromkeys(publish_command(view, repo) for view in lacking))
    failed = "" if lacking else " (where it fails, its own message names the definition to fix)"
    return "; then ".join([*commands, f"feast -c {repo} apply{failed}"])


def published_predictors(repo: Path, among: Sequence[str]) -> list[str]:
    """Predictors whose priors are published: those named first, in that order, then any other by name."""
    folders = (Path(repo) / "data").glob(f"{PRIOR_VIEW_PREFIX}*")
    others = sorted({folder.name.removeprefix(PRIOR_VIEW_PREFIX) for folder in folders} - set(among))
    return [p for p in (*among, *others) if (view_folder(repo, prior_view(p)) / TABLE_FILE).is_file()]


def check_store(repo: Path) -> None:
    """Refuse a folder that is no feature repository, and the offline store that loses rows.

    Raises
    ------
    AdvpriorError
        ``STO001`` no readable feature_store.yaml, ``STO002`` the file (dask) offline store, ``STO020`` Spark without
        pyspark or Java, ``STO021`` Spark in another time zone than UTC.
    """
    path = Path(repo) / STORE_FILE
    config = store_config(repo)
    kind = offline_kind(config)
    if kind == SPARK:
        check_spark(config, path)
    if kind in _REFUSED:
        raise AdvpriorError(
            "STO002",
            "Feast's file (dask) offline store loses entity rows and mixes up ties in created_timestamp",
            where=str(path),
            actual=f"offline_store: {kind}",
            expected="offline_store: {type: duckdb}",
            fix=f"set offline_store to duckdb in {path}, then: feast -c {repo} apply",
        )


def check_published(repo: Path, views: Sequence[str]) -> None:
    """``STO003``: every view is published, whole."""
    absent = [v for v in views if not all((view_folder(repo, v) / f).is_file() for f in (TABLE_FILE, MANIFEST))]
    if absent:
        commands = list(dict.fromkeys(publish_command(v, repo) for v in absent))
        raise AdvpriorError(
            "STO003",
            "views are not published",
            where=str(Path(repo) / "data"),
            actual=f"no {', '.join(absent)}",
            fix=" ; ".join([*commands, f"feast -c {repo} apply"]),
        )


def check_prior(repo: Path, predictor: str) -> None:
    """``STO004``: table, matrix and catalog of a prior belong together."""
    import numpy as np
    import pyarrow.parquet as pq

    folder = view_folder(repo, prior_view(predictor))

    def refuse(actual: str, expected: str) -> AdvpriorError:
        return AdvpriorError(
            "STO004",
            "published priors disagree with their own catalog or matrix",
            where=str(folder),
            actual=actual,
            expected=expected,
            fix=f"score again, then: {publish_command(prior_view(predictor), repo)}",
        )

    try:
        catalog = json.loads((folder / CATALOG_FILE).read_text())
        version, size = str(catalog["version"]), len(catalog["advertisers"])
        matrix = open_matrix(folder / MATRIX_FILE)
        table = pq.read_table(folder / TABLE_FILE, columns=[CATALOG_VERSION, PRIOR_ROW])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise refuse(str(error).splitlines()[0][:200], "table.parquet, log_probs.parquet and catalog.json") from error
    versions = [str(v) for v in table[CATALOG_VERSION].unique().to_pylist()]
    if versions != [version]:
        raise refuse(f"rows of catalog {', '.join(versions) or '(none)'}", f"catalog {version}, as in {CATALOG_FILE}")
    if matrix_path(folder / TOP_INDEX_FILE):
        shapes = [open_matrix(folder / name).shape for name in (TOP_INDEX_FILE, TAIL_FILE)]
        if matrix.ndim != 2 or matrix.shape[1] >= size or [matrix.shape, (len(matrix),)] != shapes:
            raise refuse(
                f"arrays of shapes {[matrix.shape, *shapes]}", f"({len(matrix)}, K) twice and ({len(matrix)},)"
            )
    elif matrix.ndim != 2 or matrix.shape[1] != size:
        raise refuse(f"a matrix of shape {matrix.shape}", f"(rows, {size}): rows × advertisers")
    rows = np.sort(table[PRIOR_ROW].to_numpy())
    if len(rows) and (rows[0] < 0 or rows[-1] >= len(matrix) or (np.diff(rows) == 0).any()):
        raise refuse("a prior_row that is doubled or out of range", f"of 0 … {len(matrix) - 1} each once at most")


def check_created(repo: Path, view: str, end: datetime) -> None:
    """``STO007``: a backfill stamped with the wall clock can never be joined to past impressions."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    path = view_folder(repo, view) / TABLE_FILE
    if not pq.read_metadata(path).num_rows:
        raise AdvpriorError("STO003", "a published view is empty", where=str(path), fix=publish_command(view, repo))
    oldest = pc.min(pq.read_table(path, columns=[CREATED_TIMESTAMP])[CREATED_TIMESTAMP]).as_py()
    if oldest is not None and oldest >= end:
        raise AdvpriorError(
            "STO007",
            "every row was created after the last impression, so none can be joined",
            where=str(path),
            actual=f"created_timestamp from {oldest}",
            expected="a backfilled row created when it became available",
            fix=publish_command(view, repo),
        )


def preflight(repo: Path, predictors: Sequence[str], *, end: datetime | None = None) -> None:
    """All of it: the store, the views, the priors' own consistency, and rows that can be joined before ``end``."""
    check_store(repo)
    views = [*BASELINE_VIEWS, *map(prior_view, predictors)]
    check_published(repo, views)
    for predictor in predictors:
        check_prior(repo, predictor)
    if end is not None:
        for view in views:
            check_created(repo, view, end)
