"""The random-weight control: a base model's network without its pre-training."""

from __future__ import annotations

from typing import Any

import torch


def forget(model: Any, seed: int) -> None:
    """Give a base model fresh random weights, as before its pre-training: the random-weight control.

    It tells whether pre-training earned anything: the same network, tokens, head and tuning.
    """
    generator = torch.Generator().manual_seed(seed)
    spread = float(getattr(model.config, "initializer_range", 0.02))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, spread, generator=generator)
            else:  # biases start at zero, scales of norms at one
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
