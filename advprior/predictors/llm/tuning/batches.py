"""Batches of windows for tuning: alike in length, with frozen layers computed once, answered at their points."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
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
from advprior.predictors.starts import Logits, Nothing, Start
from advprior.predictors.tuning.compute import Compute, cache_place, to_device, tokens_at_once
from advprior.predictors.tuning.softmax import Sampler, WideBatch, wide_loss
from advprior.predictors.wide import Softmax
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
    softmax : {"full", "blockwise", "sampled"}
        How the likelihood of training points is taken; ``sampler`` draws for the last.
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
        self.softmax: Softmax = "full"
        self.sampler: Sampler | None = None
        self._device = head.free.device
        self.compute = Compute(self._device)
        self._batches = [part.tolist() for part in length_batches([len(p.window.ids) for p in points], budget)]
        self.order = [i for batch in self._batches for i in batch]
        # without frozen layers the lower part is a table: nothing to keep
        keep = model.config.frozen_layers > 0
        self._states = _LowerStates(model, [p.window.ids for p in points], deadline or Deadline(), keep=keep)

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def width(self) -> int:
        """Numbers of one point's answer: N advertisers and C interests."""
        interests = 0 if self.interest_head is None else self._points[0].interests.size
        return int(self.model.config.catalog_size) + int(interests)

    def count(self, which: Which) -> int:
        """Points of one kind, in all batches."""
        return sum(int(getattr(p, which).sum()) for p in self._points)

    def answer(self, batch: int, which: Which) -> Answer | None:
        """Answers at the points of one kind in a batch, None where it has no such point."""
        points = self._taken(batch, which)
        if points is None:
            return None
        picked = self._picked(points)
        interests, interest_truth = self._interests(points, picked)
        offset = to_device(points.start().at(), self._device)
        truth, weight = (to_device(values, self._device) for values in (points.truth.dense(), points.column("weight")))
        return Answer(self.head(picked, offset), truth, interests, interest_truth, weight)

    def losses(self, batch: int) -> Losses | None:
        """What a batch's training points cost, None where it has none; over a wide catalog without its array."""
        if self.softmax == "full":
            answer = self.answer(batch, "train")
            if answer is None:
                return None
            nll = share_loss(answer.log_probs, answer.truth, answer.weight)
            weight, of_interests = answer.weight, (answer.interests, answer.interest_truth)
        else:
            points = self._taken(batch, "train")
            if points is None:
                return None
            picked, of_points = self._picked(points), points.column("weight")
            wide = WideBatch(picked, points.start(), points.truth.shares().times(of_points))
            nll = wide_loss(wide, self.head, self.sampler)
            weight, of_interests = to_device(of_points, self._device), self._interests(points, picked)
        interests = share_loss(*of_interests, weight) if of_interests[0].shape[1] else None
        return Losses(nll, interests, weight.sum())

    def _taken(self, batch: int, which: Which) -> _Taken | None:
        """The points of one kind in a batch."""
        indices = [i for i in self._batches[batch] if getattr(self._points[i], which).any()]
        return _Taken([self._points[i] for i in indices], which, self.starts[which], indices) if indices else None

    def _picked(self, points: _Taken) -> torch.Tensor:
        """Final states [P, H] at some points."""
        # validation is of the float32 network that is exported, whatever it is learnt at
        with self.compute.autocast() if points.which == "train" else nullcontext():
            positions = [p.positions[m] for p, m in zip(points.part, points.chosen, strict=True)]
            picked = self._states_at(points.indices, positions)
        return picked.float()

    def _interests(self, points: _Taken, picked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs and truth of the interests at some points [P, C] each."""
        truth = to_device(points.column("interests").dense(), self._device)
        if self.interest_head is None:
            return truth[:, :0], truth
        return self.interest_head(picked, picked.new_zeros(())), truth

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
        with torch.no_grad(), self.head.collapsed():
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

    def valid_start(self, which: Which = "valid") -> Iterator[Float]:
        """What the logits of validation points start from [b, N], a batch's at a time, in the order of `validate`."""
        for batch in range(len(self)):
            points = self._taken(batch, which)
            if points is not None:
                yield points.start().at()


@dataclass(frozen=True)
class Losses:
    """What the training points of a batch cost, summed over points.

    Attributes
    ----------
    nll : Tensor
        Negative log-likelihood of the advertisers.
    interests : Tensor, optional
        That of the interests, where they have a head.
    weight : Tensor
        Of the points.
    """

    nll: torch.Tensor
    interests: torch.Tensor | None
    weight: torch.Tensor


@dataclass(frozen=True)
class _Taken:
    """Points of one kind in some windows."""

    part: list[WindowPoints]
    which: Which
    from_start: Start
    indices: list[int]

    @property
    def chosen(self) -> list[Bool]:
        """Which points of each window."""
        return [getattr(p, self.which) for p in self.part]

    @property
    def truth(self) -> Targets:
        """Advertisers turned to."""
        targets: Targets = self.column("truth")
        return targets

    def column(self, what: str) -> Any:
        """A column of `WindowPoints` at these points."""
        return joined([getattr(p, what) for p in self.part], self.chosen)

    def start(self) -> Logits:
        """What their logits start from."""
        user = np.repeat([p.user for p in self.part], [int(mask.sum()) for mask in self.chosen])
        return self.from_start.logits(user, self.column("moments"), self.column("ends"))


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
