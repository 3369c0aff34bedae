"""The priors of a refresh: snapshots that nobody has scored yet join those that are published.

A new model's priors begin with the next snapshot: what users were served of the earlier ones stays. Only where its
catalog is another are all snapshots scored and published anew, since two catalogs are never mixed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from advprior.history.catalog import Catalog
from advprior.pipeline.append import append
from advprior.pipeline.publish import publish
from advprior.pipeline.score import model_of
from advprior.pipeline.score_carried import NETWORK_KEYS_FILE
from advprior.pipeline.settings import Refresh
from advprior.store.contract import CATALOG_FILE, SNAPSHOT, TABLE_FILE, prior_view
from advprior.store.errors import AdvpriorError
from advprior.store.runs import MANIFEST, manifest_digest, read_manifest, require_unchanged
from advprior.store.tables import load_time_plan, read_parquet


@dataclass(frozen=True)
class Priors:
    """What is refreshed, relative to the project folder that it runs in.

    Parameters
    ----------
    served : str
        Whose priors, by name.
    tables : Path
        What the predictor reads.
    repo : Path
    settings : Refresh
    step : callable
        Runs an `advprior` command; an error where it fails.
    threads : int, optional
    """

    served: str
    tables: Path
    repo: Path
    settings: Refresh
    step: Callable[..., None]
    threads: int | None = None

    @property
    def model(self) -> Path:
        """The fitted run, with its export."""
        return Path("models") / self.served

    @property
    def runs(self) -> Path:
        """Where refreshes score."""
        return Path("refresh") / self.served

    @property
    def published(self) -> Path:
        """The view's current publication."""
        return self.repo / "data" / prior_view(self.served)


def refresh_priors(of: Priors, say: Callable[[str], None]) -> dict[str, Any]:
    """Score and publish what is new.

    Returns
    -------
    dict
        ``added`` snapshots, and ``snapshots`` and ``last_snapshot`` of what is published now.
    """
    read_manifest(of.model / "onnx", step="export", fix="advprior run")
    if not (of.published / MANIFEST).is_file():
        added = _publish_all(of, "nothing was published yet", say)
    elif read_manifest(of.published)["facts"].get("catalog_version") != Catalog.load(of.model / CATALOG_FILE).version:
        added = _publish_all(of, "the model has another catalog", say)
    else:
        added = _append_new(of, say)
    times = read_parquet(of.published / TABLE_FILE, columns=[SNAPSHOT])[SNAPSHOT]
    return {"added": added, "snapshots": int(times.nunique()), "last_snapshot": times.max().isoformat()}


def _publish_all(of: Priors, why: str, say: Callable[[str], None]) -> int:
    """Every snapshot that would stay published, scored by this model and published whole."""
    kept = _snapshots(of)[-of.settings.keep_snapshots :]
    out = of.runs / f"{_stamp(kept[-1])}-whole"
    say(f"refresh: {why}: {len(kept)} snapshots are scored and published whole")
    _score(of, out, last=len(kept))
    publish(out, of.repo, name=of.served)
    return len(kept)


def _append_new(of: Priors, say: Callable[[str], None]) -> int:
    """Score the snapshots that are later than those published, and append them."""
    added = 0
    by_model = _runs_by_model(of)
    newest = _newest(of)
    for run, last in by_model.items():
        if last > newest:  # a refresh was stopped between scoring and publishing
            added += _append(of, run)
    newest = _newest(of) if added else newest
    new = [moment for moment in _snapshots(of) if moment > newest]
    if not new:
        if not by_model:
            say("refresh: the new model's priors begin with the next snapshot: what was served of this one stays")
        elif not added:
            say(f"refresh: no snapshot later than {newest:%Y-%m-%d %H:%M} yet; late rows change none that is published")
        return added
    since = next((run for run in reversed(by_model) if (run / NETWORK_KEYS_FILE).is_file()), None)
    out = of.runs / _stamp(new[-1])
    _score(of, out, since=since, last=len(new) if since is None else None)
    return added + _append(of, out)


def _append(of: Priors, run: Path) -> int:
    done = append(run, of.repo, name=of.served, keep=of.settings.keep_snapshots)
    return 0 if done is None else done.added


def _score(of: Priors, out: Path, *, last: int | None = None, since: Path | None = None) -> None:
    """By the command, which takes the environment's settings (ADVPRIOR_SPARK) and says what it did."""
    words = ["score", str(of.model), "--tables", str(of.tables), "--out", str(out)]
    words += ["--new-advertisers", of.settings.new_advertisers]
    for option, value in (("--last", last), ("--since", since), ("--threads", of.threads)):
        words += [] if value is None else [option, str(value)]
    of.step(*words)


def _snapshots(of: Priors) -> list[datetime]:
    """The time plan's, ascending.

    Raises
    ------
    AdvpriorError
        ``RUN017`` where there is none yet.
    """
    snapshots = load_time_plan(of.tables).snapshots()
    if not snapshots:
        raise AdvpriorError(
            "RUN017",
            "the tables have no snapshot to score",
            where=str(of.tables),
            expected="rows after finetune_end of the time plan",
            fix="bring newer rows, or set an earlier finetune_end",
        )
    return snapshots


def _newest(of: Priors) -> datetime:
    """The newest snapshot that is published.

    Raises
    ------
    AdvpriorError
        ``RUN018`` when the publication was damaged.
    """
    try:
        times = read_parquet(of.published / TABLE_FILE, columns=[SNAPSHOT])[SNAPSHOT]
    except AdvpriorError:  # of a damaged file the fix is another than of one that never was Parquet
        require_unchanged(of.published, fix=f"advprior rank rollback --repo {of.repo} --view {of.published.name}")
        raise
    newest: datetime = times.max().to_pydatetime()
    return newest


def _runs_by_model(of: Priors) -> dict[Path, datetime]:
    """Finished score runs of this very model with their newest snapshots, the newest last."""
    model = model_of(manifest_digest(of.model), manifest_digest(of.model / "onnx"))
    folders = [Path("priors") / of.served, *sorted(of.runs.glob("2*"))]
    manifests = {folder: read_manifest(folder) for folder in folders if (folder / MANIFEST).is_file()}
    own = {
        folder: datetime.fromisoformat(manifest["facts"]["last_snapshot"])
        for folder, manifest in manifests.items()
        if manifest.get("step") == "score" and manifest["facts"].get("model") == model
    }
    return {folder: own[folder] for folder in sorted(own, key=lambda folder: (own[folder], folder.name))}


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y%m%dT%H%M%S")
