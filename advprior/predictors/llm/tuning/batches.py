"""Batches of windows for tuning: alike in length, with frozen layers computed once, answered at their points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from advprior.history.targets import Targets
from advprior.predictors.deadline import Deadline
from advprior.predictors.llm.tuning.heads import NameHead
from advprior.predictors.llm.tuning.model import AdvertiserModel
from advprior.predictors.llm.tuning.points import WindowPoints
from advprior.predictors.starts import Nothing, Start
from advprior.runtime.batching import length_batches, padded
from advprior.store.arrays import Bool, Float, Int
from advprior.store.progress import Progress

CACHE_LIMIT_BYTES = 3 << 30  # cached lower states beyond this are recomputed batch by batch
LOWER_TOKENS = 2048  # padded tokens that frozen layers read at once
Which = Literal["train", "valid", "no_history"]


@dataclass
class Answer:
    """What the network says at P points of a batch, and what was true.

    Attributes
    ----------
    log_probs, truth : float32 [P, N]
    interests, interest_truth : float32 [P, C]
        C = 0 without a second head.
    weight : float32 [P]
    """

    log_probs: torch.Tensor
    truth: torch.Tensor
    interests: torch.Tensor
    interest_truth: torch.Tensor
    weight: torch.Tensor


class TrainingBatches:
    """Length-sorted batches of windows, and the network's answers at their points.

    Parameters
    ----------
    model : AdvertiserModel
        Its own heads are not used.
    head : NameHead
    interest_head : NameHead, optional
    points : list of WindowPoints
    budget : int
        Padded tokens in one batch (one window at least).
    deadline : Deadline, optional
        By which frozen layers must have read everything.

    Attributes
    ----------
    order : list of int
        Points as the batches take them.
    starts : dict of Which to Start
        What the logits start from, by the kind of point: zero until it is set.
    """

    def __init__(
        self,
        model: AdvertiserModel,
        head: NameHead,
        interest_head: NameHead | None,
        points: list[WindowPoints],
        budget: int,
        deadline: Deadline | None = None,
    ) -> None:
        self.model, self.head, self.interest_head = model, head, interest_head
        self._points = points
        size = int(model.config.catalog_size)
        self.starts: dict[Which, Start] = {"train": Nothing(size), "valid": Nothing(size), "no_history": Nothing(size)}
        self._batches = [part.tolist() for part in length_batches([len(p.window.ids) for p in points], budget)]
        self.order = [i for batch in self._batches for i in batch]
        # without frozen layers the lower part is a table: nothing to keep
        keep = model.config.frozen_layers > 0
        self._states = _LowerStates(model, [p.window.ids for p in points], deadline or Deadline(), keep=keep)

    def __len__(self) -> int:
        return len(self._batches)

    def answer(self, batch: int, which: Which) -> Answer | None:
        """Answers at the points of one kind in a batch, None where it has no such point."""
        indices = [i for i in self._batches[batch] if getattr(self._points[i], which).any()]
        if not indices:
            return None
        part = [self._points[i] for i in indices]
        chosen = [getattr(p, which) for p in part]

        def taken(what: str) -> torch.Tensor:
            values = joined([getattr(p, what) for p in part], chosen)
            return torch.from_numpy(values.dense() if isinstance(values, Targets) else values)

        picked = self._states_at(indices, [p.positions[m] for p, m in zip(part, chosen, strict=True)])
        interest_truth = taken("interests")
        interests = (
            self.interest_head(picked, torch.zeros(())) if self.interest_head is not None else interest_truth[:, :0]
        )
        offset = torch.from_numpy(self._start(part, chosen, which))
        return Answer(self.head(picked, offset), taken("truth"), interests, interest_truth, taken("weight"))

    def _start(self, part: list[WindowPoints], chosen: list[Bool], which: Which) -> Float:
        """What the logits of some points of some windows start from [P, N]."""
        user = np.repeat([p.user for p in part], [int(mask.sum()) for mask in chosen])
        moment, end = (joined([getattr(p, of) for p in part], chosen) for of in ("moments", "ends"))
        return self.starts[which](user, moment, end)

    def _states_at(self, indices: list[int], positions: list[Int]) -> torch.Tensor:
        """Final states at some positions of some windows, one window after another; tokens after them are left out."""
        ids = [self._points[i].window.ids[: at.max() + 1] for i, at in zip(indices, positions, strict=True)]
        input_ids = padded(ids)
        row = np.repeat(np.arange(len(ids)), [len(at) for at in positions])
        rows, index = np.unique(row * input_ids.shape[1] + np.concatenate(positions), return_inverse=True)
        lower = self._states.batch(indices, ids)
        states = self.model.states_at(lower, torch.from_numpy(input_ids), torch.from_numpy(rows))
        return states[torch.from_numpy(index)]

    def validate(self, which: Which = "valid") -> tuple[Float, Float]:
        """Log-probs [V, N] and [V, C] of all validation points, in the order of `valid`."""
        was = self.model.training
        self.model.eval()
        with torch.no_grad():
            answers = [a for b in range(len(self)) if (a := self.answer(b, which)) is not None]
        self.model.train(was)
        return (
            np.concatenate([a.log_probs.numpy() for a in answers]),
            np.concatenate([a.interests.numpy() for a in answers]),
        )

    def valid(self, what: str, which: Which = "valid") -> Any:
        """Validation points' truth or interests (targets), or another of their columns, in the order of `validate`."""
        points = [self._points[i] for i in self.order]
        return joined([getattr(p, what) for p in points], [getattr(p, which) for p in points])

    def valid_start(self, which: Which = "valid") -> Float:
        """What the logits of validation points start from [V, N], in the order of `validate`."""
        points = [p for i in self.order if getattr(p := self._points[i], which).any()]
        return self._start(points, [getattr(p, which) for p in points], which)


def joined(columns: list[Any], chosen: list[Bool]) -> Any:
    """Some rows of arrays, or of targets, one after another."""
    if isinstance(columns[0], Targets):
        return Targets.joined([column.take(mask) for column, mask in zip(columns, chosen, strict=True)])
    return np.concatenate([column[mask] for column, mask in zip(columns, chosen, strict=True)])


def share_loss(log_probs: torch.Tensor, truth: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood over points, summed; a point's targets share it.

    Each point weighs the same, however many targets it has: events at one time are one decision.
    """
    share = truth / truth.sum(1, keepdim=True).clamp(min=1.0)
    return -(weight[:, None] * share * log_probs).sum()


class _LowerStates:
    """Frozen layers' output by window, computed once, or every time where it would not fit."""

    def __init__(self, model: AdvertiserModel, windows: list[Int], deadline: Deadline, *, keep: bool) -> None:
        self._model = model
        size = sum(map(len, windows)) * int(model.config.decoder().hidden_size) * 4
        self._states: dict[int, torch.Tensor] | None = {} if keep and size <= CACHE_LIMIT_BYTES else None
        if self._states is None:
            return
        parts = length_batches([len(ids) for ids in windows], LOWER_TOKENS)
        with Progress(len(parts), "frozen layers", "batch") as progress:
            for part in parts:
                states = self._compute([windows[i] for i in part])
                for row, i in enumerate(part.tolist()):
                    self._states[i] = states[row, : len(windows[i])].clone()
                progress.update()
                deadline.require(progress, "forwards of frozen layers")

    def _compute(self, windows: list[Int]) -> torch.Tensor:
        self._model.lower.eval()  # frozen: no dropout, whatever the upper part does
        with torch.no_grad():
            return self._model.lower_states(torch.from_numpy(padded(windows)), None)

    def batch(self, indices: list[int], windows: list[Int]) -> torch.Tensor:
        """Padded states [B, T, H] of windows, or of the starts of windows that are given."""
        if self._states is None:
            return self._compute(windows)
        states = [self._states[i][: len(ids)] for i, ids in zip(indices, windows, strict=True)]
        return nn.utils.rnn.pad_sequence(states, batch_first=True)
