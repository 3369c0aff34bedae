"""Where decoder architectures keep their layers, last norm and positions, so that any of them can be cut in two.

Hugging Face decoders agree on `inputs_embeds`, on `get_input_embeddings` and on a list of layers that are called one
after another, not on attribute names. A cut model takes its states at the first layer and gives them behind the last:
whatever an architecture does to its input before (scales, norms, positions) happens once, in the lower part. Whether a
cut model is still the same model is measured, not assumed (`from_base`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_NORMS = ("norm", "final_layer_norm", "final_layernorm", "ln_f", "norm_f")
_FEED_FORWARD = ("mlp",)  # of a layer: Llama, Qwen, Gemma, GPT-2, GPT-NeoX, Falcon, Phi …
_POSITIONS = ("wpe", "embed_positions")  # learned, added to the token's embedding at the input


class NoPositions(nn.Module):
    """Stands in for a learned position table where the states already carry positions: adds nothing."""

    def forward(self, *inputs: Any, **named: Any) -> torch.Tensor:
        """Zero [1], where its input lies."""
        tensors = (value for value in (*inputs, *named.values()) if isinstance(value, torch.Tensor))
        return torch.zeros(1, device=next((tensor.device for tensor in tensors), None))


def decoder_of(model: Any) -> Any:
    """The decoder of a causal LM or of any wrapper around one: what takes tokens and gives final states."""
    decoder = model.base_model.get_decoder() if hasattr(model, "get_decoder") else model
    return model if decoder is None else decoder


def _named(model: Any, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if isinstance(getattr(model, name, None), nn.Module)), None)


def layers_name(model: Any) -> str:
    """Attribute that lists the decoder layers: the longest list of modules that a decoder has.

    Raises
    ------
    AttributeError
        There is none.
    """
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model  # of adapters
    lists = {name: len(part) for name, part in plain.named_children() if isinstance(part, nn.ModuleList)}
    if not lists:
        raise AttributeError(f"{type(plain).__name__} lists no layers")
    longest: str = max(lists, key=lambda name: lists[name])
    return longest


def layers_of(model: Any) -> Any:
    """The decoder layers."""
    return getattr(model, layers_name(model))


def positions_name(model: Any) -> str | None:
    """Attribute of a learned position table, None where positions are rotary or in the attention."""
    return _named(model, _POSITIONS)


def keep_lower(model: Any, cut: int) -> None:
    """Drop all but the first ``cut`` layers of a decoder whose states are read behind them (`behind_layers`)."""
    setattr(model, layers_name(model), layers_of(model)[:cut])
    if (norm := _named(model, _NORMS)) is not None:  # belongs behind the last layer of all
        setattr(model, norm, nn.Identity())


def keep_upper(model: Any, cut: int) -> None:
    """Drop the first ``cut`` layers of a decoder that is fed the states behind them (`fed_behind_input`)."""
    setattr(model, layers_name(model), layers_of(model)[cut:])
    if (positions := positions_name(model)) is not None:
        setattr(model, positions, NoPositions())  # the lower part has added them


@contextmanager
def fed_behind_input(model: Any, states: torch.Tensor) -> Iterator[None]:
    """Let the first layer read ``states`` [B, T, H], whatever the decoder made of its input before it."""

    def feed(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if inputs:
            return (states, *inputs[1:]), named
        return inputs, {**named, "hidden_states": states}

    hook = layers_of(model)[0].register_forward_pre_hook(feed, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def behind_layers(model: Any) -> Iterator[list[torch.Tensor]]:
    """A list that a forward fills with the states [B, T, H] behind the last layer, before any norm."""
    states: list[torch.Tensor] = []

    def take(_: nn.Module, __: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    hook = layers_of(model)[-1].register_forward_hook(take)
    try:
        yield states
    finally:
        hook.remove()


def _feed_forward(layer: nn.Module) -> nn.Module | None:
    name = _named(layer, _FEED_FORWARD)
    return None if name is None else getattr(layer, name)


@contextmanager
def feed_forward_at(model: Any, rows: torch.Tensor) -> Iterator[None]:
    """Let the last layer compute its feed-forward part for some tokens only: most of a layer, and read at no other.

    Everything after the last layer's attention treats each token by itself, so that states at ``rows`` are those of the
    whole computation; all others are without meaning. A decoder with that part elsewhere computes all of it.

    Parameters
    ----------
    model : PreTrainedModel
        A decoder, possibly with adapters.
    rows : int64 Tensor [M]
        Rows of the flattened batch [B · T]; distinct ones, where gradients are taken.
    """
    try:
        part = _feed_forward(layers_of(model)[-1])
    except AttributeError:
        part = None
    if part is None:
        yield
        return
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
    every = (first, stop) == (0, int(base.config.num_hidden_layers))
    table, prefix = table_name(base), None if every else f"{layers_name(base)}."
    state = {}
    for name, weight in base.state_dict().items():
        if prefix is not None and name.startswith(prefix):
            index, rest = name.removeprefix(prefix).split(".", 1)
            if first <= int(index) < stop:
                state[f"{prefix}{int(index) - first}.{rest}"] = weight
        elif name != table:
            state[name] = weight
    return state
