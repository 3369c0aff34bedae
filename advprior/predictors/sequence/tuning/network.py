"""The network: a causal transformer over events, whose head is tied to how it reads advertisers.

SASRec (Kang & McAuley 2018, arXiv 1808.09781) with a profile token, time gaps, categories and prices. With encodings of
the advertisers' texts it is the *hybrid*: an advertiser's vector is then a free one plus a map of what a language model
makes of its text, on both sides, so that the language model's cost falls on the catalog and not on the users.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from advprior.predictors.sequence.settings import NetworkSettings
from advprior.predictors.sequence.tokens import GAPS, PRICES, Vocabulary
from advprior.predictors.tuning.compute import Dropout, to_device

Batch = dict[str, torch.Tensor]
#: In the order of the exported graph: [B, T] tokens, [B, F] profile, [B, P] points, [B, P, N] offset
INPUTS = ("advertiser", "category", "price", "gap", "profile", "positions", "since", "offset")


class Block(nn.Module):
    """Causal self-attention and a feed-forward layer, both on normalised inputs."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """States [B, T, width] after the block; ``mask`` is added to the attention's scores."""
        batch, length, width = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        # written out: the exported graph is plain matrix products
        scores = query @ key.transpose(-1, -2) / math.sqrt(width // self.heads) + mask
        mixed = self.dropout(torch.softmax(scores, dim=-1)) @ value
        x = x + self.dropout(self.out(mixed.transpose(1, 2).reshape(batch, length, width)))
        after: torch.Tensor = x + self.dropout(self.down(self.dropout(functional.gelu(self.up(self.norm2(x))))))
        return after


class SequenceNetwork(nn.Module):
    """Log-probabilities over the catalog at chosen positions of each history.

    Parameters
    ----------
    size : int
        N advertisers.
    vocabulary : Vocabulary
    settings : NetworkSettings
    encodings : float32 [N, D], optional
        Of the advertisers' texts; with them it is the hybrid.
    """

    def __init__(
        self, size: int, vocabulary: Vocabulary, settings: NetworkSettings, encodings: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        width = settings.width
        self.context = settings.context
        self.free = nn.Embedding(size, width)
        self.category = nn.Embedding(len(vocabulary.categories) + 1, width)
        self.price, self.gap = nn.Embedding(PRICES, width), nn.Embedding(GAPS, width)
        self.since, self.place = nn.Embedding(GAPS, width), nn.Embedding(settings.context, width)
        self.profile = nn.ModuleList([nn.Embedding(len(levels) + 1, width) for levels in vocabulary.profile_levels])
        self.start = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList([Block(width, settings.heads, settings.dropout) for _ in range(settings.layers)])
        self.norm = nn.LayerNorm(width)
        self.readout = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), Dropout(settings.dropout), nn.Linear(width, width)
        )
        self.dropout = Dropout(settings.dropout)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        self.free_in_head = settings.free
        self.read: nn.Linear | None = None
        if encodings is not None:
            self.register_buffer("encodings", encodings)
            self.read = nn.Linear(encodings.shape[1], width, bias=False)
            self.name = nn.Linear(encodings.shape[1], width, bias=False)
            nn.init.normal_(self.read.weight, std=0.1)
            nn.init.normal_(self.name.weight, std=0.1)
        # logits start as the offset alone
        last = self.readout[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.register_buffer("strength", torch.ones(()))

    strength: torch.Tensor
    encodings: torch.Tensor

    def advertisers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """How advertisers are read and how they are scored, [N, width] each."""
        read = score = self.free.weight
        if self.read is not None:
            if not self.free_in_head:
                read = score = torch.zeros_like(self.free.weight)
            read, score = read + self.read(self.encodings), score + self.name(self.encodings)
        return read, score

    def deviation(self, batch: Batch) -> torch.Tensor:
        """Logits [B, P, N] before the offset: how a user differs from everyone.

        ``batch`` is what `advprior.predictors.sequence.tokens.Tokens.batch` makes, as tensors.
        """
        read, score = self.advertisers()
        deviation: torch.Tensor = self._outputs(read, batch) @ score.T
        return deviation

    def outputs(self, batch: Batch) -> torch.Tensor:
        """What `deviation` multiplies advertisers by [B, P, width]."""
        return self._outputs(self.advertisers()[0], batch)

    def rows(self, columns: torch.Tensor | None = None) -> tuple[torch.Tensor, None]:
        """How some advertisers are scored, or all [C, width]; they have no bias."""
        if columns is None:
            return self.advertisers()[1], None
        score = self.free.weight[columns]
        if self.read is not None:
            score = self.name(self.encodings[columns]) + (score if self.free_in_head else 0.0)
        return score, None

    def _outputs(self, read: torch.Tensor, batch: Batch) -> torch.Tensor:
        states = self._states(read, batch)
        index = batch["positions"].unsqueeze(-1).expand(-1, -1, states.shape[-1])
        # embeddings are small for the head's sake; beside states they are wanted near one
        states = self.norm(torch.gather(states, 1, index)) + math.sqrt(states.shape[-1]) * self.since(batch["since"])
        outputs: torch.Tensor = self.readout(states)
        return outputs

    def _states(self, read: torch.Tensor, batch: Batch) -> torch.Tensor:
        """States [B, 1 + T, width]: of the profile alone, and after each event."""
        advertiser = batch["advertiser"]
        place = self.place(torch.arange(advertiser.shape[1], device=advertiser.device))
        parts = (self.category(batch["category"]), self.price(batch["price"]), self.gap(batch["gap"]), place)
        tokens = sum(parts, read[advertiser])
        start = self.start.expand(advertiser.shape[0], -1)
        for column, embedding in enumerate(self.profile):
            start = start + embedding(batch["profile"][:, column])
        x = self.dropout(torch.cat([start.unsqueeze(1), tokens], 1) * math.sqrt(start.shape[-1]))
        order = torch.arange(x.shape[1], device=x.device)
        mask = (order[None, :] > order[:, None]).to(x.dtype) * -1e9
        for block in self.blocks:
            x = block(x, mask)
        states: torch.Tensor = x
        return states

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [B, P, N] of `INPUTS`: the deviation at its strength on top of the offset [B, P, N]."""
        batch = dict(zip(INPUTS, inputs, strict=True))
        return torch.log_softmax(self.deviation(batch) * self.strength + batch["offset"], dim=-1)


def as_tensors(batch: dict[str, Any], device: torch.device | None = None) -> Batch:
    """Torch tensors of a batch of arrays, on the CPU by default."""
    return {name: to_device(array, device or torch.device("cpu")) for name, array in batch.items()}
