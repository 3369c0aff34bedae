"""The network behind the LLM prior: frozen lower layers, tuned upper layers, a head over the catalog.

One forward over a prompt gives log P(advertiser | history so far) at any of its positions, already
normalised over the catalog; no vocabulary logits are computed. Lower and upper part are whole base
models of the same architecture that pass hidden states through ``inputs_embeds``, so any decoder
that takes them works, and lower states can be computed once and cached while the upper part trains.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel


class AdvertiserConfig(PretrainedConfig):  # type: ignore[misc]
    """Configuration of `AdvertiserModel`.

    Parameters
    ----------
    backbone : dict
        The base model's configuration (``PretrainedConfig.to_dict()``), with ``num_hidden_layers`` kept layers.
    catalog_size : int
        N, the number of advertisers.
    frozen_layers : int
        How many of the kept layers are never tuned.
    text_vocab_size : int
        Token ids below are text; id ``text_vocab_size + a`` is advertiser a.
    """

    model_type = "advprior"

    def __init__(
        self,
        backbone: dict[str, Any] | None = None,
        catalog_size: int = 0,
        frozen_layers: int = 0,
        text_vocab_size: int = 0,
        **kwargs: Any,
    ) -> None:
        self.backbone = backbone or {}
        self.catalog_size = catalog_size
        self.frozen_layers = frozen_layers
        self.text_vocab_size = text_vocab_size
        super().__init__(**kwargs)

    def part(self, layers: int, *, vocabulary: bool) -> PretrainedConfig:
        """Configuration of one part: ``layers`` decoder layers, with or without the token table."""
        settings = {k: v for k, v in self.backbone.items() if k not in ("model_type", "transformers_version")}
        settings["num_hidden_layers"] = layers
        if settings.get("layer_types"):
            settings["layer_types"] = settings["layer_types"][:layers]
        # the upper part is fed hidden states: one row keeps its unused table from costing memory
        settings["vocab_size"] = self.text_vocab_size + self.catalog_size if vocabulary else 1
        settings["pad_token_id"] = None
        settings["use_cache"] = False
        return AutoConfig.for_model(self.backbone["model_type"], **settings)


class AdvertiserModel(PreTrainedModel):  # type: ignore[misc]
    """Log-probability of every advertiser at given positions of a prompt.

    ``forward(input_ids [B, T], attention_mask [B, T], positions [B, P], offset [B, P, N])`` gives
    ``{"log_probs": [B, P, N]}``; prompts are padded on the right, and a position sees tokens at or before it
    only. The offset (habit and drift as of each snapshot) changes with time, so it is an input, no weight.
    """

    config_class = AdvertiserConfig
    base_model_prefix = "advprior"
    _supports_sdpa = True

    def __init__(self, config: AdvertiserConfig) -> None:
        super().__init__(config)
        kept = int(config.backbone["num_hidden_layers"])
        attention = config._attn_implementation or "sdpa"
        self.lower = AutoModel.from_config(
            config.part(config.frozen_layers, vocabulary=True), attn_implementation=attention
        )
        # the base's last norm belongs after the last kept layer, not between the two parts
        self.lower.norm = nn.Identity()
        self.upper = AutoModel.from_config(
            config.part(kept - config.frozen_layers, vocabulary=False), attn_implementation=attention
        )
        hidden = int(config.backbone["hidden_size"])
        # what tuning adds to an advertiser token where the tuned layers begin (row 0: text tokens, always zero)
        self.adapter = nn.Embedding(config.catalog_size + 1, hidden, padding_idx=0)
        nn.init.zeros_(self.adapter.weight)
        self.head = nn.Linear(hidden, config.catalog_size)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing to do: parts are filled from the base model or start at zero."""

    def lower_states(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Hidden states [B, T, H] after the frozen layers."""
        states: torch.Tensor = self.lower(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        return states

    def upper_states(
        self, lower_states: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """Final hidden states [B, T, H] from the frozen layers' output."""
        rows = torch.clamp(input_ids - (self.config.text_vocab_size - 1), min=0)
        states: torch.Tensor = self.upper(
            inputs_embeds=lower_states + self.adapter(rows), attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        return states

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, positions: torch.Tensor, offset: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Log-probabilities [B, P, N] at ``positions`` [B, P], with ``offset`` [B, P, N] added to the logits."""
        lower = self.lower_states(input_ids, attention_mask)
        states = self.upper_states(lower, input_ids, attention_mask)
        index = positions.unsqueeze(-1).expand(-1, -1, states.shape[-1])
        picked = torch.gather(states, 1, index)
        return {"log_probs": torch.log_softmax((self.head(picked) + offset).float(), dim=-1)}


def from_base(
    base: Any, *, catalog_size: int, text_vocab_size: int, frozen_layers: int, advertiser_embeddings: torch.Tensor
) -> AdvertiserModel:
    """An `AdvertiserModel` with a base model's weights and a head that still says nothing.

    Parameters
    ----------
    base : PreTrainedModel
        Base decoder with as many layers as are to be kept.
    catalog_size, text_vocab_size, frozen_layers : int
        See `AdvertiserConfig`.
    advertiser_embeddings : Tensor [N, H]
        Input embeddings of the advertiser tokens.
    """
    config = AdvertiserConfig(
        backbone=base.config.to_dict(),
        catalog_size=catalog_size,
        frozen_layers=frozen_layers,
        text_vocab_size=text_vocab_size,
    )
    model: AdvertiserModel = AdvertiserModel(config).eval()
    with torch.no_grad():
        table = model.lower.get_input_embeddings().weight
        table[:text_vocab_size] = base.get_input_embeddings().weight[:text_vocab_size]
        table[text_vocab_size:] = advertiser_embeddings
        for index, layer in enumerate(model.lower.layers):
            layer.load_state_dict(base.layers[index].state_dict())
        for index, layer in enumerate(model.upper.layers):
            layer.load_state_dict(base.layers[frozen_layers + index].state_dict())
        model.upper.norm.load_state_dict(base.norm.state_dict())
    return model
