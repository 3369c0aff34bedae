"""Batches of windows for tuning: alike in length, with frozen layers computed once, answered at their points."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, fields
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
from advprior.predictors.tuning.compute import Compute, cache_place, to_device, tokens_at_once
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
        All of them on the network's device.
    """

    log_probs: torch.Tensor
    truth: torch.Tensor
    interests: torch.Tensor
    interest_truth: torch.Tensor
    weight: torch.Tensor

    def on_cpu(self) -> Answer:
        """The same, out of a card's memory."""
        return Answer(*(getattr(self, field.name).cpu() for field in fields(self)))


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
    compute : Compute
        Forwards that are learnt from take its precision, and validation is shared among its processes.
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
        self._device = head.free.device
        self.compute = Compute(self._device)
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
            return to_device(values.dense() if isinstance(values, Targets) else values, self._device)

        # validation is of the float32 network that is exported, whatever it is learnt at
        with self.compute.autocast() if which == "train" else nullcontext():
            picked = self._states_at(indices, [p.positions[m] for p, m in zip(part, chosen, strict=True)])
        picked = picked.float()
        interest_truth = taken("interests")
        interests = interest_truth[:, :0]
        if self.interest_head is not None:
            interests = self.interest_head(picked, picked.new_zeros(()))
        offset = to_device(self._start(part, chosen, which), self._device)
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
        states = self.model.states_at(
            lower, to_device(input_ids, self._device), to_device(rows.astype(np.int64), self._device)
        )
        return states.index_select(0, to_device(index.astype(np.int64), self._device))

    def validate(self, which: Which = "valid") -> tuple[Float, Float]:
        """Log-probs [V, N] and [V, C] of all validation points, in the order of `valid`."""
        was = self.model.training
        self.model.eval()
        compute, parts = self.compute, []
        with torch.no_grad():
            for batch in range(compute.process, len(self), compute.processes):
                answer = self.answer(batch, which)
                outputs = () if answer is None else (answer.log_probs.cpu().numpy(), answer.interests.cpu().numpy())
                parts.append(outputs)
        self.model.train(was)
        answers = [outputs for outputs in compute.gathered(parts) if outputs]
        log_probs, interests = (np.concatenate(column) for column in zip(*answers, strict=True))
        return log_probs, interests

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
        self._device = model.adapter.weight.device
        size = sum(map(len, windows)) * int(model.config.decoder().hidden_size) * 4
        place = cache_place(size, self._device, CACHE_LIMIT_BYTES) if keep else None
        self._states: dict[int, torch.Tensor] | None = None
        if place is None:
            return
        self._states = {}
        parts = length_batches([len(ids) for ids in windows], tokens_at_once(LOWER_TOKENS, self._device))
        with Progress(len(parts), "frozen layers", "batch") as progress:
            for part in parts:
                states = self._compute([windows[i] for i in part])
                # pinned as a whole: pages of each window would take longer than its forward
                if place != self._device:
                    states = states.cpu().pin_memory()
                for row, i in enumerate(part.tolist()):
                    own = states[row, : len(windows[i])]
                    self._states[i] = own.clone() if place == self._device else own
                progress.update()
                deadline.require(progress, "forwards of frozen layers")

    def _compute(self, windows: list[Int]) -> torch.Tensor:
        self._model.lower.eval()  # frozen: no dropout, whatever the upper part does
        with torch.no_grad():
            return self._model.lower_states(to_device(padded(windows), self._device), None)

    def batch(self, indices: list[int], windows: list[Int]) -> torch.Tensor:
        """Padded states [B, T, H] of windows, or of the starts of windows that are given."""
        if self._states is None:
            return self._compute(windows)
        parts = [self._states[i][: len(ids)] for i, ids in zip(indices, windows, strict=True)]
        states = [part.to(self._device, non_blocking=True) for part in parts]
        return nn.utils.rnn.pad_sequence(states, batch_first=True)
