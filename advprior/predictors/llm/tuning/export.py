"""From the tuned model to an ONNX graph through Hugging Face Optimum, and the proof that both say the same.

The graph takes right-padded token ids and positions and gives log-probabilities over the catalog; it holds
no vocabulary logits. Optimum's own exports of a classifier look for the last token by its id, which
is wrong when a prompt ends with the pad token's id: hence a configuration of our own, with positions as input.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from optimum.exporters.onnx import OnnxConfig, export
from optimum.exporters.tasks import TasksManager
from optimum.utils.normalized_config import NormalizedTextConfig

from advprior.predictors.llm.tuning.attention import traceable
from advprior.predictors.llm.tuning.families import FAMILIES
from advprior.predictors.llm.tuning.fused import can_fuse, fused
from advprior.predictors.tuning.tracing import Exportable, quiet
from advprior.runtime.parity import require_parity, worst
from advprior.runtime.precision import BF16, FP16, FP32, write_note
from advprior.runtime.top_graph import TOP_FILE, save_top
from advprior.store.arrays import Float, Int
from advprior.store.errors import AdvpriorError
from advprior.store.runs import sha256_file

BLOCKS, FUSED = "blocks", "fused"
_DTYPES = {FP16: torch.float16, BF16: torch.bfloat16}
#: input_ids [B, T], attention_mask [B, T], positions [B, P], offset [B, P, N]
Case = tuple[Int, Int, Int, npt.NDArray[np.float32]]

MODEL_FILE = "model.onnx"
_TASK = "feature-extraction"
_FP32_PARTS = ("head.", "interest_head.")
_STATES = "states"  # what `advprior.runtime.top_graph` goes on from: held to the model by what it says of log-probs
_INPUTS = ("input_ids", "attention_mask", "positions", "offset")
#: batch, sequence and points of the cases; the longest prompt comes after them
SHAPES = ((1, 1, 1), (1, 2, 1), (2, 7, 3), (5, 33, 2), (3, 96, 9), (2, 257, 4))
_LONGEST_POINTS = 12

_register = TasksManager.create_register("onnx", overwrite_existing=True)


@_register("advprior", _TASK)
class AdvertiserOnnxConfig(OnnxConfig):  # type: ignore[misc]
    """Inputs, outputs and free axes of the exported graph."""

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {
            "input_ids": {0: "batch", 1: "sequence"},
            "attention_mask": {0: "batch", 1: "sequence"},
            "positions": {0: "batch", 1: "points"},
            "offset": {0: "offset_batch", 1: "offset_points"},  # or one for all
        }

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        names = ["log_probs", *(["interest_log_probs"] if self._config.interests else []), "states"]
        return {name: {0: "batch", 1: "points"} for name in names}

    def generate_dummy_inputs(self, framework: str = "pt", **_: Any) -> dict[str, Any]:
        """A padded batch with all sizes different and none of them 1, so that no axis is taken for another."""
        case = dict(zip(_INPUTS, _case(np.random.default_rng(0), 3, 17, 5, self._config), strict=True))
        return {name: torch.from_numpy(value) if framework == "pt" else value for name, value in case.items()}


@dataclass(frozen=True)
class GraphForm:
    """How a graph computes.

    Parameters
    ----------
    precision : {"fp32", "tf32", "bf16", "fp16"}
        Of the layers; rotary angles, norms, heads and log-softmax stay in fp32. A graph in tf32 is that of fp32.
    attention : {"blocks", "fused"}
        Spelled out in blocks of queries, for CPUs (`tuning.attention`), or ONNX Runtime's operators (`tuning.fused`).
    """

    precision: str = FP32
    attention: str = BLOCKS


def export_onnx(model: Any, out: Path, form: GraphForm | None = None) -> dict[str, Any]:
    """Write ``model`` as ``out/model.onnx``; `parity` says whether it computes the same.

    Parameters
    ----------
    model : AdvertiserModel
        ``forward(input_ids, attention_mask, positions, offset) -> {"log_probs", "states"}``, and
        ``"interest_log_probs"`` where it has interests; moved to the CPU in float32. No token may see a later one: see
        `tuning.attention`. Its head is written beside as ``top.onnx`` (`advprior.runtime.top_graph`). A graph beyond
        2 GB lies in ``model.onnx`` and ``model.onnx_data``.
    out : Path
        Folder.
    form : GraphForm, optional

    Returns
    -------
    dict
        ``file``, ``bytes``, ``sha256``, ``opset``, ``seconds``, ``inputs``, ``outputs``, ``precision``, ``attention``.

    Raises
    ------
    AdvpriorError
        ``PRI054`` when it cannot be traced, ``PRI034`` when its attention is asked fused and is not plain.
    """
    started = time.perf_counter()
    form = form or GraphForm()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    path = out / MODEL_FILE
    constructor = TasksManager.get_exporter_config_constructor(
        "onnx", model_type=model.config.model_type, task=_TASK, library_name="transformers"
    )
    config = constructor(model.config)
    model = model.to("cpu", torch.float32).eval()
    if form.attention == FUSED:
        _require_plain(model)
    traced = cast(model, form.precision)
    with_attention = fused if form.attention == FUSED else traceable
    try:
        with quiet(), with_attention(traced), Exportable():
            inputs, outputs = export(traced, config, path, disable_dynamic_axes_fix=True)
            _fix_widths(path, traced, config)
    except Exception as error:  # whatever the tracer makes of an architecture's own code
        raise no_export(model, error) from error
    if _STATES in outputs:
        weight, bias = (x.detach().numpy() for x in (model.head.weight, model.head.bias))
        save_top(out / TOP_FILE, weight, bias)
    write_note(out, precision=form.precision, attention=form.attention)
    return {
        "file": MODEL_FILE,
        "bytes": sum(file.stat().st_size for file in out.glob(f"{MODEL_FILE}*")),
        "sha256": sha256_file(path),
        "opset": config.DEFAULT_ONNX_OPSET,
        "inputs": inputs,
        "outputs": outputs,
        "precision": form.precision,
        "attention": form.attention,
        "seconds": round(time.perf_counter() - started, 2),
    }


def _fix_widths(path: Path, model: Any, config: OnnxConfig) -> None:
    """Give each output its fixed last axis, where a fused operator hid it from the exporter.

    Optimum would run the graph on the CPU to find it, which has no kernels for bf16.
    """
    graph = onnx.load(str(path), load_external_data=False)
    with torch.inference_mode():
        outputs = model(**config.generate_dummy_inputs())
    for value in graph.graph.output:
        value.type.tensor_type.shape.dim[-1].dim_value = int(outputs[value.name].shape[-1])
    onnx.save(graph, str(path))


def cast(model: Any, precision: str) -> Any:
    """The model with its layers in half precision: a copy; itself in fp32 and tf32.

    Parameters alone are cast. Buffers stay: rotary frequencies times a thousand have more digits than half precision.
    Norms raise what they are given to fp32 by themselves, as does a softmax of scores; heads stay in fp32.
    """
    if precision not in _DTYPES:
        return model
    reduced = copy.deepcopy(model)
    for name, parameter in reduced.named_parameters():
        if not name.startswith(_FP32_PARTS):
            parameter.data = parameter.data.to(_DTYPES[precision])
    return reduced


def _require_plain(model: Any) -> None:
    if not can_fuse(model):
        raise AdvpriorError(
            "PRI034",
            "this kind of model's attention cannot be fused",
            where=str(model.config.backbone.get("model_type", type(model).__name__)),
            actual="windows, caps, terms on scores, or heads of a size that is no multiple of 8",
            expected="causal scaled dot products of all tokens before",
            fix="advprior export RUN --attention blocks",
        )


def no_export(model: Any, error: Exception) -> AdvpriorError:
    """The error of an architecture that cannot be exported, or whose graph does not run."""
    first = (str(error).strip() or "no reason given").splitlines()[0][:160]
    return AdvpriorError(
        "PRI054",
        "this kind of model cannot be exported",
        where=str(model.config.backbone.get("model_type", type(model).__name__)),
        actual=f"{type(error).__name__}: {first}",
        expected=f"one of the kinds that were measured: {', '.join(FAMILIES)}",
        fix="set `base` to a model of one of these kinds",
    )


def parity(model: Any, path: Path, cases: Sequence[Case]) -> dict[str, Any]:
    """Run the graph beside torch; how far they are apart in log-prob, over real tokens' positions.

    Parameters
    ----------
    model : AdvertiserModel
    path : Path
        The exported ``model.onnx``.
    cases : sequence of (input_ids [B, T], attention_mask [B, T], positions [B, P], offset [B, P, N])
        See `parity_cases`.

    Returns
    -------
    dict
        ``parity`` and ``parity_allowed`` (see `advprior.runtime.parity`), ``probability_sum_error`` (of the graph),
        ``cases`` (number), ``parity_by_shape`` (one dict each with ``batch``, ``sequence``, ``points``, ``parity``,
        ``parity_allowed``).

    Raises
    ------
    AdvpriorError
        ``PRI004`` when the graph has other outputs, or says something else; ``PRI054`` when it does not run.
    """
    from advprior.runtime.session import open_session

    engine = open_session(path, device="cpu")
    shapes, sums = [], 0.0
    for case in cases:
        with torch.inference_mode():
            ours = {name: value.numpy() for name, value in model(*(torch.from_numpy(array) for array in case)).items()}
        try:
            theirs = engine.run_all(dict(zip(_INPUTS, case, strict=True)))
        except Exception as error:  # ONNX Runtime has an exception of its own for each kind
            raise no_export(model, error) from error
        _require_outputs(theirs, ours, path)
        (batch, sequence), points = case[0].shape, case[2].shape[1]
        where = f"{path} at batch {batch}, sequence {sequence}, points {points}"
        spoken = [name for name in ours if name != _STATES]
        check = worst([require_parity(theirs[name], ours[name], f"{where}, {name}") for name in spoken])
        shapes.append({"batch": batch, "sequence": sequence, "points": points, **check})
        for log_probs in (theirs[name] for name in spoken):
            sums = float(np.fmax(sums, np.abs(np.exp(log_probs.astype(np.float64)).sum(-1) - 1).max()))
    return {**worst(shapes), "probability_sum_error": sums, "parity_by_shape": shapes}


def _require_outputs(graph: dict[str, Float], model: dict[str, Float], path: Path) -> None:
    """Names and shapes of the outputs."""
    actual, expected = ({name: value.shape for name, value in side.items()} for side in (graph, model))
    if actual != expected:
        raise AdvpriorError(
            "PRI004",
            "the exported graph differs from the model",
            where=str(path),
            actual=f"outputs {actual}",
            expected=f"{expected}",
            fix="advprior export RUN --force, with the locked versions",
        )


def parity_cases(
    model: Any, context: int = 1000, shapes: Sequence[tuple[int, int, int]] = SHAPES, seed: int = 0
) -> list[Case]:
    """Random right-padded batches of several (batch, sequence, points), from one token to ``context`` tokens.

    The longest prompt is among them: positions and windows of attention may change with the length.
    """
    rng = np.random.default_rng(seed)
    longest = min(context, model.config.longest() or context)
    every = [shape for shape in shapes if shape[1] < longest] + [(1, longest, _LONGEST_POINTS)]
    return [_case(rng, batch, sequence, points, model.config) for batch, sequence, points in every]


def _case(rng: np.random.Generator, batch: int, sequence: int, points: int, config: Any) -> Case:
    """One right-padded batch: the first row full, the others shorter; positions at real tokens only."""
    lengths = rng.integers(1, sequence + 1, batch)
    lengths[0] = sequence
    mask = (np.arange(sequence) < lengths[:, None]).astype(np.int64)
    # input ids: text tokens, then one per advertiser
    ids = rng.integers(0, config.text_vocab_size + config.catalog_size, (batch, sequence)) * mask
    positions = rng.integers(0, lengths[:, None], (batch, points))
    positions[:, -1] = lengths - 1
    offset = rng.normal(0.0, 2.0, (batch, points, config.catalog_size)).astype(np.float32)
    return ids.astype(np.int64), mask, positions.astype(np.int64), offset
