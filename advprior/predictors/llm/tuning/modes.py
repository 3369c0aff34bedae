"""What of the base model is tuned: the top layers over cached lower ones, adapters in every layer (LoRA,
arXiv 2106.09685), or every layer.

The three differ in these few lines alone; points, heads, batches and the loop are the same. The token table is
never tuned as a whole: an advertiser's token moves by its row of the network's ``adapter`` (``adapter_lr``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from advprior.predictors.llm.settings import LLMSettings
from advprior.predictors.llm.tuning.heads import NameHead
from advprior.predictors.llm.tuning.model import AdvertiserModel
from advprior.store.errors import AdvpriorError


def frozen_layers(settings: LLMSettings, kept: int) -> int:
    """Layers that are computed once and cached."""
    return max(kept - settings.tuned_layers, 0) if settings.mode == "cached" else 0


def tuned_weights(model: AdvertiserModel, settings: LLMSettings) -> list[nn.Parameter]:
    """Freeze the network, put adapters in where the mode has them, and give what is to be tuned of the base model.

    Raises
    ------
    AdvpriorError
        ``PRI051`` when ``mode: lora`` is asked for without peft.
    """
    model.requires_grad_(False)
    if settings.mode == "lora":
        model.upper = _with_adapters(model.upper, settings)
        return [p for p in model.upper.parameters() if p.requires_grad]
    unused = model.upper.get_input_embeddings().weight  # the upper part is fed states
    return [p for p in model.upper.parameters() if p is not unused]


def _with_adapters(upper: Any, settings: LLMSettings) -> Any:
    """The upper part with low-rank adapters on every projection of attention and MLP."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise AdvpriorError(
            "PRI051",
            "mode lora needs peft",
            actual=str(error),
            expected="peft beside torch and transformers",
            fix='pip install "advprior[train]", or set `mode: cached`',
        ) from error
    from transformers.pytorch_utils import Conv1D

    transposed = any(isinstance(m, Conv1D) for m in upper.modules())  # GPT-2 keeps weights [in, out]
    config = LoraConfig(
        r=settings.lora.rank,
        lora_alpha=settings.lora.alpha,
        lora_dropout=settings.lora.dropout,
        target_modules="all-linear",
        fan_in_fan_out=transposed,
    )
    return get_peft_model(upper, config)


def merge(model: AdvertiserModel, settings: LLMSettings) -> None:
    """Fold adapters into the weights: what is saved and exported is a plain network, at no cost in scoring."""
    if settings.mode == "lora":
        model.upper = model.upper.merge_and_unload()


def optimizer_for(
    model: AdvertiserModel, heads: list[NameHead], weights: list[nn.Parameter], settings: LLMSettings
) -> torch.optim.Optimizer:
    """AdamW over the parts with a learning rate; the others stay frozen."""
    config = settings.training
    parts: list[tuple[float, list[torch.Tensor]]] = [
        (config.lr, list(weights)),
        (config.adapter_lr, [model.adapter.weight]),
        (config.free_lr, [head.free for head in heads]),
        (config.head_lr, [p for h in heads for p in (*h.key.parameters(), *h.query.parameters(), h.bias)]),
    ]
    for rate, parameters in parts:
        for parameter in parameters:
            parameter.requires_grad_(rate > 0)
    groups = [{"params": p, "lr": rate, "weight_decay": config.weight_decay} for rate, p in parts if rate > 0]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))
