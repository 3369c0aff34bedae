"""One loop for every stage of tuning: epochs over shuffled batches, the best one kept, resumable after each.

A stage says what a step is and how validation is scored; the learning-rate schedule, early stopping, the
checkpoint and the curve are the same for all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from advprior.predictors.tuning.compute import Compute
from advprior.predictors.tuning.schedule import learning_rate
from advprior.store.progress import Progress

#: ``update(sum over points of the loss, their weight)`` makes one step of the optimizer
Update = Callable[[torch.Tensor, torch.Tensor], None]
Measured = tuple[float | torch.Tensor, float | torch.Tensor]


@dataclass
class Stage:
    """What a stage of tuning is.

    Attributes
    ----------
    name : str
        For the progress bar.
    measure : str
        What a step returns, as named in the curve: ``train_nll``, ``train_reward``.
    step : callable
        ``step(batch, update) -> (sum over points, weight of points)``; calls ``update`` ``updates`` times, or never.
    validate : callable
        A row of figures on the validation points.
    score : callable
        Figure of such a row by which the best epoch is chosen: the least.
    batches : int
        Number of batches in an epoch.
    epochs, patience : int
        ``patience`` epochs without a better score end the stage.
    updates : int
        Of a step that has points.
    limit_s : float, optional
        Seconds that its epochs may take; one that would take longer ends there, and validation decides as ever.
    planned : int, optional
        Epochs that the learning rate falls over, where the stage makes fewer.
    to_beat : float
        Score of the weights that the stage starts from: unless an epoch beats it, they come back.
    """

    name: str
    measure: str
    step: Callable[[int, Update], Measured]
    validate: Callable[[], dict[str, float]]
    score: Callable[[dict[str, Any]], float]
    batches: int
    epochs: int
    patience: int
    updates: int = 1
    limit_s: float | None = None
    planned: int | None = None
    to_beat: float = float("inf")


@dataclass
class Course:
    """How a stage went.

    Attributes
    ----------
    curve : list of dict
        One row an epoch.
    best_epoch : int
        The epoch whose weights were kept; 0: none beat what was there before.
    late : bool
        Whether its time ended it.
    """

    curve: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    late: bool = False


def run_stage(
    stage: Stage,
    optimizer: torch.optim.Optimizer,
    tuned: dict[str, nn.Parameter],
    seed: int,
    checkpoint: Path,
    compute: Compute,
) -> Course:
    """Run a stage, or go on with it after the last whole epoch in ``checkpoint``; leaves the best weights in ``tuned``.

    Parameters
    ----------
    stage : Stage
    optimizer : Optimizer
        Over ``tuned``; its learning rates are the peaks of the schedule.
    tuned : dict of parameters
    seed : int
    checkpoint : Path
        File that is written after each epoch and stays when the stage is over: the caller removes it. It may come from
        another device.
    compute : Compute
        Of several processes each takes its share of the batches, and a step is of one batch of each: the gradients of
        as many batches at once, as if they were one.
    """
    state = _State(Course(), stage.to_beat, copy_of(tuned), np.random.default_rng(seed))
    torch.manual_seed(seed)
    rounds = -(-stage.batches // compute.processes)
    schedule = _Schedule(optimizer, (stage.planned or stage.epochs) * rounds, compute)
    saved = compute.from_main(read_checkpoint(checkpoint) if compute.main else None)
    if saved is not None:
        state.resume(saved, tuned, optimizer)
    course = state.course
    first = len(course.curve)
    started = time.monotonic() - sum(row["seconds"] for row in course.curve)

    def late() -> bool:
        return stage.limit_s is not None and compute.any(time.monotonic() - started > stage.limit_s)

    with Progress(stage.epochs * rounds, stage.name, "batch", initial=first * rounds) as progress:
        for epoch in range(first, stage.epochs):
            if epoch and (late() or epoch - course.best_epoch >= stage.patience):
                break
            clock, sums = time.monotonic(), torch.zeros(2, dtype=torch.float64, device=compute.device)
            order = state.rng.permutation(stage.batches)
            for step in range(rounds):
                if step and late():
                    break
                schedule.start(epoch * rounds + step + 1)
                own = order[step * compute.processes + compute.process :][:1]
                for batch in own:  # none, where the last round has fewer batches than processes
                    for i, figure in enumerate(stage.step(int(batch), schedule.update)):
                        sums[i] += figure
                schedule.end(stage.updates)
                progress.update()
            measured, weight = compute.total(sums).tolist()
            row: dict[str, Any] = {"epoch": epoch + 1, stage.measure: measured / max(weight, 1e-9)}
            row |= stage.validate()
            row["seconds"] = round(time.monotonic() - clock, 1)
            progress.note(**{k: v for k, v in row.items() if k in (stage.measure, "valid_nll")})
            state.take(row, stage.score(row), tuned)
            if compute.main:
                state.save(checkpoint, tuned, optimizer)
        course.late = late()
    restore(tuned, state.best)
    return course


class _Schedule:
    """Steps of the optimizer at the learning rates of the schedule.

    Parameters
    ----------
    optimizer : Optimizer
        Its learning rates are the peaks.
    steps : int
        Over which they fall.
    compute : Compute
    """

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int, compute: Compute) -> None:
        self._optimizer, self._steps, self._compute = optimizer, steps, compute
        self._made = 0
        self._peaks = [float(group["lr"]) for group in optimizer.param_groups]
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def start(self, step: int) -> None:
        """Set the rates for a step, from 1 on."""
        self._made = 0
        share = learning_rate(step / self._steps)
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * share

    def update(self, loss: torch.Tensor | None, weight: torch.Tensor) -> None:
        """Make a step by the mean loss of all processes' points; without a loss it is theirs alone."""
        self._made += 1
        total = self._compute.total(weight)
        self._optimizer.zero_grad()
        if loss is not None:
            (loss / total).backward()  # type: ignore[no-untyped-call]
        if self._compute.processes > 1 and not self._share(total):
            return
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()

    def end(self, updates: int) -> None:
        """Take part in the updates of other processes, where this one's batch had no points or there was none left."""
        while self._compute.processes > 1 and self._made < updates:
            self.update(None, torch.zeros((), device=self._compute.device))

    def _share(self, total: torch.Tensor) -> bool:
        """Sum the gradients over processes; False where no process has points."""
        if not float(total):
            return False
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = self._compute.total(torch.cat([p.grad.flatten() for p in self._parameters if p.grad is not None]))
        sizes = [parameter.numel() for parameter in self._parameters]
        for parameter, part in zip(self._parameters, torch.split(flat, sizes), strict=True):
            parameter.grad = part.view_as(parameter)
        return True


@dataclass
class _State:
    """What a stage has come to after its last whole epoch.

    Attributes
    ----------
    course : Course
    score : float
        Of the best epoch so far.
    best : dict of Tensor
        Its weights.
    rng : Generator
        Of the order of batches.
    """

    course: Course
    score: float
    best: dict[str, torch.Tensor]
    rng: np.random.Generator

    def take(self, row: dict[str, Any], score: float, tuned: dict[str, nn.Parameter]) -> None:
        """Add an epoch, and keep its weights where it is the best."""
        self.course.curve.append(row)
        if score < self.score:
            self.score, self.best, self.course.best_epoch = score, copy_of(tuned), int(row["epoch"])

    def save(self, checkpoint: Path, tuned: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        """Write all that `resume` needs."""
        save_checkpoint(
            checkpoint,
            {
                # the same tensors where this epoch is the best: they are written once
                "state": self.best if self.course.best_epoch == len(self.course.curve) else copy_of(tuned),
                "optimizer": on_cpu(optimizer.state_dict()),
                "curve": [{name: _plain(value) for name, value in row.items()} for row in self.course.curve],
                "best": float(self.score),
                "best_epoch": self.course.best_epoch,
                "kept": self.best,
                "rng": self.rng.bit_generator.state,
                "torch_rng": torch.get_rng_state(),
            },
        )

    def resume(self, saved: dict[str, Any], tuned: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        """Go on from what `save` wrote."""
        restore(tuned, saved["state"])
        optimizer.load_state_dict(saved["optimizer"])
        self.course, self.score, self.best = Course(saved["curve"], saved["best_epoch"]), saved["best"], saved["kept"]
        self.rng.bit_generator.state = saved["rng"]
        torch.set_rng_state(saved["torch_rng"])


def _plain(value: Any) -> Any:
    """A number as Python has it: a checkpoint holds tensors and plain values, nothing that runs code when read."""
    return value.item() if isinstance(value, np.generic) else value


def copy_of(tuned: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """Values as they are now, on the CPU."""
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in tuned.items()}


def on_cpu(value: Any) -> Any:
    """The same with every tensor within on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {name: on_cpu(part) for name, part in value.items()}
    return [on_cpu(part) for part in value] if isinstance(value, list) else value


def restore(tuned: dict[str, nn.Parameter], state: dict[str, torch.Tensor]) -> None:
    """Put values back that `copy_of` kept."""
    with torch.no_grad():
        for name, parameter in tuned.items():
            parameter.copy_(state[name])


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """What `save_checkpoint` wrote, on the CPU, whichever device it comes from; None where nothing was written."""
    if not path.is_file():
        return None
    content: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    return content


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write whole or not at all."""
    beside = path.with_suffix(".tmp")
    torch.save(content, beside)
    beside.replace(path)
