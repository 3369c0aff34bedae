"""Users in shards, each written to its own place and then noted as done: what an interrupt costs is one of them.

Users with the same prompt lie in one shard and share one forward; what changes for everyone (habit, drift) is added
after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from advprior.history.everyone import Everyone
from advprior.pipeline.score_carried import Carried
from advprior.pipeline.score_files import ScoreFiles
from advprior.predictors.base import NetworkScorer, Scorer
from advprior.predictors.forwarding import Forwarded, Forwarder, Job
from advprior.predictors.logit import add_offset
from advprior.store.arrays import Bool, Float, Int
from advprior.store.errors import AdvpriorError
from advprior.store.matrix import Matrix
from advprior.store.progress import Progress

SHARD_USERS = 32  # users a shard at least, where a CPU forwards a network: some seconds
SHARDS = 2_000  # and shards a run at most, by default
SHARD_BYTES = 64 << 20  # of results a shard elsewhere: what a GPU, or a predictor without a network, has in seconds
MOST_USERS = 16_384  # and users of it, whatever a row is
BLOCK_BYTES = 32 << 20  # of log-probs held at once
STATE_NUMBERS = 1_024  # of a state behind the network, roughly
SHARED_BLOCKS = 64  # shards' worth of users with the same prompt that stay together


@dataclass(frozen=True)
class Scoring:
    """Who is scored, by whom, and where it goes.

    Attributes
    ----------
    scorer : Scorer
    everyone : Everyone
    cutoffs : int64 [S]
    files : ScoreFiles
    carried : Carried, optional
        Earlier network parts.
    """

    scorer: Scorer
    everyone: Everyone
    cutoffs: Int
    files: ScoreFiles
    carried: Carried | None = None

    @property
    def network(self) -> NetworkScorer | None:
        return self.scorer if isinstance(self.scorer, NetworkScorer) else None

    @property
    def block_users(self) -> int:
        """Users whose log-probs fit `BLOCK_BYTES`."""
        return max(1, BLOCK_BYTES // self._user_bytes)

    @property
    def shard_users(self) -> int:
        """Users a shard by default: what an interrupt costs is some seconds."""
        if self.network is not None and not self.network.on_gpu:
            return max(SHARD_USERS, -(-len(self.everyone) // SHARDS))
        return min(max(SHARD_USERS, SHARD_BYTES // self._user_bytes), MOST_USERS)

    @property
    def _user_bytes(self) -> int:
        """Of one user's rows in memory: all advertisers, or the K likeliest and the states that they come from."""
        width = self.files.size
        if self.scorer.same_for_all and self.files.k is not None:
            width = min(width, 3 * self.files.k)
        if self.network is not None and self.network.answers_states and self.files.k is not None:
            width = min(width, 3 * self.files.k + STATE_NUMBERS)
        return max(4 * len(self.cutoffs) * width, 1)


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


def score_shards(scoring: Scoring, forwarder: Forwarder, shard_users: int | None = None) -> dict[str, Any]:
    """Score what the journal does not name yet; what was counted on the way.

    Returns
    -------
    dict
        ``prompts``, ``forwarded``, ``carried``, ``max_sum_error``.
    """
    network, users, journal = scoring.network, len(scoring.everyone), scoring.files.journal
    last = int(scoring.cutoffs[-1])
    alike = np.arange(users, dtype=np.uint64)
    if network:
        alike = np.concatenate([alike[:0], *(network.alike(block, last) for block in scoring.everyone.blocks())])
    shards = plan_shards(alike, scoring.files.shard_users(shard_users or scoring.shard_users))
    # what the network says of a shard is forwarded once for all who share it; else a block at a time
    jobs = _jobs(shards, set(journal.done), scoring.carried, None if network else scoring.block_users)
    counts: dict[str, float] = {}
    description = f"score on {scoring.scorer.provider}"
    with Progress(len(shards), description, "shard", initial=len(journal.done)) as progress:
        for job, result in forwarder(jobs):
            counts = counts or {"max_sum_error": 0.0, "prompts": 0, "forwarded": 0, "carried": 0}
            _write_job(scoring, job, result, counts)
            if job.last:
                for file in scoring.files.all:
                    file.sync()
                journal.add(job.shard, counts)
                counts = {}
                progress.update()
            result = None  # let go of before the next one is computed
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


def _jobs(shards: list[Int], done: set[int], carried: Carried | None, step: int | None) -> Iterator[Job]:
    """What is left to score: a shard a job, or blocks of ``step`` users of it."""
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


def _write_job(scoring: Scoring, job: Job, result: Forwarded | None, counts: dict[str, float]) -> None:
    """Write what one job gave, and add to the counts of its shard."""
    files = scoring.files
    if scoring.network is None:
        assert result is not None
        worst = files.write(job.users, result.log_probs, result.index)
    else:
        worst = _write_network(scoring, scoring.network, job, result)
        counts["carried"] += len(job.users) - len(job.fresh)
    counts["max_sum_error"] = max(counts["max_sum_error"], worst)
    if result is not None:
        counts["prompts"] += result.prompts
        counts["forwarded"] += result.forwarded


def _write_network(scoring: Scoring, scorer: NetworkScorer, job: Job, result: Forwarded | None) -> float:
    """Write one shard: what was forwarded, what is carried over, and what changes with time on top of both."""
    files, carried, shard, step = scoring.files, scoring.carried, job.users, scoring.block_users
    fresh = np.isin(shard, job.fresh)
    place = np.cumsum(fresh) - 1  # row of a forwarded user in ``result.index``
    worst = 0.0
    for start in range(0, len(shard), step):
        block, is_fresh = shard[start : start + step], fresh[start : start + step]
        rows = _Rows(
            is_fresh,
            None if result is None else result.index[place[start : start + step][is_fresh]],
            None if carried is None else carried.rows[block[~is_fresh]],
        )
        network = rows.take(result.log_probs if result else None, carried.network if carried else None)
        if files.network is not None:
            files.network.write(block, network[:, -1])
        if files.interests is not None:
            interests = rows.take(result.interests if result else None, carried.interests if carried else None)
            files.write_interests(block, interests)
        histories, local = scoring.everyone.of(block)
        if scorer.answers_states and files.k is not None:
            top = scorer.likeliest(network, histories, local, scoring.cutoffs, files.k)
            worst = max(worst, files.write_top(block, top))
            continue
        offset = scorer.offset(histories, local, scoring.cutoffs)
        worst = max(worst, files.write(block, add_offset(network, offset)))
    return worst


@dataclass(frozen=True)
class _Rows:
    """Where each user of a block finds the network's answers.

    Attributes
    ----------
    is_fresh : bool [n]
        Who was forwarded; the others' answers are carried over.
    forwarded : int64 [f, S], optional
        Rows of the forwards' answers.
    carried : int64 [n - f, S], optional
        Rows of earlier answers.
    """

    is_fresh: Bool
    forwarded: Int | None
    carried: Int | None

    def take(self, forwarded: Float | None, carried: Matrix | None) -> Float:
        """Answers [n, S, N] of all users from those of the forwards [D, N] and the earlier ones [U0, N]."""
        parts = [
            (mask, values[rows])
            for mask, values, rows in (
                (self.is_fresh, forwarded, self.forwarded),
                (~self.is_fresh, carried, self.carried),
            )
            if values is not None and rows is not None and mask.any()
        ]
        out = np.empty((len(self.is_fresh), *parts[0][1].shape[1:]), np.float32)
        for mask, values in parts:
            out[mask] = values
        return out
