"""From scored priors to the feature repository: ``advprior publish``.

Validated first, then swapped in with one rename of a link: readers see the old priors whole or the new
ones whole. A placebo is the same priors with users shuffled, for a test that must find nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from advprior.store.contract import (
    CATALOG_FILE,
    INTERESTS_FILE,
    PREDICTORS,
    PRIOR_ROW,
    SNAPSHOT,
    USER_ID,
    prior_view,
    shuffled_source,
)
from advprior.store.errors import AdvpriorError
from advprior.store.offline import require_current_repo
from advprior.store.runs import (
    MANIFEST,
    is_current,
    manifest_digest,
    new_run,
    publish_version,
    read_manifest,
    run_key,
    write_json,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

STEP = "publish"
CODE_VERSION = 2


def publish(
    priors: Path, repo: Path, *, name: str | None = None, seed: int = 0, online: bool = True, force: bool = False
) -> str | None:
    """Publish a score run as ``<repo>/data/prior_<name>``; the view's name, or None when it was current.

    Parameters
    ----------
    priors, repo : Path
    name : str, optional
        What it is published as; the predictor's name by default.
    seed : int
        Of a placebo's shuffle.
    online : bool
        Whether `feast materialize` puts the view online. False for what is measured only: controls, placebos. Their
        vectors are in the arrays alone.
    force : bool
        Publish again even when nothing changed.

    Raises
    ------
    AdvpriorError
        ``STO001`` when ``repo`` is no feature repository, ``PRI010`` when the priors do not validate.
    """
    import shutil

    scored = read_manifest(priors, step="score", fix="advprior score RUN --tables TABLES --out PRIORS")
    require_repo(repo)
    name, view = view_named(scored, name)
    config = {"view": view, **({"shuffle_seed": seed} if shuffled_source(name) else {})}
    inputs = {"priors": manifest_digest(priors)}
    key = run_key(STEP, config, inputs, CODE_VERSION)
    link = repo / "data" / view
    same_as = None
    if not force and is_current(link, key):
        if not online or read_manifest(link)["facts"].get("vectors", True):
            return view if _switch_online(link, online) else None
        same_as = manifest_digest(link)  # vectors join rows that stay what they are

    from advprior.pipeline.publish_table import ScoredArrays, validate, write_table
    from advprior.store.matrix import share_matrix
    from advprior.store.tables import read_parquet

    rows = read_parquet(priors / "rows.parquet", fix=f"advprior score … --out {priors}")
    arrays = ScoredArrays.open(priors)
    validate(rows, arrays, scored, priors)
    source = rows[PRIOR_ROW].to_numpy()
    if shuffled_source(name):
        source = shuffled_rows(rows, seed)
    staged = link.parent / f".staged-{view}"
    shutil.rmtree(staged, ignore_errors=True)
    with new_run(staged, STEP, config=config, inputs=inputs, key=key) as run:
        write_table(run.path, rows, arrays, source, scored["facts"], vectors=online)
        for array in arrays.by_file:
            share_matrix(priors / array, run.path)
        for file in (CATALOG_FILE, INTERESTS_FILE):
            if (priors / file).is_file():
                shutil.copyfile(priors / file, run.path / file)
        run.facts.update({k: v for k, v in scored["facts"].items() if k != "predictor"})
        run.facts.update(predictor=name, source_predictor=scored["facts"]["predictor"], score_seconds=scored["seconds"])
        run.facts.update(score_cpu_seconds=scored.get("cpu_seconds"), online=online, vectors=online)
    if same_as is not None:
        write_json(staged / MANIFEST, {**read_manifest(staged), "same_as": same_as})
    publish_version(staged, link)
    return view


def require_repo(repo: Path) -> None:
    """Refuse what is no feature repository.

    Raises
    ------
    AdvpriorError
        ``STO001``, and ``STO023`` for one of an earlier version.
    """
    if not (repo / "feature_store.yaml").is_file():
        raise AdvpriorError(
            "STO001",
            "not a feature repository",
            where=str(repo),
            actual="no feature_store.yaml",
            expected="a folder made by `advprior init`",
            fix="advprior init DIR, then --repo DIR/feature_repo",
        )
    require_current_repo(repo)


def view_named(scored: dict[str, Any], name: str | None) -> tuple[str, str]:
    """What a score run is published as, and its view.

    Raises
    ------
    AdvpriorError
        ``PRI003`` for a name that no prior can have.
    """
    name = name or str(scored["facts"]["predictor"])
    if not (name.isascii() and name.isidentifier() and name.islower() and name[0] != "_"):
        raise AdvpriorError(
            "PRI003",
            f"no prior can be named {name!r}",
            expected=f"small letters, digits, _: {', '.join(PREDICTORS)}, …",
        )
    return name, prior_view(name)


def _switch_online(link: Path, online: bool) -> bool:
    """Say of a published view that it goes online, or no longer does; False where that is what it says.

    A fact of the manifest, and no part of the key: the rows are the same, and what was measured on them stays current.
    """
    manifest = read_manifest(link)
    if manifest["facts"].get("online", True) == online:
        return False
    manifest["facts"]["online"] = online
    write_json(link / MANIFEST, manifest)
    return True


def shuffled_rows(rows: pd.DataFrame, seed: int) -> npt.NDArray[np.int64]:
    """Row of another user at the same snapshot, for every row: one shuffle of users, kept over time.

    Users stand in one circle, in a random order, and each takes from the one before them who exists at the snapshot:
    so a placebo is as steady in time as the prior it imitates. With two users or more nobody keeps their own.
    """
    import numpy as np
    import pandas as pd

    codes, users = pd.factorize(rows[USER_ID])
    place = np.argsort(np.random.default_rng(seed).permutation(len(users)))[codes]
    circle = rows.reset_index(drop=True).assign(place=place).sort_values([SNAPSHOT, "place"])
    by_snapshot = circle.groupby(SNAPSHOT, sort=False)[PRIOR_ROW]
    neighbour = by_snapshot.shift(1)
    return neighbour.where(neighbour.notna(), by_snapshot.transform("last")).sort_index().to_numpy(np.int64)
