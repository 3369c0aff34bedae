"""The network and its heads as they are fitted, made from a base model and the catalog's names."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from advprior.history.targets import Targets
from advprior.predictors.base import FitData
from advprior.predictors.llm.settings import LLMSettings
from advprior.predictors.llm.tuning.extend import TEXT_TOKENS
from advprior.predictors.llm.tuning.heads import NameHead
from advprior.predictors.llm.tuning.model import AdvertiserModel, from_base
from advprior.predictors.llm.tuning.modes import frozen_layers
from advprior.predictors.llm.tuning.points import WindowPoints
from advprior.predictors.tokens import Encode, readable
from advprior.predictors.tuning.base import Base
from advprior.predictors.tuning.compute import Compute, placed
from advprior.predictors.tuning.encode import mean_states


@dataclass(frozen=True)
class Networks:
    """What is fitted.

    Attributes
    ----------
    model : AdvertiserModel
        Its own heads are written when the run is saved.
    head : NameHead
        Over the advertisers.
    interest_head : NameHead, optional
        Over product categories.
    compute : Compute
        Where it is fitted; made on the CPU.
    """

    model: AdvertiserModel
    head: NameHead
    interest_head: NameHead | None = None
    compute: Compute = field(default_factory=Compute.of)

    @property
    def heads(self) -> list[NameHead]:
        """One or two."""
        return [self.head] if self.interest_head is None else [self.head, self.interest_head]

    def to(self, device: torch.device) -> None:
        """Move all of it, in place."""
        placed(self.model, device)
        for head in self.heads:
            placed(head, device)

    def tuned(self) -> dict[str, nn.Parameter]:
        """Parameters that are tuned, by name."""
        modules = nn.ModuleDict({"model": self.model, "head": self.head})
        if self.interest_head is not None:
            modules["interest_head"] = self.interest_head
        return {name: p for name, p in modules.named_parameters() if p.requires_grad}


def build_networks(
    base: Base, data: FitData, settings: LLMSettings, points: list[WindowPoints], encode: Encode
) -> Networks:
    """The network with an advertiser's token at the mean of its name's, and heads over what the base makes of names."""
    table = base.model.get_input_embeddings().weight.detach()
    catalog = data.catalog.to_read(masked=settings.masked)
    tokens = [encode(name) for name in readable(catalog.names, catalog.ids, encode)]
    embeddings = torch.stack([table[torch.tensor(ids)].mean(0) for ids in tokens])
    hidden, rank = int(base.model.config.hidden_size), settings.training.rank
    texts = tokens
    if settings.texts:
        texts = [encode(text)[:TEXT_TOKENS] for text in readable(catalog.descriptions(), catalog.ids, encode)]
    head = NameHead(torch.from_numpy(mean_states(base.model, texts)), hidden, rank)
    interest_head = None
    if data.interests is not None:
        sold = data.interests.catalog
        categories = [encode(name) for name in readable(sold.names, sold.ids, encode)]
        interest_head = NameHead(torch.from_numpy(mean_states(base.model, categories)), hidden, rank)
        _start_at_popularity(interest_head, points)
    model = from_base(
        base.model,
        catalog_size=len(catalog),
        text_vocab_size=table.shape[0],
        frozen_layers=frozen_layers(settings, int(base.model.config.num_hidden_layers)),
        advertiser_embeddings=embeddings,
        interests=len(data.interests.catalog) if data.interests is not None else 0,
    )
    return Networks(model, head, interest_head, Compute.of(settings.training.mixed_precision))


def _start_at_popularity(head: NameHead, points: list[WindowPoints]) -> None:
    """Bias of the second head at the log of how often each category was a training target."""
    trained = Targets.joined([p.interests.take(p.train) for p in points])
    seen = np.bincount(trained.index, minlength=trained.size)
    with torch.no_grad():
        head.bias.copy_(torch.from_numpy(np.log((seen + 0.5) / (seen + 0.5).sum())).float())
