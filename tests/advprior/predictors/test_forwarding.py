"""Jobs in this process: prompts ahead, devices side by side, results in order, and an end when nobody waits."""

from __future__ import annotations

from threading import Event, get_ident
from typing import Any

import numpy as np
import pytest

from advprior.predictors.base import NetworkPart, NetworkScorer
from advprior.predictors.forwarding import Job, here
from advprior.store.arrays import Float, Int


class Counting(NetworkScorer):
    """A network that gives back who it was asked for, and notes which thread asked."""

    provider = "CPU"

    def __init__(self, gate: Event | None = None) -> None:
        super().__init__()
        self.gate = gate
        self.made: list[int] = []
        self.threads: set[int] = set()

    def prepare(self, histories: Any, users: Int, cutoffs: Int) -> Int:
        self.made.append(int(users[0]))
        return users

    def forward(self, prepared: Int) -> NetworkPart:
        self.threads.add(get_ident())
        if self.gate is not None:
            self.gate.wait(10)
        if self.stopped:
            raise InterruptedError
        index = np.arange(len(prepared))[:, None]
        return NetworkPart(prepared[:, None].astype(np.float32), index, prompts=len(prepared), forwarded=1)

    def offset(self, histories: Any, users: Int, cutoffs: Int) -> Float:
        return np.zeros((len(users), len(cutoffs), 1), np.float32)


def _jobs(count: int) -> list[Job]:
    users = [np.arange(3 * i, 3 * i + 3) for i in range(count)]
    return [Job(i, u, u if i % 5 else u[:0]) for i, u in enumerate(users)]


@pytest.mark.parametrize("devices", [1, 3])
def test_results_come_in_order_from_any_number_of_devices(devices: int) -> None:
    scorers = [Counting() for _ in range(devices)]
    jobs, results = _jobs(23), []
    for job, result in here(scorers[0], None, np.zeros(1, np.int64), *scorers[1:])(iter(jobs)):  # type: ignore[arg-type]
        results.append(job.shard)
        if job.shard % 5 == 0:
            assert result is None  # nobody to forward
        else:
            assert result is not None
            assert result.log_probs[:, 0].tolist() == job.users.tolist()
            assert (result.prompts, result.forwarded) == (3, 1)
    assert results == list(range(23))
    assert scorers[0].made == [3 * i for i in range(23) if i % 5]  # one makes the prompts of all, in order
    assert len(set.union(*(s.threads for s in scorers))) <= devices


def test_no_more_is_begun_than_is_written_soon_and_a_reader_that_leaves_stops_the_rest() -> None:
    gate = Event()
    scorer = Counting(gate)
    jobs = [job for job in _jobs(40) if len(job.fresh)]
    gate.set()
    results: Any = here(scorer, None, np.zeros(1, np.int64))(iter(jobs))  # type: ignore[arg-type]
    next(results)
    assert len(scorer.made) <= 3
    results.close()
    assert not scorer.stopped  # and it may be used again
    assert next(here(scorer, None, np.zeros(1, np.int64))(iter(jobs)))[1] is not None  # type: ignore[arg-type]


def test_an_error_on_a_device_reaches_the_reader() -> None:
    scorer = Counting()
    scorer.stopped = True
    with pytest.raises(InterruptedError):
        list(here(scorer, None, np.zeros(1, np.int64))(iter(_jobs(5))))  # type: ignore[arg-type]
