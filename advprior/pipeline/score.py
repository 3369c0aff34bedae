"""From a fitted, exported predictor to priors for every user and snapshot: ``advprior score``.

After an interrupt or a kill, the same command goes on where it stopped. One row per (user, snapshot), in that order.
Where a network stands behind the priors, ``since`` earlier ones only users whose input changed are forwarded.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from advprior.predictors.labels import LabelSpan
from advprior.predictors.registry import KINDS, load_predictor
from advprior.store.contract import CATALOG_FILE, INTERESTS_FILE, MATRIX_FILE
from advprior.store.errors import AdvpriorError
from advprior.store.runs import digest, is_current, manifest_digest, new_run, read_manifest, run_key
from advprior.store.tables import TABLES_FIX, load_time_plan

if TYPE_CHECKING:
    from advprior.history.catalog import Catalog
    from advprior.history.everyone import Everyone
    from advprior.history.subset import Crowd
    from advprior.predictors.base import Predictor, Scorer
    from advprior.predictors.forwarding import Forwarder
    from advprior.store.arrays import Int
    from advprior.store.contract import TimePlan

STEP = "score"
CODE_VERSION = 6
HISTORIES = "histories"  # folder: while scoring on a cluster only
TUNED_USERS = 4_096  # whose prompts say what a batch should hold

#: How a cluster holds histories.
Stored = TypeVar("Stored", bound="Everyone")


class Cluster(Protocol[Stored]):
    """Where jobs may run in place of this process, on histories of its own kind: what `advprior.spark` opens."""

    @property
    def facts(self) -> dict[str, Any]:
        """What a manifest says of it."""

    def histories(self, tables: Path, catalog: Catalog, folder: Path) -> Stored:
        """Histories of everyone, laid out in a folder by those who will score."""

    def forwarder(self, everyone: Stored, cutoffs: Int, crowd: Crowd, size: int) -> Forwarder:
        """Runs jobs there; results in the order of the jobs."""


#: Opens a cluster that holds the model, once it is clear that there is something to score.
OpenCluster = Callable[[], AbstractContextManager[Cluster[Any]]]


@dataclass(frozen=True)
class ScoreOptions:
    """How to score.

    Parameters
    ----------
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``; several GPUs are ``cuda:0,1``, each with its own shards.
    threads : int, optional
        Of ONNX Runtime; real cores by default.
    shard_users : int, optional
        Users a shard, what an interrupt may cost; by default 32 where a CPU forwards a network (more where that would
        make over 2,000 shards), else as many as have 64 MB of results.
    top_k : int, optional
        Keep the K likeliest advertisers only; by default 100 for catalogs above 10,000.
    last : int, optional
        Only the newest so many snapshots.
    since : Path, optional
        Earlier priors by the same predictor. Only the snapshots after theirs are scored (the newest one, if there
        is none), and only users whose input changed since are forwarded; the result equals scoring everyone.
    keep_network : bool, optional
        Keep what a later ``since`` needs: N numbers a user. By default yes for whole rows, no for top-K.
    new_advertisers : {"refuse", "leave_out"}
        What becomes of a catalog that has changed since the fit. Left out, new advertisers have no prior and events of
        theirs say nothing, until the model is extended or fitted anew.
    """

    device: str = "auto"
    threads: int | None = None
    shard_users: int | None = None
    top_k: int | None = None
    last: int | None = None
    since: Path | None = None
    keep_network: bool | None = None
    new_advertisers: Literal["refuse", "leave_out"] = "refuse"


@dataclass(frozen=True)
class _Request:
    """One call of `score` once its inputs are read: what is scored, and the key that says whether it was already."""

    run: Path
    tables: Path
    options: ScoreOptions
    config: dict[str, Any]
    inputs: dict[str, str]
    labels: LabelSpan
    exported: dict[str, Any]
    by: str
    since_snapshot: str | None

    @property
    def model(self) -> str:
        return model_of(self.inputs["run"], self.inputs["onnx"])

    @property
    def precision(self) -> str:
        """Of the export; fp32 for one that does not say."""
        return str(self.exported.get("precision") or "fp32")

    @property
    def gate(self) -> dict[str, Any] | None:
        """Provider and device on which the export's damage was measured; None in fp32, which needs no gate."""
        gate: dict[str, Any] | None = self.exported.get("gate")
        return gate

    @property
    def key(self) -> str:
        return run_key(STEP, self.config, self.inputs, CODE_VERSION)

    def snapshots(self, plan: TimePlan) -> list[datetime]:
        """Snapshots to score."""
        every = plan.snapshots()[-self.options.last :] if self.options.last else plan.snapshots()
        if self.since_snapshot is None:
            return every
        return [s for s in every if s.isoformat() > self.since_snapshot] or every[-1:]


def score(
    run: Path,
    tables: Path,
    out: Path,
    options: ScoreOptions | None = None,
    *,
    cluster: OpenCluster | None = None,
    force: bool = False,
) -> bool:
    """Write priors of all users at all snapshots of the time plan; True when it ran, False when reused.

    A user has a prior from the first snapshot at which they exist (`advprior.store.existence`).
    The output holds ``log_probs`` [rows, N] float32, ``rows.parquet`` (user_id, snapshot, prior_row,
    entropy, top1_index, top1_log_prob) and the catalog. Top-K priors have [rows, K] there, best first, and
    ``top_index``, ``tail_log_mass`` beside (see `advprior.runtime.topk`); `load_priors` reads them.

    Parameters
    ----------
    run, tables, out : Path
    options : ScoreOptions, optional
    cluster : callable, optional
        Opens where networks run in place of here. The output is the same, so that either way goes on where the other
        was stopped.
    force : bool
        Score again even when nothing changed.

    Raises
    ------
    AdvpriorError
        ``PRI002`` when the catalog changed since fine-tuning, ``PRI008`` when a prior is no distribution,
        ``PRI009`` when rows are missing, ``PRI011`` when a prior depends on what came after its snapshot,
        ``PRI012`` when ``since`` was scored by another model or kept no network part, ``PRI017`` when the run states
        an earlier model cut-off than its labels have, and what ``cluster`` raises.
    """
    request = _read_request(run, tables, options or ScoreOptions())
    if not force and is_current(out, request.key):
        return False
    from advprior.history.read import load_catalog, load_histories

    predictor = load_predictor(run)
    fitted, catalog = predictor.catalog, load_catalog(tables)
    left_out = len(set(catalog.ids) - set(fitted.ids))
    listed = catalog if catalog.version == fitted.version else fitted  # the tables' own texts are newer
    if request.options.new_advertisers == "refuse":
        fitted.require_same(
            catalog,
            where=f"{tables}/advertisers.parquet against {run}/{CATALOG_FILE}",
            fix=f"advprior catalog extend {run} --tables {tables} --out NEW_RUN, or advprior finetune --tables "
            f"{tables} --predictor {request.config['predictor']} --out {run}; or, without the new ones, score with "
            "--new-advertisers leave_out",
        )
    of = fitted if request.options.new_advertisers == "leave_out" else catalog
    here = load_histories(tables, of)[0] if cluster is None else None
    opened: AbstractContextManager[Cluster[Any] | None] = nullcontext() if cluster is None else cluster()
    with (
        new_run(out, STEP, config=request.config, inputs=request.inputs, key=request.key, resume=not force) as work,
        opened as machines,
    ):
        everyone = here if machines is None else machines.histories(tables, of, work.path / HISTORIES)
        assert everyone is not None
        work.facts.update(_score_into(work.path, request, predictor, everyone, listed, machines))
        work.facts.update(advertisers_left_out=left_out)
        shutil.rmtree(work.path / HISTORIES, ignore_errors=True)
    return True


def model_of(run: str, onnx: str) -> str:
    """What priors know their model by: digests of the fitted run and of its export."""
    return digest([run, onnx])


def _read_request(run: Path, tables: Path, options: ScoreOptions) -> _Request:
    """Read the manifests of everything that goes in."""
    fitted = read_manifest(run, step="finetune", fix="advprior finetune --tables TABLES --out RUN")
    exported = read_manifest(run / "onnx", step="export", fix=f"advprior export {run}")
    about = read_manifest(tables, step="data", fix=TABLES_FIX)["facts"]
    kind = fitted["facts"]["predictor"]
    if kind not in KINDS:
        raise AdvpriorError("PRI003", f"no predictor named {kind!r}", expected=", ".join(KINDS))
    names = ("shard_users", "top_k", "last", "keep_network")
    config = {"predictor": kind, **{name: value for name, value in asdict(options).items() if name in names}}
    inputs = {
        "run": manifest_digest(run),
        "onnx": manifest_digest(run / "onnx"),
        "tables": manifest_digest(tables),
    }
    since_snapshot = None
    if options.since is not None:
        earlier = read_manifest(options.since, step=STEP, fix="advprior score RUN --tables EARLIER --out PRIORS")
        inputs["since"] = manifest_digest(options.since)
        since_snapshot = str(earlier["facts"]["last_snapshot"])
    request = _Request(
        run,
        tables,
        options,
        config,
        inputs,
        LabelSpan.of_run(fitted, str(run)),
        exported=exported["facts"],
        by="advertiser_category" if about.get("pairs") else "advertiser",
        since_snapshot=since_snapshot,
    )
    if options.since is not None and earlier["facts"].get("model") != request.model:
        raise AdvpriorError(
            "PRI012",
            "the earlier priors are another model's",
            where=str(options.since),
            actual=f"model {earlier['facts'].get('model')}",
            expected=f"model {request.model}, in {run}",
            fix="score without --since once",
        )
    return request


def _score_into(
    folder: Path,
    request: _Request,
    predictor: Predictor,
    everyone: Everyone,
    catalog: Catalog,
    cluster: Cluster[Any] | None,
) -> dict[str, Any]:
    """Score into an open run folder; the facts of its manifest."""
    import numpy as np

    from advprior.history.histories import micros
    from advprior.pipeline.score_carried import Carried, carries_states, save_keys
    from advprior.pipeline.score_checks import check_past_only, check_written
    from advprior.pipeline.score_existence import keep_existing
    from advprior.pipeline.score_files import ScoreFiles, finish
    from advprior.pipeline.score_shards import Scoring, score_shards
    from advprior.predictors.base import NetworkScorer
    from advprior.predictors.llm.cut_prompts import all_cut
    from advprior.runtime import topk
    from advprior.runtime.precision import ROUNDING

    options, plan = request.options, load_time_plan(request.tables)
    snapshots = request.snapshots(plan)
    cutoffs = np.asarray([micros(s) for s in snapshots], np.int64)
    size, k = len(catalog), topk.kept(len(catalog), options.top_k)
    scorer, *others = _scorers(predictor, request)
    keep = (k is None) if options.keep_network is None else options.keep_network
    is_network = isinstance(scorer, NetworkScorer)
    earlier = options.since if is_network else None
    # a cluster answers with log-probs of all advertisers, as earlier priors may have kept them
    end = k is not None and cluster is None and (earlier is None or carries_states(earlier))
    tuned, width = _ready((scorer, *others), everyone, cutoffs, end)
    sample = check_past_only(scorer, everyone, cutoffs, ROUNDING.get(request.precision, ROUNDING["fp32"]))
    interests, shape = getattr(scorer, "interests", None), (len(everyone), len(cutoffs), size)
    many = interests and len(interests)
    network = keep and is_network
    files = ScoreFiles(folder, shape, k=k, network=network, state_width=width, interests=many)
    states = width is not None
    carried = None if earlier is None else Carried.open(earlier, everyone, cutoffs, request.model, states)
    forwarder = _forwarder((scorer, *others), everyone, cutoffs, size, cluster)
    counts = score_shards(Scoring(scorer, everyone, cutoffs, files, carried), forwarder, options.shard_users)
    facts = {**finish(folder, files, everyone.users, snapshots), **keep_existing(folder, request.tables)}
    if files.network is not None:
        save_keys(folder, everyone, int(cutoffs[-1]), request.model)
    files.close()
    written = check_written(sample, folder / MATRIX_FILE)
    return {
        **_save_catalogs(folder, catalog, interests),
        **({} if cluster is None else {"spark": cluster.facts}),
        **facts,
        **_about(request, scorer, catalog, snapshots),
        **tuned,
        "lag_s": plan.lag.total_seconds(),
        "users": len(everyone),
        "top_k": k,
        **counts,
        "max_past_error": max(sample.difference, written),
        "cut_prompts": all_cut([scorer.cut_prompts(block) for block in everyone.blocks()]),
    }


def _about(request: _Request, scorer: Scorer, catalog: Catalog, snapshots: list[datetime]) -> dict[str, Any]:
    """What the priors are of, and who scored them."""
    return {
        "predictor": request.config["predictor"],
        "provider": scorer.provider,
        "precision": request.precision,
        **({} if request.gate is None else {"gate": request.gate}),
        "catalog_version": catalog.version,
        "catalog_size": len(catalog),
        "by": request.by,
        "model": request.model,
        **request.labels.to_json(),
        "snapshots": len(snapshots),
        "last_snapshot": snapshots[-1].isoformat(),
    }


def _save_catalogs(folder: Path, catalog: Catalog, interests: Catalog | None) -> dict[str, Any]:
    """Save what the columns of the priors, and of interests beside them, stand for; the facts of interests."""
    catalog.save(folder / CATALOG_FILE)
    if interests is None:
        return {}
    interests.save(folder / INTERESTS_FILE)
    return {"interests": len(interests), "interests_version": interests.version}


def _scorers(predictor: Predictor, request: _Request) -> list[Scorer]:
    """One for each device."""
    from advprior.runtime.cuda import single_devices

    options = request.options
    return [
        predictor.scorer(request.run / "onnx", device, options.threads) for device in single_devices(options.device)
    ]


def _ready(
    scorers: Sequence[Scorer], everyone: Everyone, cutoffs: Int, states: bool
) -> tuple[dict[str, Any], int | None]:
    """Prepare networks for many shards: what was tuned, for the manifest, and numbers of a state they answer with."""
    import numpy as np

    from advprior.predictors.base import NetworkScorer

    tuned: dict[str, Any] = {}
    width: int | None = None
    for scorer in scorers:
        if isinstance(scorer, NetworkScorer):
            width = scorer.answer_states() if states else None
            # some of them, from the first to the last: where networks run elsewhere not all histories are here
            step = max(1, len(everyone) // TUNED_USERS)
            tuned = scorer.tune(*everyone.of(np.arange(len(everyone), dtype=np.int64)[::step][:TUNED_USERS]), cutoffs)
    return tuned, width


def _forwarder(
    scorers: Sequence[Scorer], everyone: Everyone, cutoffs: Int, size: int, cluster: Cluster[Any] | None
) -> Forwarder:
    """Where the jobs run."""
    import numpy as np

    from advprior.history.counts import crowd
    from advprior.predictors.forwarding import here

    scorer, *others = scorers
    histories, _ = everyone.of(np.zeros(0, np.int64))
    if cluster is None:
        return here(scorer, histories, cutoffs, *others)
    interests = getattr(scorer, "interests", None) or ()
    counts = crowd(histories, cutoffs, scorer.half_lives, size)
    return cluster.forwarder(everyone, cutoffs, counts, size + len(interests))
