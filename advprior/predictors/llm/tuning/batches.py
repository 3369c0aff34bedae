"""Batches of windows for tuning: alike in length, with frozen layers computed once, answered at their points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from advprior.predictors.llm.prompts import Window
from advprior.predictors.llm.tuning.heads import NameHead
from advprior.predictors.llm.tuning.model import AdvertiserModel
from advprior.predictors.llm.tuning.points import Points
from advprior.runtime.batching import length_batches, pad_windows
from advprior.store.arrays import Float

CACHE_LIMIT_BYTES = 3 << 30  # cached lower states beyond this are recomputed batch by batch
Which = Literal["train", "valid"]


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
    points : list of Points
    budget : int
        Padded tokens in one batch (one window at least).

    Attributes
    ----------
    order : list of int
        Points as the batches take them.
    """

    def __init__(
        self, model: AdvertiserModel, head: NameHead, interest_head: NameHead | None, points: list[Points], budget: int
    ) -> None:
        self.model, self.head, self.interest_head = model, head, interest_head
        self._points = points
        self._batches = [part.tolist() for part in length_batches([len(p.window.ids) for p in points], budget)]
        self.order = order = [i for batch in self._batches for i in batch]
        # without frozen layers the lower part is a table: nothing to keep
        self._states = _LowerStates(
            model, [points[i].window for i in order], order, keep=model.config.frozen_layers > 0
        )

    def __len__(self) -> int:
        return len(self._batches)

    def answer(self, batch: int, which: Which) -> Answer | None:
        """Answers at the training or validation points of a batch, None where it has no such point."""
        indices = self._batches[batch]
        part = [self._points[i] for i in indices]
        chosen = [getattr(p, which) for p in part]
        if not any(mask.any() for mask in chosen):
            return None
        windows = [p.window for p in part]
        ids, mask, _ = (torch.from_numpy(x) for x in pad_windows([(w.ids, w.positions) for w in windows]))
        states = self.model.upper_states(self._states.batch(indices, windows), ids, mask)
        row = np.concatenate([np.full(int(m.sum()), i) for i, m in enumerate(chosen)])
        position = np.concatenate([p.positions[m] for p, m in zip(part, chosen, strict=True)])

        def taken(what: str) -> torch.Tensor:
            return torch.from_numpy(np.concatenate([getattr(p, what)[m] for p, m in zip(part, chosen, strict=True)]))

        picked = states[torch.from_numpy(row), torch.from_numpy(position)]
        interest_truth = taken("interests")
        interests = (
            self.interest_head(picked, torch.zeros(())) if self.interest_head is not None else interest_truth[:, :0]
        )
        return Answer(self.head(picked, taken("offset")), taken("truth"), interests, interest_truth, taken("weight"))

    def validate(self) -> tuple[Float, Float]:
        """Log-probs [V, N] and [V, C] of all validation points, in the order of `truth`."""
        was = self.model.training
        self.model.eval()
        with torch.no_grad():
            answers = [a for b in range(len(self)) if (a := self.answer(b, "valid")) is not None]
        self.model.train(was)
        return (
            np.concatenate([a.log_probs.numpy() for a in answers]),
            np.concatenate([a.interests.numpy() for a in answers]),
        )

    def valid(self, what: str) -> Float:
        """Validation points' truth, offset or interests, in the order of `validate`."""
        points = [self._points[i] for i in self.order]
        found: Float = np.concatenate([getattr(p, what)[p.valid] for p in points])
        return found


def share_loss(log_probs: torch.Tensor, truth: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood over points, summed; a point's targets share it.

    Each point weighs the same, however much was bought: a big basket is one decision to shop.
    """
    share = truth / truth.sum(1, keepdim=True).clamp(min=1.0)
    return -(weight[:, None] * share * log_probs).sum()


class _LowerStates:
    """Frozen layers' output by window, computed once, or every time where it would not fit."""

    def __init__(self, model: AdvertiserModel, windows: list[Window], order: list[int], *, keep: bool) -> None:
        self._model = model
        size = sum(len(w.ids) for w in windows) * int(model.config.decoder().hidden_size) * 4
        self._states: dict[int, torch.Tensor] | None = {} if keep and size <= CACHE_LIMIT_BYTES else None
        if self._states is None:
            return
        for start in tqdm(range(0, len(windows), 4), desc="frozen layers", unit="batch", disable=None):
            chunk = windows[start : start + 4]
            states = self._compute(chunk)
            for row, window in enumerate(chunk):
                self._states[order[start + row]] = states[row, : len(window.ids)].clone()

    def _compute(self, windows: list[Window]) -> torch.Tensor:
        ids, mask, _ = (torch.from_numpy(x) for x in pad_windows([(w.ids, w.positions) for w in windows]))
        self._model.lower.eval()  # frozen: no dropout, whatever the upper part does
        with torch.no_grad():
            return self._model.lower_states(ids, mask)

    def batch(self, indices: list[int], windows: list[Window]) -> torch.Tensor:
        """Padded states [B, T, H]."""
        if self._states is None:
            return self._compute(windows)
        return nn.utils.rnn.pad_sequence([self._states[i] for i in indices], batch_first=True)
