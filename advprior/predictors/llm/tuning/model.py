"""The network behind the LLM prior: frozen lower layers, tuned upper layers, a head over the catalog.

One forward over a prompt gives log P(advertiser | history so far) at any of its positions, already
normalised over the catalog; no vocabulary logits are computed. Lower and upper part are whole base
models of the same architecture that pass hidden states through ``inputs_embeds``, so lower states can
be computed once and cached while the upper part trains. Without frozen layers the lower part is the token
table alone, and any decoder that takes ``inputs_embeds`` will do.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from advprior.predictors.tuning.anatomy import (
    behind_layers,
    decoder_of,
    fed_behind_input,
    feed_forward_at,
    keep_lower,
    keep_upper,
    part_state,
    sliced,
    table_name,
)
from advprior.store.errors import AdvpriorError

CUT_TOLERANCE = 1e-4  # of the final states' largest value: the cut network against the base model


class AdvertiserConfig(PretrainedConfig):  # type: ignore[misc]
    """Configuration of `AdvertiserModel`.

    Parameters
    ----------
    backbone : dict
        The base model's configuration (``PretrainedConfig.to_dict()``), of the kept layers.
    catalog_size : int
        N, the number of advertisers.
    frozen_layers : int
        How many of the kept layers are never tuned.
    text_vocab_size : int
        Token ids below are text; id ``text_vocab_size + a`` is advertiser a.
    interests : int
        C, the number of product categories that a second head answers for; 0: no such head.
    """

    model_type = "advprior"

    def __init__(
        self,
        backbone: dict[str, Any] | None = None,
        catalog_size: int = 0,
        frozen_layers: int = 0,
        text_vocab_size: int = 0,
        interests: int = 0,
        **kwargs: Any,
    ) -> None:
        self.backbone = backbone or {}
        self.catalog_size = catalog_size
        self.frozen_layers = frozen_layers
        self.text_vocab_size = text_vocab_size
        self.interests = interests
        super().__init__(**kwargs)

    def decoder(self) -> PretrainedConfig:
        """The base model's own configuration: names such as ``hidden_size`` whatever the architecture calls them."""
        settings = {k: v for k, v in self.backbone.items() if k not in ("model_type", "transformers_version")}
        return AutoConfig.for_model(self.backbone["model_type"], **settings)

    def longest(self) -> int | None:
        """Tokens that the base model has positions for, None where it sets no limit."""
        limit = getattr(self.decoder(), "max_position_embeddings", None)
        return None if limit is None else int(limit)

    def part(self, layers: int, *, vocabulary: bool) -> PretrainedConfig:
        """Configuration of the first ``layers`` layers, with or without the token table."""
        config = sliced(self.decoder(), 0, layers)
        # the upper part is fed hidden states: one row keeps its unused table from costing memory
        config.vocab_size = self.text_vocab_size + self.catalog_size if vocabulary else 1
        config.pad_token_id = None
        config.use_cache = False
        return config


class AdvertiserModel(PreTrainedModel):  # type: ignore[misc]
    """Log-probability of every advertiser at given positions of a prompt.

    ``forward(input_ids [B, T], attention_mask [B, T], positions [B, P], offset [B, P, N])`` gives
    ``{"log_probs": [B, P, N], "states": [B, P, H]}``, and ``"interest_log_probs": [B, P, C]`` where it has interests;
    prompts are padded on the right, and a position sees tokens at or before it only. The offset (habit and drift as of
    each snapshot) changes with time, so it is an input, no weight. Heads compute in float32 whatever the layers do.
    """

    config_class = AdvertiserConfig
    base_model_prefix = "advprior"
    _supports_sdpa = True

    def __init__(self, config: AdvertiserConfig) -> None:
        super().__init__(config)
        decoder = config.decoder()
        kept, cut = int(decoder.num_hidden_layers), config.frozen_layers
        # attention is the fastest kind that the architecture has: transformers' own choice
        if cut:
            self.lower = _decoder(config.part(cut, vocabulary=True))
            keep_lower(self.lower, cut)
        else:
            # the architecture's own table: some scale what they look up
            self.lower = _decoder(config.part(1, vocabulary=True)).get_input_embeddings()
        # made whole, and then cut: a layer may depend on its place among all
        self.upper = _decoder(config.part(kept, vocabulary=False))
        if cut:
            keep_upper(self.upper, cut)
        hidden = int(decoder.hidden_size)
        # what tuning adds to an advertiser token where the tuned layers begin (row 0: text tokens, always zero)
        self.adapter = nn.Embedding(config.catalog_size + 1, hidden, padding_idx=0)
        nn.init.zeros_(self.adapter.weight)
        self.head = _silent(hidden, config.catalog_size)
        self.interest_head = _silent(hidden, config.interests) if config.interests else None

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing to do: parts are filled from the base model or start at zero."""

    def token_table(self) -> nn.Embedding:
        """Input embeddings: text tokens, then one row an advertiser."""
        table: nn.Embedding = self.lower.get_input_embeddings() if self.config.frozen_layers else self.lower
        return table

    def lower_states(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Hidden states [B, T, H] after the frozen layers; without a mask padding must be on the right."""
        if not self.config.frozen_layers:
            embeddings: torch.Tensor = self.lower(input_ids)
            return embeddings
        with behind_layers(self.lower) as states:
            self.lower(input_ids=input_ids, attention_mask=_every_token(attention_mask, input_ids), use_cache=False)
        return states[0]

    def upper_states(
        self, lower_states: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Final hidden states [B, T, H] from the frozen layers' output; without a mask padding must be on the right."""
        rows = torch.clamp(input_ids - (self.config.text_vocab_size - 1), min=0)
        fed = lower_states + self.adapter(rows)
        behind = fed_behind_input(self.upper, fed) if self.config.frozen_layers else nullcontext()
        with behind:
            states: torch.Tensor = self.upper(
                inputs_embeds=fed, attention_mask=_every_token(attention_mask, input_ids), use_cache=False
            ).last_hidden_state
        return states

    def states_at(
        self,
        lower_states: torch.Tensor,
        input_ids: torch.Tensor,
        rows: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Final hidden states [M, H] at ``rows`` [M] of the flattened batch [B · T]; distinct ones, to be fitted.

        No token sees a later one, padding at the end included: prompts padded on the right need no mask, and without
        one attention takes its fast way.
        """
        with feed_forward_at(self.upper, rows):
            states = self.upper_states(lower_states, input_ids, attention_mask)
        return states.flatten(0, 1).index_select(0, rows)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, positions: torch.Tensor, offset: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Log-probabilities [B, P, N] at ``positions`` [B, P], with ``offset`` added to the logits; see the class.

        ``offset`` is [B, P, N], or [1, 1, N] where it is the same everywhere.
        """
        lower = self.lower_states(input_ids, attention_mask)
        (batch, length), points = input_ids.shape, positions.shape[1]
        rows = (torch.arange(batch, device=positions.device)[:, None] * length + positions).flatten()
        picked = self.states_at(lower, input_ids, rows, attention_mask).view(batch, points, -1).float()
        outputs = {"log_probs": torch.log_softmax((self.head(picked) + offset).float(), dim=-1)}
        if self.interest_head is not None:
            outputs["interest_log_probs"] = torch.log_softmax(self.interest_head(picked).float(), dim=-1)
        return {**outputs, "states": picked}


def _decoder(config: PretrainedConfig) -> Any:
    """A decoder without vocabulary head, its weights still to be filled."""
    return decoder_of(AutoModel.from_config(config))


def _every_token(attention_mask: torch.Tensor | None, input_ids: torch.Tensor) -> torch.Tensor:
    """The mask, or one of all tokens.

    Without any, transformers looks for several texts packed into a row, and writes out the mask [B, 1, T, T] of what it
    finds; a mask of all tokens is dropped, and attention knows by itself that it is causal.
    """
    return torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask


def _silent(hidden: int, size: int) -> nn.Linear:
    head = nn.Linear(hidden, size)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def from_base(
    base: Any,
    *,
    catalog_size: int,
    text_vocab_size: int,
    frozen_layers: int,
    advertiser_embeddings: torch.Tensor,
    interests: int = 0,
) -> AdvertiserModel:
    """An `AdvertiserModel` with a base model's weights and heads that still say nothing.

    Parameters
    ----------
    base : PreTrainedModel
        Base decoder with as many layers as are to be kept.
    catalog_size, text_vocab_size, frozen_layers, interests : int
        See `AdvertiserConfig`.
    advertiser_embeddings : Tensor [N, H]
        Input embeddings of the advertiser tokens.

    Raises
    ------
    AdvpriorError
        ``PRI050`` when the network is not the base model any more, as for an architecture that does more to its
        input than `advprior.predictors.tuning.anatomy` knows of.
    """
    config = AdvertiserConfig(
        backbone=base.config.to_dict(),
        catalog_size=catalog_size,
        frozen_layers=frozen_layers,
        text_vocab_size=text_vocab_size,
        interests=interests,
    )
    try:
        model = filled(base, config, advertiser_embeddings)
        difference = _difference(model, base)
    except Exception as error:  # whatever an architecture's own code raises
        first = (str(error).strip() or "no reason given").splitlines()[0][:120]
        raise _no_cut(base, frozen_layers, f"{type(error).__name__}: {first}") from error
    if not difference <= CUT_TOLERANCE:
        raise _no_cut(base, frozen_layers, f"states off by {difference:.1e} of their size")
    return model


def filled(base: Any, config: AdvertiserConfig, advertiser_embeddings: torch.Tensor) -> AdvertiserModel:
    """A network with the weights of a base model's first layers, as many as ``config`` has; see `from_base`."""
    kept, cut = int(config.decoder().num_hidden_layers), config.frozen_layers
    model: AdvertiserModel = AdvertiserModel(config).eval()
    with torch.no_grad():
        table, text = model.token_table().weight, config.text_vocab_size
        table[:text] = base.get_input_embeddings().weight[:text]
        table[text:] = advertiser_embeddings
    if cut:
        _fill(model.lower, part_state(base, 0, cut))
    _fill(model.upper, part_state(base, cut, kept))
    return model


def _fill(part: Any, state: dict[str, torch.Tensor]) -> None:
    """Load what the part has; only its token table may be left as it is."""
    missing, _ = part.load_state_dict(state, strict=False)
    if set(missing) - {table_name(part)}:
        raise KeyError(f"no weights for {', '.join(sorted(missing)[:3])}")


def _difference(model: AdvertiserModel, base: Any) -> float:
    """Largest difference of final states between the network and its base on a text, relative to their size."""
    vocabulary = model.config.text_vocab_size
    ids = torch.randint(0, vocabulary, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        ours = model.upper_states(model.lower_states(ids, mask), ids, mask)
        theirs = base(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        rows = torch.arange(1, ids.numel(), 5)
        some = model.states_at(model.lower_states(ids, None), ids, rows)
    difference = max((ours - theirs).abs().max(), (some - theirs.flatten(0, 1)[rows]).abs().max())
    return float(difference / theirs.abs().max().clamp(min=1e-6))


def _no_cut(base: Any, frozen_layers: int, actual: str) -> AdvpriorError:
    return AdvpriorError(
        "PRI050",
        f"the base model cannot be cut after layer {frozen_layers}"
        if frozen_layers
        else "the base model cannot be fed embeddings",
        where=type(base).__name__,
        actual=actual,
        expected="the same final states as the base model's",
        fix="set `base` to another model",
    )
