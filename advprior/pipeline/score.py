"""From a fitted, exported predictor to priors for every user and snapshot: ``advprior score``.

Users are scored in shards, each written to its own place and then noted as done: after an interrupt or a
kill, the same command goes on where it stopped. One row per (user, snapshot), in that order.

Where a network stands behind the priors, users with the same prompt share one forward, and ``since`` earlier
priors only users whose input changed are forwarded: what changes for everyone (habit, drift) is added after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advprior.predictors.base import Scorer
from advprior.predictors.registry import KINDS, load_predictor
from advprior.store.contract import (
    CATALOG_FILE,
    MATRIX_FILE,
    PRIOR_ROW,
    SNAPSHOT,
    TAIL_FILE,
    TAIL_LOG_MASS,
    TOP_INDEX_FILE,
    USER_ID,
)
from advprior.store.errors import AdvpriorError
from advprior.store.runs import digest, is_current, manifest_digest, new_run, read_manifest, run_key
from advprior.store.tables import TABLES_FIX, load_time_plan

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from advprior.history.histories import Histories
    from advprior.pipeline.rowfiles import RowFile
    from advprior.predictors.base import NetworkScorer
    from advprior.predictors.forwarding import Forwarded, Forwarder, Job
    from advprior.spark.cluster import Cluster
    from advprior.store.arrays import Float, Int

STEP = "score"
CODE_VERSION = 3
ROWS_FILE = "rows.parquet"
NETWORK_FILE = "network.npy"  # [U, N] float32: the network's part at the last snapshot
NETWORK_KEYS_FILE = "network_keys.npy"  # [U] uint64: the input it was computed from
SCALARS_FILE = "scalars.npy"  # while scoring only: becomes columns of ROWS_FILE
SUM_TOLERANCE = 1e-4  # of one
PAST_FP16 = 4e-3  # of the largest log-prob: half precision rounds by the shape of the batch; a leak is far larger
PAST_SAMPLE = 12  # priors that are checked so
SHARD_USERS = 32  # users a shard at least
SHARDS = 2_000  # and shards a run at most, by default
BLOCK_BYTES = 32 << 20  # of log-probs held at once
SHARED_BLOCKS = 64  # shards' worth of users with the same prompt that stay together
CHUNK_ROWS = 16_384


def score(
    run: Path,
    tables: Path,
    out: Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    shard_users: int | None = None,
    top_k: int | None = None,
    last: int | None = None,
    since: Path | None = None,
    keep_network: bool | None = None,
    spark: str | None = None,
    force: bool = False,
) -> bool:
    """Write priors of all users at all snapshots of the time plan; True when it ran, False when reused.

    The output holds ``log_probs.npy`` [rows, N] float32, ``rows.parquet`` (user_id, snapshot, prior_row,
    entropy, top1_index, top1_log_prob) and the catalog. Top-K priors have [rows, K] there, best first, and
    ``top_index.npy``, ``tail_log_mass.npy`` beside (see `advprior.runtime.topk`).

    Parameters
    ----------
    run, tables, out : Path
    device : {"auto", "cpu", "cuda"}
    threads : int, optional
        Of ONNX Runtime; real cores by default.
    shard_users : int, optional
        Users a shard, what an interrupt may cost; by default 32, more where that would make over 2,000 shards.
    top_k : int, optional
        Keep the K likeliest advertisers only; by default 100 for catalogs above 10,000.
    last : int, optional
        Only the newest so many snapshots.
    since : Path, optional
        Earlier priors by the same predictor. Only the snapshots after theirs are scored (the newest one, if there
        is none), and only users whose input changed since are forwarded; the result equals scoring everyone.
    keep_network : bool, optional
        Keep what a later ``since`` needs: N numbers a user. By default yes for whole rows, no for top-K.
    spark : str, optional
        Forward on Spark: a master such as ``local[4]`` or ``yarn``, or a YAML file with ``spark_conf``. The output
        is the same, so that either way goes on where the other was stopped.
    force : bool
        Score again even when nothing changed.

    Raises
    ------
    AdvpriorError
        ``PRI002`` when the catalog changed since fine-tuning, ``PRI008`` when a prior is no distribution,
        ``PRI009`` when rows are missing, ``PRI011`` when a prior depends on what came after its snapshot,
        ``PRI012`` when ``since`` was scored by another model or kept no network part, ``PRI07x`` what `advprior.spark`
        has to say.
    """
    fitted = read_manifest(run, step="finetune", fix="advprior finetune --tables TABLES --out RUN")
    exported = read_manifest(run / "onnx", step="export", fix=f"advprior export {run}")
    by_category = bool(read_manifest(tables, step="data", fix=TABLES_FIX)["facts"].get("pairs"))
    config = {
        "predictor": fitted["facts"]["predictor"],
        "shard_users": shard_users,
        "top_k": top_k,
        "last": last,
        "keep_network": keep_network,
    }
    if config["predictor"] not in KINDS:
        raise AdvpriorError("PRI003", f"no predictor named {config['predictor']!r}", expected=", ".join(KINDS))
    inputs = {
        "run": manifest_digest(run),
        "onnx": manifest_digest(run / "onnx"),
        "tables": manifest_digest(tables),
    }
    model = digest([inputs["run"], inputs["onnx"]])
    if since is not None:
        earlier = read_manifest(since, step=STEP, fix="advprior score RUN --tables EARLIER --out PRIORS")
        inputs["since"] = manifest_digest(since)
        if earlier["facts"].get("model") != model:
            raise AdvpriorError(
                "PRI012",
                "the earlier priors are another model's",
                where=str(since),
                actual=f"model {earlier['facts'].get('model')}",
                expected=f"model {model}, in {run}",
                fix="score without --since once",
            )
    key = run_key(STEP, config, inputs, CODE_VERSION)
    if not force and is_current(out, key):
        return False

    import numpy as np

    from advprior.history.counts import crowd as everyone_before
    from advprior.history.histories import micros
    from advprior.history.read import load_histories
    from advprior.history.subset import Crowd
    from advprior.predictors.base import NetworkScorer
    from advprior.predictors.forwarding import here
    from advprior.predictors.llm.interest_scores import score_interests
    from advprior.runtime import parity, topk

    predictor = load_predictor(run)
    histories, catalog = load_histories(tables)
    predictor.catalog.require_same(
        catalog,
        where=f"{tables}/advertisers.parquet against {run}/{CATALOG_FILE}",
        fix=f"advprior finetune --tables {tables} --predictor {config['predictor']} --out {run}",
    )
    plan = load_time_plan(tables)
    snapshots = plan.snapshots()[-last:] if last else plan.snapshots()
    if since is not None:
        snapshots = [s for s in snapshots if s.isoformat() > earlier["facts"]["last_snapshot"]] or snapshots[-1:]
    cutoffs = np.asarray([micros(s) for s in snapshots], np.int64)
    size, k = len(catalog), topk.kept(len(catalog), top_k)
    with (
        new_run(out, STEP, config=config, inputs=inputs, key=key, resume=not force) as work,
        _cluster(spark, run, device, threads) as cluster,
    ):
        scorer = predictor.scorer(run / "onnx", device, threads)
        network = scorer if isinstance(scorer, NetworkScorer) else None
        keep = (k is None) if keep_network is None else keep_network
        files = _Files(work.path, len(histories), len(cutoffs), size, k, keep and network is not None)
        carried = _Carried.open(since, network, histories, cutoffs, model) if since is not None and network else None
        forwarder = here(scorer, histories, cutoffs)
        if cluster is not None:
            crowd = everyone_before(histories, cutoffs, scorer.half_lives, size)
            forwarder = cluster.forwarder("priors", histories, cutoffs, crowd, size)
        counted = _score_shards(scorer, histories, cutoffs, files, carried, shard_users, forwarder)
        facts = _finish(work.path, files, histories, snapshots)
        if files.network is not None:
            from advprior.history.fingerprints import input_keys

            np.save(work.path / NETWORK_KEYS_FILE, input_keys(histories, int(cutoffs[-1]), model))
        files.close()
        relative = PAST_FP16 if exported["facts"].get("precision") == "fp16" else parity.RELATIVE
        past = check_past_only(scorer, histories, cutoffs, work.path / MATRIX_FILE, relative)
        catalog.save(work.path / CATALOG_FILE)
        interests = predictor.interest_scorer(run / "onnx", device, threads)
        if interests is not None:
            remote = None
            if cluster is not None:
                remote = cluster.forwarder("interests", histories, cutoffs, Crowd(), len(interests.catalog))
            work.facts.update(score_interests(interests, histories, cutoffs, work.path, remote))
        if cluster is not None:
            work.facts["spark"] = cluster.facts
        work.facts.update(
            facts,
            predictor=config["predictor"],
            provider=scorer.provider,
            catalog_version=catalog.version,
            by="advertiser_category" if by_category else "advertiser",
            model=model,
            model_cutoff=fitted["facts"]["model_cutoff"],
            lag_s=plan.lag.total_seconds(),
            users=len(histories),
            snapshots=len(snapshots),
            last_snapshot=snapshots[-1].isoformat(),
            top_k=k,
            catalog_size=size,
            **counted,
            max_past_error=past,
        )
    return True


def _cluster(spark: str | None, run: Path, device: str, threads: int | None) -> AbstractContextManager[Cluster | None]:
    """A cluster where one is asked for; pyspark is imported for no one else."""
    if spark is None:
        return nullcontext()
    from advprior.spark.cluster import open_cluster

    return open_cluster(spark, run, device, threads)


class _Files:
    """The arrays of a run in progress."""

    def __init__(self, folder: Path, users: int, snapshots: int, size: int, k: int | None, network: bool) -> None:
        import numpy as np

        from advprior.pipeline.rowfiles import JOURNAL, Journal, RowFile

        rows = users * snapshots
        self.users, self.snapshots, self.size, self.k = users, snapshots, size, k
        self.log_probs = RowFile(folder / MATRIX_FILE, (rows, k or size), np.float32)
        self.index = RowFile(folder / TOP_INDEX_FILE, (rows, k), np.int32) if k else None
        self.tail = RowFile(folder / TAIL_FILE, (rows,), np.float32) if k else None
        self.network = RowFile(folder / NETWORK_FILE, (users, size), np.float32) if network else None
        self.scalars = RowFile(folder / SCALARS_FILE, (rows,), [("entropy", "<f4"), ("top1", "<i4"), ("best", "<f4")])
        self.journal = Journal(folder / JOURNAL)

    @property
    def all(self) -> list[RowFile]:
        return [f for f in (self.log_probs, self.index, self.tail, self.network, self.scalars) if f is not None]

    def write(self, users: Int, log_probs: Float) -> float:
        """Write priors [n, S, N] of ``users``; the largest distance of a sum of probabilities from one."""
        import numpy as np

        from advprior.runtime.topk import top_k

        rows = (users[:, None] * self.snapshots + np.arange(self.snapshots)).ravel()
        flat = log_probs.reshape(len(rows), self.size)
        worst = _check(flat, f"users {users[0]} to {users[-1]}")
        scalars = np.empty(len(rows), [("entropy", "<f4"), ("top1", "<i4"), ("best", "<f4")])
        scalars["entropy"] = -(np.exp(flat) * flat).sum(1)
        scalars["top1"] = flat.argmax(1)
        scalars["best"] = flat.max(1)
        if self.k is None or self.index is None or self.tail is None:
            self.log_probs.write(rows, flat)
        else:
            index, best, tail = top_k(flat, self.k)
            self.log_probs.write(rows, best)
            self.index.write(rows, index)
            self.tail.write(rows, tail)
        self.scalars.write(rows, scalars)
        return worst

    def close(self) -> None:
        for file in self.all:
            file.close()


@dataclass(frozen=True)
class _Carried:
    """The network's part of earlier priors, for users whose input did not change.

    Attributes
    ----------
    network : float32 [U0, N], memory-mapped
    rows : int64 [U, S]
        Which of its rows each user and cut-off may take; −1: none.
    """

    network: Float
    rows: Int

    @classmethod
    def open(cls, since: Path, scorer: NetworkScorer, histories: Histories, cutoffs: Int, model: str) -> _Carried:
        import numpy as np

        from advprior.history.fingerprints import input_keys

        if not (since / NETWORK_KEYS_FILE).is_file():
            raise AdvpriorError(
                "PRI012",
                "the earlier priors have no saved network part",
                where=str(since),
                actual=f"no {NETWORK_FILE}",
                expected="priors scored with --keep-network (the default for whole rows, not for top-K)",
                fix="advprior score RUN --tables TABLES --out PRIORS --keep-network",
            )
        known = np.load(since / NETWORK_KEYS_FILE)
        order = np.argsort(known)
        rows = np.full((len(histories), len(cutoffs)), -1, np.int64)
        for column, cutoff in enumerate(cutoffs):
            wanted = input_keys(histories, int(cutoff), model)
            at = np.minimum(np.searchsorted(known, wanted, sorter=order), max(len(known) - 1, 0))
            if len(known):
                found = order[at]
                rows[:, column] = np.where(known[found] == wanted, found, -1)
        return cls(np.load(since / NETWORK_FILE, mmap_mode="r"), rows)


def _check(log_probs: npt.NDArray[np.float32], where: str, tail: npt.NDArray[np.float32] | None = None) -> float:
    """Largest distance of a row's sum of probabilities from one."""
    import numpy as np

    flat = log_probs.reshape(-1, log_probs.shape[-1])
    sums = np.exp(flat).sum(1, dtype=np.float64) + (0.0 if tail is None else np.exp(tail, dtype=np.float64))
    error = float(np.abs(sums - 1).max()) if len(flat) else 0.0
    if not error <= SUM_TOLERANCE:  # a NaN fails too
        raise AdvpriorError(
            "PRI008",
            "a prior is no distribution over the catalog",
            where=where,
            actual=f"sum of probabilities off by {error}",
            expected=f"at most {SUM_TOLERANCE}",
            fix="advprior export RUN --force, then score again",
        )
    return error


def check_past_only(
    scorer: Scorer, histories: Histories, cutoffs: Int, matrix: Path, relative: float | None = None
) -> float:
    """Largest difference between priors as scored and scored again from histories cut at their snapshot.

    The backfill gives all snapshots of a user from one long forward; this takes a sample of them one by one,
    as if nothing later had happened yet.

    Raises
    ------
    AdvpriorError
        ``PRI011`` above ``relative`` of the priors' size (see `advprior.runtime.parity`).
    """
    import numpy as np

    from advprior.runtime.parity import RELATIVE, allowed_difference, largest_difference

    if not len(histories) or not len(cutoffs):
        return 0.0
    priors = np.load(matrix, mmap_mode="r")
    beside = matrix.with_name(TOP_INDEX_FILE)
    top = np.load(beside, mmap_mode="r") if beside.is_file() else None
    rng = np.random.default_rng(0)
    worst, allowed = 0.0, 0.0
    for column in rng.choice(len(cutoffs), min(3, len(cutoffs)), replace=False):
        past = histories.before(int(cutoffs[column]))
        users = np.sort(rng.choice(len(histories), min(PAST_SAMPLE // 3, len(histories)), replace=False))
        again = scorer.score(past, users.astype(np.int64), cutoffs[column : column + 1])[:, 0]
        rows = users * len(cutoffs) + column
        if top is not None:
            again = np.take_along_axis(again, top[rows].astype(np.int64), axis=1)
        worst = max(worst, largest_difference(again, priors[rows]))
        allowed = max(allowed, allowed_difference(priors[rows], relative or RELATIVE))
    if not worst <= allowed:
        raise AdvpriorError(
            "PRI011",
            "a prior depends on what came after its snapshot",
            where=str(matrix),
            actual=f"{worst:.1e} in log-prob against the history cut at the snapshot",
            expected=f"at most {allowed:.1e}, for log-probs of this size",
            fix="advprior export RUN --force, then score again",
        )
    return worst


def plan_shards(alike: npt.NDArray[np.uint64], shard_users: int) -> list[Int]:
    """Users of each shard: those that may share a prompt together, else in order.

    Whole groups of like users make a shard, so that what they share is forwarded once whatever happens between
    shards; only a group of more than `SHARED_BLOCKS` shards is cut.

    Examples
    --------
    >>> import numpy as np
    >>> [shard.tolist() for shard in plan_shards(np.asarray([7, 3, 5, 7, 7, 1], np.uint64), 2)]
    [[0, 3, 4], [1, 2], [5]]
    """
    import numpy as np

    _, first, inverse = np.unique(alike, return_index=True, return_inverse=True)
    group = first[inverse]
    order = np.argsort(group, kind="stable")
    shards, start = [], 0
    while start < len(order):
        stop = min(start + shard_users, len(order))
        # up to the end of the group that the shard would cut
        end = int(np.searchsorted(group[order], group[order[stop - 1]], side="right"))
        stop = min(max(stop, end), start + SHARED_BLOCKS * shard_users)
        shards.append(np.sort(order[start:stop]).astype(np.int64))
        start = stop
    return shards


def _score_shards(
    scorer: Scorer,
    histories: Histories,
    cutoffs: Int,
    files: _Files,
    carried: _Carried | None,
    shard_users: int | None,
    forwarder: Forwarder,
) -> dict[str, Any]:
    """Score what the journal does not name yet; what was counted on the way."""
    import numpy as np
    from tqdm.auto import tqdm

    from advprior.predictors.base import NetworkScorer

    network = scorer if isinstance(scorer, NetworkScorer) else None
    users = len(histories)
    alike = network.alike(histories, int(cutoffs[-1])) if network else np.arange(users, dtype=np.uint64)
    shards = plan_shards(alike, shard_users or max(SHARD_USERS, -(-users // SHARDS)))
    step = max(1, BLOCK_BYTES // (4 * len(cutoffs) * files.size))
    journal = files.journal
    # what the network says of a shard is forwarded once for all who share it; else a block at a time
    jobs = _jobs(shards, set(journal.done), carried, None if network else step)
    facts: dict[str, float] = {}
    with tqdm(
        total=len(shards), initial=len(journal.done), desc=f"score on {scorer.provider}", unit="shard", disable=None
    ) as progress:
        for job, found in forwarder(jobs):
            facts = facts or {"max_sum_error": 0.0, "prompts": 0, "forwarded": 0, "carried": 0}
            if network is None:
                assert found is not None
                worst = files.write(job.users, found.log_probs.reshape(len(job.users), len(cutoffs), files.size))
            else:
                worst = _write_network(network, histories, job, found, cutoffs, files, carried, step)
                facts["carried"] += len(job.users) - len(job.fresh)
            facts["max_sum_error"] = max(facts["max_sum_error"], worst)
            if found is not None:
                facts["prompts"] += found.prompts
                facts["forwarded"] += found.forwarded
            if job.last:
                for file in files.all:
                    file.sync()
                journal.add(job.shard, facts)
                facts = {}
                progress.update()
            found = None  # let go of before the next one is computed
    if sorted(journal.done) != list(range(len(shards))):
        raise AdvpriorError(
            "PRI009",
            "shards do not add up",
            actual=f"{len(journal.done)} shards",
            expected=f"{len(shards)} shards",
            fix="advprior score … --force",
        )
    done = list(journal.done.values())
    total: dict[str, Any] = {n: sum(int(d[n]) for d in done) for n in ("prompts", "forwarded", "carried")}
    return total | {"max_sum_error": max((d["max_sum_error"] for d in done), default=0.0)}


def _jobs(shards: list[Int], done: set[int], carried: _Carried | None, step: int | None) -> Iterator[Job]:
    """What is left to score: a shard a job, or blocks of ``step`` users of it."""
    from advprior.predictors.forwarding import Job

    for number, shard in enumerate(shards):
        if number in done:
            continue
        if step is None:
            fresh = shard if carried is None else shard[~(carried.rows[shard] >= 0).all(axis=1)]
            yield Job(number, shard, fresh)
        else:
            for start in range(0, len(shard), step):
                block = shard[start : start + step]
                yield Job(number, block, block, last=start + step >= len(shard))


def _write_network(
    scorer: NetworkScorer,
    histories: Histories,
    job: Job,
    found: Forwarded | None,
    cutoffs: Int,
    files: _Files,
    carried: _Carried | None,
    step: int,
) -> float:
    """Write one shard: what was forwarded, what is carried over, and what changes with time on top of both."""
    import numpy as np

    from advprior.predictors.logit import add_offset

    shard = job.users
    old = ~np.isin(shard, job.fresh)
    place = np.cumsum(~old) - 1  # row of a forwarded user in ``found.index``
    worst = 0.0
    for start in range(0, len(shard), step):
        block, kept, at = shard[start : start + step], old[start : start + step], place[start : start + step]
        network = np.empty((len(block), len(cutoffs), files.size), np.float32)
        if found is not None:
            network[~kept] = found.log_probs[found.index[at[~kept]]]
        if carried is not None:
            network[kept] = carried.network[carried.rows[block[kept]]]
        if files.network is not None:
            files.network.write(block, network[:, -1])
        worst = max(worst, files.write(block, add_offset(network, scorer.offset(histories, block, cutoffs))))
    return worst


def _finish(out: Path, files: _Files, histories: Histories, snapshots: list[datetime]) -> dict[str, float]:
    """The table of rows, streamed, while everything written is read once more; then the scaffolding goes."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from advprior.pipeline.rowfiles import JOURNAL

    moment = pa.timestamp("us", tz="UTC")
    chunk = max(1, CHUNK_ROWS // len(snapshots)) * len(snapshots)  # whole users
    tails = files.tail.blocks(chunk) if files.tail is not None else None
    columns = [
        (USER_ID, pa.string()),
        (SNAPSHOT, moment),
        (PRIOR_ROW, pa.int64()),
        ("entropy", pa.float32()),
        ("top1_index", pa.int64()),
        ("top1_log_prob", pa.float32()),
        *([(TAIL_LOG_MASS, pa.float32())] if tails is not None else []),
    ]
    worst, entropy, rows = 0.0, 0.0, 0
    with pq.ParquetWriter(out / ROWS_FILE, pa.schema(columns)) as writer:
        for log_probs, scalars in zip(files.log_probs.blocks(chunk), files.scalars.blocks(chunk), strict=True):
            tail = next(tails) if tails is not None else None
            worst = max(worst, _check(log_probs, f"{out / MATRIX_FILE} from row {rows}", tail))
            first, stop = rows // len(snapshots), (rows + len(log_probs)) // len(snapshots)
            users = [user for user in histories.users[first:stop] for _ in snapshots]
            values = [
                pa.array(users, pa.string()),
                pa.array(list(snapshots) * (stop - first), moment),
                pa.array(np.arange(rows, rows + len(log_probs))),
                pa.array(np.ascontiguousarray(scalars["entropy"])),
                pa.array(scalars["top1"].astype(np.int64)),
                pa.array(np.ascontiguousarray(scalars["best"])),
                *([pa.array(tail)] if tail is not None else []),
            ]
            writer.write_table(pa.table(dict(zip([name for name, _ in columns], values, strict=True))))
            entropy += float(scalars["entropy"].sum(dtype=np.float64))
            rows += len(log_probs)
    # the journal first: without it all is scored again, with it but without the scalars they would be zeros
    (out / JOURNAL).unlink()
    (out / SCALARS_FILE).unlink()
    return {"rows": rows, "max_sum_error": worst, "mean_entropy": entropy / rows if rows else 0.0}
