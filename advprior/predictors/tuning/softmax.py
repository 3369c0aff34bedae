"""Likelihood over a wide catalog without its [points, advertisers] array: block by block, or of a sample.

The negative log-likelihood of a point with logits z and targets t that count for v_t is ``Σ v·logZ − Σ_t v_t·z_t``.
Only ``Z = Σ exp(z)`` needs the whole catalog:

- **blockwise**: exact. ``log Z`` of one block of advertisers after another, each made again for its gradient.
- **sampled**: an unbiased Z. Advertisers that the batch's points turn to or have a cell of their own for (their habit)
  are taken for certain; each other one is drawn with its own probability π, and what it adds counts ``1 / π``: the
  log-Q correction of a sampled softmax (Bengio & Senécal 2008, "Adaptive importance sampling to accelerate training of
  a neural probabilistic language model"), with Horvitz and Thompson's weights. Half of the draws go by how often an
  advertiser is a target, half to all alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from advprior.history.targets import Targets
from advprior.predictors.starts import Logits
from advprior.store.arrays import Double, Float, Int

BLOCK = 8192  # advertisers of one block


class Output(Protocol):
    """The last layer of a network: one weight and, where it has one, one bias an advertiser."""

    def rows(self, columns: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weights [C, H] and biases [C] of some advertisers, or of all."""


@dataclass(frozen=True)
class WideBatch:
    """P points of one batch.

    Attributes
    ----------
    states : Tensor [P, H]
    start : Logits
        What their logits start from.
    truth : Targets
        What each target counts for, the point's weight included.
    """

    states: torch.Tensor
    start: Logits
    truth: Targets

    def tensor(self, values: Float | Double | Int) -> torch.Tensor:
        """Values on the device of the states."""
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.states.device)

    @property
    def totals(self) -> torch.Tensor:
        """What the targets of each point count for [P]."""
        return self.tensor(self.truth.totals.astype(np.float32))


def blockwise_loss(batch: WideBatch, output: Output, block: int = BLOCK) -> torch.Tensor:
    """Negative log-likelihood, summed over points; exact, with no more than a block of logits at a time."""
    weights, biases = output.rows()
    size = len(weights)
    columns = [np.arange(first, min(first + block, size)) for first in range(0, size, block)]
    # one split, not slices: the gradient of each slice would be of the whole catalog
    no_bias = [None] * len(columns)
    parts = zip(torch.split(weights, block), no_bias if biases is None else torch.split(biases, block), strict=True)
    norms = [
        checkpoint(_log_norm(batch, chosen), batch.states, weight, bias, use_reentrant=False)
        for chosen, (weight, bias) in zip(columns, parts, strict=True)
    ]
    log_norm = torch.logsumexp(torch.stack(norms), dim=0)
    point, index = batch.tensor(batch.truth.point), batch.tensor(batch.truth.index)
    at = (batch.states[point] * weights[index]).sum(1) + batch.tensor(_start_of_targets(batch))
    if biases is not None:
        at = at + biases[index]
    return (batch.totals * log_norm).sum() - (batch.tensor(batch.truth.value) * at).sum()


def _log_norm(
    batch: WideBatch, columns: Int
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]:
    """``log Σ exp(z)`` [P] over some advertisers, of their weights and biases."""

    def log_norm(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        logits = states @ weight.T + batch.tensor(batch.start.at(columns))
        return torch.logsumexp(logits if bias is None else logits + bias, dim=1)

    return log_norm


def _start_of_targets(batch: WideBatch) -> Float:
    """What the logits of the targets start from [offsets[-1]]."""
    truth = batch.truth
    columns, place = np.unique(truth.index, return_inverse=True)
    start: Float = batch.start.at(columns)[truth.point, place]
    return start


class Sampler:
    """Draws the advertisers that stand for the catalog in a batch.

    Parameters
    ----------
    seen : int64 or float64 [N]
        How often each advertiser is a target.
    count : int
        Advertisers to draw, on average.

    Attributes
    ----------
    chance : float64 [N]
        That an advertiser is drawn, each on its own.
    """

    def __init__(self, seen: Int | Double, count: int) -> None:
        size = len(seen)
        share = 0.5 / size + 0.5 * (seen + 1.0 / size) / (float(seen.sum()) + 1.0)
        self.chance: Double = np.minimum(share * count, 1.0)
        for _ in range(20):  # what is capped at one is drawn from the others
            free, wanted = self.chance < 1.0, count - float((self.chance >= 1.0).sum())
            if not free.any() or wanted <= 0 or float(self.chance[free].sum()) >= wanted * (1 - 1e-6):
                break
            self.chance[free] = np.minimum(self.chance[free] * (wanted / self.chance[free].sum()), 1.0)

    def draw(self, certain: Int) -> tuple[Int, Float]:
        """Advertisers [C] in ascending order, the certain ones among them, and ``-log π`` [C]: zero of those.

        By torch's generator of the CPU: a fit that goes on from a checkpoint draws what it would have drawn.
        """
        drawn = torch.rand(len(self.chance), dtype=torch.float64).numpy() < self.chance
        drawn[certain] = True
        columns = np.flatnonzero(drawn)
        correction = -np.log(self.chance[columns])
        correction[np.searchsorted(columns, certain)] = 0.0
        return columns, correction.astype(np.float32)


def sampled_loss(batch: WideBatch, output: Output, sampler: Sampler) -> torch.Tensor:
    """Negative log-likelihood of a sample of the catalog, summed over points; its Z is right on average."""
    truth = batch.truth
    columns, correction = sampler.draw(np.union1d(truth.index, batch.start.index))
    weights, biases = output.rows(batch.tensor(columns))
    logits = batch.states @ weights.T + batch.tensor(batch.start.at(columns) + correction)
    if biases is not None:
        logits = logits + biases
    point, place = batch.tensor(truth.point), batch.tensor(np.searchsorted(columns, truth.index))
    at = logits[point, place]  # of targets, which are certain: nothing was added to them
    return (batch.totals * torch.logsumexp(logits, dim=1)).sum() - (batch.tensor(truth.value) * at).sum()


def wide_loss(batch: WideBatch, output: Output, sampler: Sampler | None) -> torch.Tensor:
    """`sampled_loss` with a sampler, else `blockwise_loss`."""
    return blockwise_loss(batch, output) if sampler is None else sampled_loss(batch, output, sampler)
