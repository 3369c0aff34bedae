"""The expensive part of scoring, one job at a time: here or on a cluster, by the same function.

Who scores hands out jobs and writes what comes back; it does not know where a job ran.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from queue import SimpleQueue
from typing import Any

import numpy as np

from advprior.history.histories import Histories
from advprior.predictors.base import NetworkScorer, Scorer
from advprior.store.arrays import Float, Int


@dataclass(frozen=True)
class Job:
    """Users to score together.

    Attributes
    ----------
    shard : int
    users : int64 [n]
        Whose rows are written.
    fresh : int64 [f]
        Who of them is forwarded; the others' priors are carried over.
    last : bool
        Whether the shard is whole after it.
    """

    shard: int
    users: Int
    fresh: Int
    last: bool = True


@dataclass(frozen=True)
class Forwarded:
    """Result of one job.

    Attributes
    ----------
    log_probs : float32 [D, N]
        Distinct rows: the network's own where the scorer is a `NetworkScorer` (its states, where it answers with
        them), else priors.
    index : int64 [f, S]
        Which of them each forwarded user and cut-off takes.
    prompts, forwarded : int
        Prompts that were asked for, and those that were distinct.
    interests : float32 [D, C], optional
        Of the same rows, where the network answers for product categories too.
    """

    log_probs: Float
    index: Int
    prompts: int = 0
    forwarded: int = 0
    interests: Float | None = None


#: Runs jobs in any order and anywhere, and hands results back in the order of the jobs; None: nobody to forward.
Forwarder = Callable[[Iterable[Job]], Iterator[tuple[Job, Forwarded | None]]]


def forward(scorer: Scorer, histories: Histories, users: Int, cutoffs: Int) -> Forwarded:
    """One job, in this process."""
    return _forward(scorer, histories, users, cutoffs, _prepare(scorer, histories, users, cutoffs))


def _prepare(scorer: Scorer, histories: Histories, users: Int, cutoffs: Int) -> Any:
    return scorer.prepare(histories, users, cutoffs) if isinstance(scorer, NetworkScorer) else None


def _forward(scorer: Scorer, histories: Histories, users: Int, cutoffs: Int, prepared: Any) -> Forwarded:
    if isinstance(scorer, NetworkScorer):
        part = scorer.forward(prepared)
        return Forwarded(part.log_probs, part.index, part.prompts, part.forwarded, part.interests)
    if scorer.same_for_all:
        one = scorer.score(histories, users[:1], cutoffs)[0]
        return Forwarded(one, np.tile(np.arange(len(cutoffs), dtype=np.int64), (len(users), 1)))
    log_probs = scorer.score(histories, users, cutoffs)
    rows = np.arange(log_probs.shape[0] * log_probs.shape[1], dtype=np.int64).reshape(log_probs.shape[:2])
    return Forwarded(log_probs.reshape(-1, log_probs.shape[-1]), rows)


def here(scorer: Scorer, histories: Histories, cutoffs: Int, *others: Scorer) -> Forwarder:
    """Jobs in this process: while one is forwarded, the next one's prompts are made and the last one's rows written.

    Parameters
    ----------
    scorer : Scorer
    histories, cutoffs
    others : Scorer
        The same model on other devices: each takes the next job when it is free.
    """
    scorers = (scorer, *others)

    def run(jobs: Iterable[Job]) -> Iterator[tuple[Job, Forwarded | None]]:
        free: SimpleQueue[Scorer] = SimpleQueue()
        for one in scorers:
            free.put(one)

        def work(users: Int, prepared: Future[Any]) -> Forwarded:
            ready = prepared.result()
            mine = free.get()
            try:
                return _forward(mine, histories, users, cutoffs, ready)
            finally:
                free.put(mine)

        rest = iter(jobs)
        under_way: deque[tuple[Job, Future[Forwarded] | None]] = deque()
        makers = ThreadPoolExecutor(1, thread_name_prefix="prompts")
        devices = ThreadPoolExecutor(len(scorers), thread_name_prefix="device")
        try:
            while True:
                for job in islice(rest, len(scorers) + 1 - len(under_way)):
                    begun = None
                    if len(job.fresh):
                        ready = makers.submit(_prepare, scorer, histories, job.fresh, cutoffs)
                        begun = devices.submit(work, job.fresh, ready)
                    under_way.append((job, begun))
                if not under_way:
                    return
                job, begun = under_way.popleft()
                yield job, None if begun is None else begun.result()
        finally:
            for one in scorers:
                one.stop()
            makers.shutdown(cancel_futures=True)
            devices.shutdown(cancel_futures=True)
            for one in scorers:
                one.stop(False)

    return run
