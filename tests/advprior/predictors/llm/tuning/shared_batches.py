"""A stage on a line, run by each of two processes: `python -m tests.…shared_batches OUT`; see `test_processes`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from advprior.predictors.llm.tuning.loop import Stage, run_stage
from advprior.predictors.tuning.compute import Compute

BATCHES, EPOCHS, SEED = 5, 3, 4
EMPTY = 2  # a batch without points


def line_stage(out: Path, compute: Compute, taken: Callable[[int], list[int]], batches: int) -> dict[str, Any]:
    """Fit a line by batches of points, several of them at a time where ``taken`` says so."""
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(BATCHES, 6, 3)), dtype=torch.float32)
    y, weight = x.sum(-1) + 1, torch.tensor(rng.random((BATCHES, 6)), dtype=torch.float32)
    weight[EMPTY] = 0
    tuned = {"w": nn.Parameter(torch.zeros(3)), "unused": nn.Parameter(torch.ones(2))}

    def step(batch: int, update: Any) -> Any:
        some = [i for i in taken(batch) if i != EMPTY]
        if not some:
            return 0.0, 0.0
        loss, total = ((x[some] @ tuned["w"] - y[some]).square() * weight[some]).sum(), weight[some].sum()
        update(loss, total)
        return loss.detach(), total

    optimizer = torch.optim.AdamW([{"params": list(tuned.values()), "lr": 0.1}], betas=(0.9, 0.98))
    stage = Stage("line", "train_loss", step, lambda: {}, lambda row: -row["epoch"], batches, EPOCHS, EPOCHS)
    out.mkdir(exist_ok=True)
    course = run_stage(stage, optimizer, tuned, SEED, out / "line.pt", compute)
    return {"w": tuned["w"].detach(), "loss": [row["train_loss"] for row in course.curve]}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    compute = Compute.of()
    torch.save(line_stage(folder, compute, lambda batch: [batch], BATCHES), folder / f"{compute.process}.result")
