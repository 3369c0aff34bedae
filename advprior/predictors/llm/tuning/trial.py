"""A kind of base model that no test has measured is exported once before its fit: shallow, with its own weights."""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from advprior.predictors.llm.tuning.export import MODEL_FILE, export_onnx, no_export, parity, parity_cases
from advprior.predictors.llm.tuning.families import is_measured
from advprior.predictors.llm.tuning.model import AdvertiserConfig, AdvertiserModel, filled
from advprior.predictors.tuning.anatomy import sliced
from advprior.store.errors import AdvpriorError

_ADVERTISERS = 5
_TOKENS = 256  # of the vocabulary: rows of a table differ in no operation
_LEAST_LAYERS = 2
_SHAPES = ((1, 1, 1), (2, 7, 3), (3, 40, 4))


def require_export(base: Any, *, frozen: bool, context: int) -> None:
    """Refuse a decoder that could not be exported after its fit; says nothing of one that is measured.

    Parameters
    ----------
    base : PreTrainedModel
        Decoder with the kept layers.
    frozen : bool
        Whether its lower layers are cut off.
    context : int
        Longest prompt.

    Raises
    ------
    AdvpriorError
        ``PRI054`` when it cannot be exported, or its graph says other things. One that cannot be cut is left to
        `advprior.predictors.llm.tuning.model.from_base`.
    """
    if is_measured(base.config):
        return
    print(f"base model of kind {base.config.model_type}: trying its export before the fit", file=sys.stderr)
    try:
        model = _shallow(base, frozen)
    except Exception:  # whatever an architecture's own code raises
        return
    with tempfile.TemporaryDirectory() as folder, _silent():
        try:
            export_onnx(model, Path(folder))
            parity(model, Path(folder) / MODEL_FILE, parity_cases(model, context, _SHAPES))
        except AdvpriorError as error:
            if error.code == "PRI054":
                raise
            raise no_export(model, error) from error


def _shallow(base: Any, frozen: bool) -> AdvertiserModel:
    """A network of a base model's first layers, with every kind of layer among them."""
    every = int(base.config.num_hidden_layers)
    layers = min(max(_LEAST_LAYERS, _until_all_kinds(base.config, every)), every)
    table = base.get_input_embeddings().weight
    text = min(_TOKENS, table.shape[0])
    config = AdvertiserConfig(
        backbone=sliced(base.config, 0, layers).to_dict(),
        catalog_size=_ADVERTISERS,
        frozen_layers=1 if frozen and layers > 1 else 0,
        text_vocab_size=text,
    )
    model = filled(base, config, table[:_ADVERTISERS].detach())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # a head that says nothing would hide every difference
        model.head.weight.normal_(std=1 / model.head.in_features**0.5, generator=generator)
    return model


def _until_all_kinds(config: Any, layers: int) -> int:
    """How many of the first layers hold every value of what a configuration lists layer by layer."""
    most = 1
    for name, values in vars(config).items():
        if "layer" in name and isinstance(values, (list, tuple)) and len(values) == layers:
            kinds = [str(value) for value in values]
            most = max(most, 1 + max(kinds.index(kind) for kind in kinds))
    return most


@contextlib.contextmanager
def _silent() -> Any:
    """What the tracer and ONNX Runtime print of a failure: the error says it once."""
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        ort.set_default_logger_severity(2)
