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

from advprior.predictors.tuning.schedule import learning_rate
from advprior.store.progress import Progress

Update = Callable[[torch.Tensor], None]


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
        ``step(batch, update) -> (sum over points, weight of points)``; calls ``update(loss)`` as often as it likes.
    validate : callable
        A row of figures on the validation points.
    score : callable
        Figure of such a row by which the best epoch is chosen: the least.
    epochs, patience : int
        ``patience`` epochs without a better score end the stage.
    limit_s : float, optional
        Seconds that its epochs may take; one that would take longer ends there, and validation decides as ever.
    planned : int, optional
        Epochs that the learning rate falls over, where the stage makes fewer.
    to_beat : float
        Score of the weights that the stage starts from: unless an epoch beats it, they come back.
    """

    name: str
    measure: str
    step: Callable[[int, Update], tuple[float, float]]
    validate: Callable[[], dict[str, float]]
    score: Callable[[dict[str, Any]], float]
    epochs: int
    patience: int
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
    batches: int,
    seed: int,
    checkpoint: Path,
) -> Course:
    """Run a stage, or go on with it after the last whole epoch in ``checkpoint``; leaves the best weights in ``tuned``.

    Parameters
    ----------
    stage : Stage
    optimizer : Optimizer
        Over ``tuned``; its learning rates are the peaks of the schedule.
    tuned : dict of parameters
    batches : int
        Number of batches in an epoch.
    seed : int
    checkpoint : Path
        File that is written after each epoch and stays when the stage is over: the caller removes it.
    """
    state = _State(Course(), stage.to_beat, copy_of(tuned), np.random.default_rng(seed))
    torch.manual_seed(seed)
    schedule = _Schedule(optimizer, (stage.planned or stage.epochs) * batches)
    if checkpoint.is_file():
        state.resume(checkpoint, tuned, optimizer)
    course = state.course
    first, total = len(course.curve), stage.epochs * batches
    started = time.monotonic() - sum(row["seconds"] for row in course.curve)

    def late() -> bool:
        return stage.limit_s is not None and time.monotonic() - started > stage.limit_s

    with Progress(total, stage.name, "batch", initial=first * batches) as progress:
        for epoch in range(first, stage.epochs):
            if epoch and (late() or epoch - course.best_epoch >= stage.patience):
                break
            clock, measured, weight_sum = time.monotonic(), 0.0, 0.0
            for step, batch in enumerate(state.rng.permutation(batches)):
                if step and late():
                    break
                schedule.set(epoch * batches + step + 1)
                value, weight = stage.step(int(batch), schedule.update)
                progress.update()
                measured += value
                weight_sum += weight
            row: dict[str, Any] = {"epoch": epoch + 1, stage.measure: measured / max(weight_sum, 1e-9)}
            row |= stage.validate()
            row["seconds"] = round(time.monotonic() - clock, 1)
            progress.note(**{k: v for k, v in row.items() if k in (stage.measure, "valid_nll")})
            state.take(row, stage.score(row), tuned)
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
    """

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int) -> None:
        self._optimizer, self._steps = optimizer, steps
        self._peaks = [float(group["lr"]) for group in optimizer.param_groups]
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def set(self, step: int) -> None:
        """Set the rates for a step, from 1 on."""
        share = learning_rate(step / self._steps)
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * share

    def update(self, loss: torch.Tensor) -> None:
        """Make a step."""
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()


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
                "state": copy_of(tuned),
                "optimizer": optimizer.state_dict(),
                "curve": [{name: _plain(value) for name, value in row.items()} for row in self.course.curve],
                "best": float(self.score),
                "best_epoch": self.course.best_epoch,
                "kept": self.best,
                "rng": self.rng.bit_generator.state,
                "torch_rng": torch.get_rng_state(),
            },
        )

    def resume(self, checkpoint: Path, tuned: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        """Go on from what `save` wrote."""
        saved = torch.load(checkpoint, weights_only=True)
        restore(tuned, saved["state"])
        optimizer.load_state_dict(saved["optimizer"])
        self.course, self.score, self.best = Course(saved["curve"], saved["best_epoch"]), saved["best"], saved["kept"]
        self.rng.bit_generator.state = saved["rng"]
        torch.set_rng_state(saved["torch_rng"])


def _plain(value: Any) -> Any:
    """A number as Python has it: a checkpoint holds tensors and plain values, nothing that runs code when read."""
    return value.item() if isinstance(value, np.generic) else value


def copy_of(tuned: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """Values as they are now."""
    return {name: parameter.detach().clone() for name, parameter in tuned.items()}


def restore(tuned: dict[str, nn.Parameter], state: dict[str, torch.Tensor]) -> None:
    """Put values back that `copy_of` kept."""
    with torch.no_grad():
        for name, parameter in tuned.items():
            parameter.copy_(state[name])


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write whole or not at all."""
    beside = path.with_suffix(".tmp")
    torch.save(content, beside)
    beside.replace(path)
