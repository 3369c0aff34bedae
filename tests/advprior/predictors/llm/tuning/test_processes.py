"""Several processes that share the batches of a stage learn what one learns from as many batches at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from advprior.predictors.tuning.compute import Compute
from tests.advprior.predictors.llm.tuning.shared_batches import BATCHES, EPOCHS, SEED, line_stage
from tests.ports import free_port

PROCESSES = 2


def test_two_processes_learn_from_two_batches_at_once(tmp_path: Path) -> None:
    """The last round has one batch alone, and one batch has no points; both end with the same weights."""
    module = "tests.advprior.predictors.llm.tuning.shared_batches"
    common = {"WORLD_SIZE": str(PROCESSES), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    jobs = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(tmp_path)],
            env={**os.environ, **common, "RANK": str(i), "LOCAL_RANK": str(i), "OMP_NUM_THREADS": "1"},
        )
        for i in range(PROCESSES)
    ]
    assert [job.wait() for job in jobs] == [0] * PROCESSES
    ours, other = (torch.load(tmp_path / f"{i}.result", weights_only=True) for i in range(PROCESSES))
    assert torch.equal(ours["w"], other["w"])
    assert ours["loss"] == other["loss"]

    rng = np.random.default_rng(SEED)
    orders = (rng.permutation(BATCHES) for _ in range(EPOCHS))
    pairs = iter([list(order[i : i + PROCESSES]) for order in orders for i in range(0, BATCHES, PROCESSES)])
    alone = line_stage(tmp_path / "none", Compute(torch.device("cpu")), lambda _: next(pairs), -(-BATCHES // PROCESSES))
    torch.testing.assert_close(ours["w"], alone["w"])
    np.testing.assert_allclose(ours["loss"], alone["loss"], rtol=1e-5)
