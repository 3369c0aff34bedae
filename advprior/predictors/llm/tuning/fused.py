"""Attention and rotary positions as ONNX Runtime's own operators, for graphs that run on a GPU.

A traced decoder spells attention out: scores, mask, softmax and product are matrices [B, heads, T, T] in memory, and a
GPU spends its time on moving them. ``GroupQueryAttention`` and ``MultiHeadAttention`` of ONNX Runtime keep them in the
multiprocessors (Dao, "FlashAttention-2", 2023). They are written when the graph is traced, by the layer itself: looking
for their pattern in a finished graph depends on how each version of each library spells it.

Prompts are padded on the right and no token sees a later one, so padding needs no mask: what a padded place computes is
never read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

NAME = "advprior_fused"
_ROTARY = "apply_rotary_pos_emb"
_HALF = (torch.float16, torch.bfloat16)
_EVEN = 8  # numbers: what a head's size is a multiple of, in the kernels for a GPU


class _Grouped(torch.autograd.Function):
    """Causal attention of queries [B, T, heads · D] to keys and values [B, T, shared · D]; one operator.

    Arguments are the three, each prompt's last place [B], the number of places, heads, shared ones and the scale.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        query, key, value, _, _, heads, shared, scale = arguments
        return _causal((query, key, value), heads, shared, scale)

    @staticmethod
    def symbolic(g: Any, *arguments: Any) -> Any:
        query, key, value, lengths, total, heads, shared, scale = arguments
        none = g.op("prim::Constant")
        none.setType(torch._C.NoneType.get())
        output, _, _ = g.op(
            "com.microsoft::GroupQueryAttention",
            *(query, key, value, none, none, lengths, total),
            num_heads_i=heads,
            kv_num_heads_i=shared,
            scale_f=scale,
            outputs=3,
        )
        output.setType(query.type())
        return output


class _MultiHead(torch.autograd.Function):
    """Causal attention [B, T, heads · D]; one operator in the graph."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, heads: int, scale: float) -> Any:
        return _causal((query, key, value), heads, heads, scale)

    @staticmethod
    def symbolic(g: Any, query: Any, key: Any, value: Any, heads: int, scale: float) -> Any:
        output = g.op(
            "com.microsoft::MultiHeadAttention",
            *(query, key, value),
            num_heads_i=heads,
            scale_f=scale,
            unidirectional_i=1,
        )
        output.setType(query.type())
        return output


def _causal(states: tuple[Any, Any, Any], heads: int, shared: int, scale: float) -> Any:
    """What both operators compute of queries, keys and values."""
    (batch, length, width), group = states[0].shape, heads // shared
    query, key, value = (
        x.view(batch, length, -1, width // heads).transpose(1, 2).repeat_interleave(repeats, 1)
        for x, repeats in zip(states, (1, group, group), strict=True)
    )
    out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    return out.transpose(1, 2).reshape(batch, length, width)


class _Rotary(torch.autograd.Function):
    """Rotary positions of [B, T, heads · D] by cosines and sines [T, D / 2] of each place; one operator."""

    @staticmethod
    def forward(ctx: Any, states: Any, first: Any, cosines: Any, sines: Any) -> Any:
        batch, length, width = states.shape
        size = cosines.shape[-1]
        left, right = states.view(batch, length, -1, 2, size).unbind(3)
        cos, sin = cosines[:, None], sines[:, None]
        return torch.stack([left * cos - right * sin, right * cos + left * sin], 3).view(batch, length, width)

    @staticmethod
    def symbolic(g: Any, states: Any, first: Any, cosines: Any, sines: Any) -> Any:
        output = g.op("com.microsoft::RotaryEmbedding", states, first, cosines, sines, interleaved_i=0)
        output.setType(states.type())
        return output


def fused_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention [B, T, H, D] of queries [B, H, T, D], keys and values [B, H / G, T, D] in a decoder.

    On half precision by groups of heads as they are; in fp32, which that operator lacks, with each key and value
    repeated for the heads that share it.
    """
    batch, length = query.shape[0], query.shape[2]
    heads, shared, size = int(query.shape[1]), int(key.shape[1]), int(query.shape[3])  # fixed: no axis of the graph
    scale = size**-0.5 if scaling is None else float(scaling)
    if query.dtype not in _HALF and shared < heads:
        group = heads // shared
        key, value = (
            x[:, :, None].expand(batch, shared, group, length, size).reshape(batch, heads, length, size)
            for x in (key, value)
        )
    flat = [x.transpose(1, 2).reshape(batch, length, -1) for x in (query, key, value)]
    if query.dtype in _HALF:
        lengths = torch.full((batch,), length - 1, dtype=torch.int32)
        total = torch.full((), length, dtype=torch.int32)
        output: torch.Tensor = _Grouped.apply(*flat, lengths, total, heads, shared, scale)  # type: ignore[no-untyped-call]
    else:
        output = _MultiHead.apply(*flat, heads, scale)  # type: ignore[no-untyped-call]
    return output.view(batch, length, heads, size), None


def fused_rotary(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """What transformers' ``apply_rotary_pos_emb`` of Llama gives for queries and keys [B, H, T, D]."""
    half = int(cos.shape[-1]) // 2
    cosines, sines = cos[0, :, :half], sin[0, :, :half]  # the same for every prompt, and once more for the other half
    first = torch.zeros(1, dtype=torch.int64)
    turned = []
    for states in (q, k):
        batch, length = states.shape[0], states.shape[2]
        heads, size = int(states.shape[1]), int(states.shape[3])
        flat = states.transpose(1, 2).reshape(batch, length, heads * size)
        rotated = _Rotary.apply(flat, first, cosines, sines)  # type: ignore[no-untyped-call]
        turned.append(rotated.view(batch, length, heads, size).transpose(1, 2))
    return turned[0], turned[1]


AttentionInterface.register(NAME, fused_attention)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)


def can_fuse(model: torch.nn.Module) -> bool:
    """Whether attention is plain: causal scaled dot products of every token before, with nothing added to scores."""
    decoders = [m for m in model.modules() if isinstance(m, PreTrainedModel) and m is not model]
    return bool(decoders) and all(_plain(decoder) for decoder in decoders)


def _plain(decoder: Any) -> bool:
    config = decoder.config
    window = getattr(config, "sliding_window", None)
    windows = {*(getattr(config, "layer_types", None) or ())} - {"full_attention"}
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    size = int(getattr(config, "head_dim", None) or (config.hidden_size // max(heads, 1)))
    return bool(
        decoder._supports_attention_backend
        and getattr(config, "_attn_implementation", "") == "sdpa"
        and not windows
        and (not window or getattr(config, "use_sliding_window", True) is False)
        and not getattr(config, "attn_logit_softcapping", None)
        and size % _EVEN == 0
    )


@contextmanager
def fused(model: torch.nn.Module) -> Iterator[None]:
    """While tracing: attention by `fused_attention`, and rotary positions by `fused_rotary` where they are Llama's."""
    parts: list[Any] = [m for m in model.modules() if hasattr(m, "config")]
    before = {id(m.config): (m.config, m.config._attn_implementation) for m in parts}
    spaces = {type(m).__module__: sys.modules[type(m).__module__] for m in model.modules()}
    rotary = {space: getattr(space, _ROTARY) for space in spaces.values() if hasattr(space, _ROTARY)}
    try:
        for config, _ in before.values():
            config._attn_implementation = NAME
        for space, function in rotary.items():
            if _as_llama(function):
                setattr(space, _ROTARY, fused_rotary)
        yield
    finally:
        for config, attention in before.values():
            config._attn_implementation = attention
        for space, function in rotary.items():
            setattr(space, _ROTARY, function)


def _as_llama(function: Any) -> bool:
    """Whether an architecture's own rotary positions are what `fused_rotary` computes, on random states."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 4, 5, 8, generator=generator), torch.randn(2, 2, 5, 8, generator=generator)
    angles = torch.randn(1, 5, 4, generator=generator)
    cos, sin = (torch.cat([x, x], -1).expand(2, 5, 8) for x in (angles.cos(), angles.sin()))
    try:
        theirs = function(q, k, cos, sin)
    except Exception:  # other arguments: another kind of positions
        return False
    return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(theirs, fused_rotary(q, k, cos, sin), strict=True))
