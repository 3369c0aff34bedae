"""Where decoder architectures keep their layers, last norm and positions, so that any of them can be cut in two.

Hugging Face decoders agree on `inputs_embeds` and on `get_input_embeddings`, not on attribute names. What is
known here is names only; whether a cut model is still the same model is measured, not assumed (`from_base`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_LAYERS = ("layers", "h", "blocks")  # Llama, GPT-NeoX, Phi … / GPT-2, Falcon / MPT
_NORMS = ("norm", "final_layer_norm", "final_layernorm", "ln_f", "norm_f")
_FEED_FORWARD = ("mlp",)  # of a layer: Llama, Qwen, Gemma, GPT-2, GPT-NeoX, Falcon, Phi …
_POSITIONS = ("wpe", "embed_positions")  # learned, added to the token's embedding at the input


class NoPositions(nn.Module):
    """Stands in for a learned position table where the states already carry positions: adds nothing."""

    def forward(self, position_ids: torch.Tensor) -> torch.Tensor:
        """Zeros [..., 1]."""
        return torch.zeros_like(position_ids, dtype=torch.float32).unsqueeze(-1)


def _named(model: Any, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if isinstance(getattr(model, name, None), nn.Module)), None)


def layers_name(model: Any) -> str | None:
    """Attribute that lists the decoder layers, None where it has another name."""
    return _named(model, _LAYERS)


def norm_name(model: Any) -> str | None:
    """Attribute of the norm after the last layer."""
    return _named(model, _NORMS)


def positions_name(model: Any) -> str | None:
    """Attribute of a learned position table, None where positions are rotary or in the attention."""
    return _named(model, _POSITIONS)


@contextmanager
def feed_forward_at(model: Any, rows: torch.Tensor) -> Iterator[None]:
    """Let the last layer compute its feed-forward part for some tokens only: most of a layer, and read at no other.

    Everything after the last layer's attention treats each token by itself, so that states at ``rows`` are those of the
    whole computation; all others are without meaning. A decoder with that part under another name computes all of it.

    Parameters
    ----------
    model : PreTrainedModel
        A decoder, possibly with adapters.
    rows : int64 Tensor [M]
        Rows of the flattened batch [B · T]; distinct ones, where gradients are taken.
    """
    layers = layers_name(model)
    name = _named(getattr(model, layers)[-1], _FEED_FORWARD) if layers is not None else None
    if layers is None or name is None:
        yield
        return
    part = getattr(getattr(model, layers)[-1], name)
    shapes: list[torch.Size] = []

    def pick(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        shapes.append(inputs[0].shape)
        # BLOOM hands over what is added to the output, too
        return tuple(value.flatten(0, 1).index_select(0, rows)[None] for value in inputs)

    def put_back(_: nn.Module, __: Any, output: Any) -> Any:
        batch, length, hidden = shapes.pop()
        states, *rest = output if isinstance(output, tuple) else (output,)  # mixtures of experts say how they chose
        every = states.new_zeros(batch * length, hidden).index_copy(0, rows, states[0]).view(batch, length, hidden)
        return (every, *rest) if isinstance(output, tuple) else every

    hooks = (part.register_forward_pre_hook(pick), part.register_forward_hook(put_back))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def table_name(model: Any) -> str:
    """State-dict name of the token table."""
    table = model.get_input_embeddings().weight
    name: str = next(name for name, weight in model.named_parameters() if weight is table)
    return name


def sliced(config: Any, first: int, stop: int) -> Any:
    """A configuration of the layers ``first`` to ``stop`` alone, what it lists layer by layer included."""
    config = copy.deepcopy(config)
    layers = int(config.num_hidden_layers)
    for name, value in vars(config).items():
        if "layer" in name and isinstance(value, (list, tuple)) and len(value) == layers:
            setattr(config, name, value[first:stop])
    config.num_hidden_layers = stop - first
    return config


def part_state(base: Any, first: int, stop: int) -> dict[str, torch.Tensor]:
    """A base model's weights with the layers ``first`` to ``stop``, renumbered, and without the token table."""
    layers, table = layers_name(base), table_name(base)
    prefix = f"{layers}."
    state = {}
    for name, weight in base.state_dict().items():
        if layers is not None and name.startswith(prefix):
            index, rest = name.removeprefix(prefix).split(".", 1)
            if first <= int(index) < stop:
                state[f"{prefix}{int(index) - first}.{rest}"] = weight
        elif name != table:
            state[name] = weight
    return state
