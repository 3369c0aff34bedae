"""Heads over a list of names: low rank over what the base model makes of the names, plus a free part.

``W = K(E_names)·Q + F``: rows of alike names share strength, and a rare name has a row before it has an event.
It collapses to one matrix for export.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class NameHead(nn.Module):
    """Weights [N, H] as ``K(E)·Q + F`` over standardised name encodings E [N, E_dim]."""

    def __init__(self, names: torch.Tensor, hidden: int, rank: int) -> None:
        super().__init__()
        standard = (
            (names - names.mean(0)) / (names.std(0, correction=min(1, len(names) - 1)) + 1e-6) / names.shape[1] ** 0.5
        )
        self.register_buffer("names", standard)
        self.key = nn.Linear(names.shape[1], rank, bias=False)
        self.query = nn.Linear(hidden, rank, bias=False)
        nn.init.zeros_(self.query.weight)  # logits start as the offset alone
        self.free = nn.Parameter(torch.zeros(names.shape[0], hidden))
        self.bias = nn.Parameter(torch.zeros(names.shape[0]))
        self._matrix: torch.Tensor | None = None

    names: torch.Tensor

    def weight(self) -> torch.Tensor:
        """The collapsed matrix [N, H]."""
        matrix: torch.Tensor = self.key(self.names) @ self.query.weight + self.free
        return matrix

    def rows(self, columns: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights [C, H] and biases [C] of some names, or of all."""
        if columns is None:
            return self.weight(), self.bias
        names = self.key(self.names[columns]) @ self.query.weight
        return names + self.free[columns], self.bias[columns]

    @contextmanager
    def collapsed(self) -> Iterator[None]:
        """While it lasts the matrix is not made anew for each batch: nothing is learnt meanwhile."""
        with torch.no_grad():
            self._matrix = self.weight()
        try:
            yield
        finally:
            self._matrix = None

    def forward(self, states: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [..., N]."""
        matrix = self.weight() if self._matrix is None else self._matrix
        return torch.log_softmax(states @ matrix.T + self.bias + offset, dim=-1)

    def scale(self, strength: float) -> None:
        """Multiply what the head adds to the offset."""
        with torch.no_grad():
            for parameter in (self.query.weight, self.free, self.bias):
                parameter.mul_(strength)

    def write(self, linear: nn.Linear) -> None:
        """Collapse into a linear layer."""
        with torch.no_grad():
            linear.weight.copy_(self.weight())
            linear.bias.copy_(self.bias)
