"""Tracing into ONNX: operations that the exporter writes wrongly, written otherwise, and its warnings, hidden.

Its guesses are checked on other shapes right after (`advprior.runtime.parity`).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


@contextmanager
def quiet() -> Iterator[None]:
    """Hide warnings of tracing; whoever traces compares the graph with its model (`advprior.runtime.parity`)."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "optimum")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
            for library in ("torch", "transformers", "optimum", "onnx"):
                for category in (DeprecationWarning, FutureWarning, UserWarning):
                    warnings.filterwarnings("ignore", category=category, module=rf"{library}(\.|$)")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class Exportable(TorchFunctionMode):
    """Operations of decoders whose trace would hold for the traced tokens only, or that ONNX has no word for.

    - Mixtures of experts loop over the experts that some token chose, ``(chosen > 0).nonzero()`` of a vector; the
      graph loops over all of them, each with the tokens that chose it, possibly none.
    - ``repeat_interleave`` by a number (rotary positions of Cohere) is exported with the traced sizes of other axes;
      the same is said by a new axis.
    - ``expm1`` (activation of Apertus) is no operator of ONNX.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.nonzero and args[0].dtype == torch.bool and args[0].dim() == 1 and not kwargs:
            return torch.arange(args[0].shape[0])[:, None]
        if func in (torch.repeat_interleave, torch.Tensor.repeat_interleave):
            values, repeats, dim = _interleaved(*args, **kwargs)
            if isinstance(repeats, int) and dim is not None:
                dim = dim % values.dim()
                return values.unsqueeze(dim + 1).expand(*_sizes(values, dim, repeats)).flatten(dim, dim + 1)
        if func in (torch.expm1, torch.Tensor.expm1):
            return torch.exp(args[0]) - 1
        return func(*args, **kwargs)


def _interleaved(input: Any, repeats: Any, dim: int | None = None, **_: Any) -> tuple[Any, Any, int | None]:
    return input, repeats, dim


def _sizes(values: torch.Tensor, dim: int, repeats: int) -> list[int]:
    """Sizes of ``values`` with a new axis of ``repeats`` behind ``dim``; -1 leaves an axis as it is."""
    return [*[-1] * (dim + 1), repeats, *[-1] * (values.dim() - dim - 1)]
