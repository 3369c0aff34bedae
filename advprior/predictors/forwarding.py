"""The expensive part of scoring, one job at a time: here or on a cluster, by the same function.

Who scores hands out jobs and writes what comes back; it does not know where a job ran.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

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
        Distinct rows: the network's own where the scorer is a `NetworkScorer`, else priors.
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
    if isinstance(scorer, NetworkScorer):
        before = (scorer.prompts, scorer.forwarded)
        part = scorer.network(histories, users, cutoffs)
        counts = scorer.prompts - before[0], scorer.forwarded - before[1]
        return Forwarded(part.log_probs, part.index, *counts, part.interests)
    log_probs = scorer.score(histories, users, cutoffs)
    rows = np.arange(log_probs.shape[0] * log_probs.shape[1], dtype=np.int64).reshape(log_probs.shape[:2])
    return Forwarded(log_probs.reshape(-1, log_probs.shape[-1]), rows)


def here(scorer: Scorer, histories: Histories, cutoffs: Int) -> Forwarder:
    """Jobs in this process, one after another."""

    def run(jobs: Iterable[Job]) -> Iterator[tuple[Job, Forwarded | None]]:
        for job in jobs:
            yield job, forward(scorer, histories, job.fresh, cutoffs) if len(job.fresh) else None

    return run
