"""ONNX graphs of the predictors without a network, written by hand with the onnx helpers.

They are a few operators each; going through a tracer would cost torch and gain nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def _save(
    path: Path,
    nodes: list[Any],
    inputs: dict[str, int],
    size: int,
    constants: dict[str, Any],
    integers: dict[str, list[int]] | None = None,
) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "advprior",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name, width in inputs.items()],
        [helper.make_tensor_value_info("log_probs", TensorProto.FLOAT, ["batch", size])],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()]
        + [numpy_helper.from_array(np.asarray(value, np.int64), name) for name, value in (integers or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def save_popularity(path: Path, size: int, smoothing: float) -> None:
    """``log_softmax(log(popularity + smoothing))``."""
    from onnx import helper

    nodes = [
        helper.make_node("Add", ["popularity", "smoothing"], ["smooth"]),
        helper.make_node("Log", ["smooth"], ["logits"]),
        helper.make_node("LogSoftmax", ["logits"], ["log_probs"], axis=-1),
    ]
    _save(path, nodes, {"popularity": size}, size, {"smoothing": smoothing})


@dataclass(frozen=True)
class Constants:
    """What is added before a logarithm: to popularity, and to what is linked."""

    smoothing: float
    floor: float


def save_neighbours(
    path: Path, size: int, matrices: list[list[npt.NDArray[Any]] | None], weights: list[float], constant: Constants
) -> None:
    """``log_softmax(w0·log(popularity + smoothing) + Σ wk·log1p(own_k) + Σ wm·log(relu(log1p(own_0)·S_m) + floor))``.

    Each S_m [N, N] comes as the matrices whose product it is: a narrow one between is fewer numbers. Without any,
    ``relu(log1p(own_0)·S_m)`` is an input of its own, ``linked{m}`` [B, N]: it is cheap where S_m is sparse.
    """
    from onnx import helper

    habits = len(weights) - 1 - len(matrices)
    inputs = {"popularity": size, **{f"own{k}": size for k in range(habits)}}
    nodes = [
        helper.make_node("Add", ["popularity", "smoothing"], ["smooth"]),
        helper.make_node("Log", ["smooth"], ["log_popularity"]),
        helper.make_node("Mul", ["log_popularity", "w0"], ["sum0"]),
    ]
    for k in range(habits):
        nodes += [
            helper.make_node("Add", [f"own{k}", "one"], [f"own_plus{k}"]),
            helper.make_node("Log", [f"own_plus{k}"], [f"x{k}"]),
            helper.make_node("Mul", [f"x{k}", f"w{k + 1}"], [f"term{k}"]),
            helper.make_node("Add", [f"sum{k}", f"term{k}"], [f"sum{k + 1}"]),
        ]
    constants: dict[str, Any] = {"one": 1.0, "smoothing": constant.smoothing, "floor": constant.floor}
    for m, factors in enumerate(matrices):
        last = "x0"
        for k, factor in enumerate(factors or []):
            constants[f"matrix{m}_{k}"] = factor
            nodes.append(helper.make_node("MatMul", [last, f"matrix{m}_{k}"], [last := f"near{m}_{k}"]))
        if factors is None:
            inputs[f"linked{m}"] = size
        else:
            nodes.append(helper.make_node("Relu", [last], [f"linked{m}"]))
        nodes += [
            helper.make_node("Add", [f"linked{m}", "floor"], [f"near_floor{m}"]),
            helper.make_node("Log", [f"near_floor{m}"], [f"log_near{m}"]),
            helper.make_node("Mul", [f"log_near{m}", f"w{habits + 1 + m}"], [f"near_term{m}"]),
            helper.make_node("Add", [f"sum{habits + m}", f"near_term{m}"], [f"sum{habits + m + 1}"]),
        ]
    logits = f"sum{habits + len(matrices)}"
    nodes.append(helper.make_node("LogSoftmax", [logits], ["log_probs"], axis=-1))
    constants |= {f"w{k}": weight for k, weight in enumerate(weights)}
    _save(path, nodes, inputs, size, constants)


def save_text(path: Path, features: npt.NDArray[Any], right: npt.NDArray[Any], back_off: float) -> None:
    """``log_softmax(own·F / (Σ own + back_off) · R + offset)`` with features F [N, K] and R [K, N]."""
    from onnx import helper

    nodes = [
        helper.make_node("MatMul", ["own", "features"], ["events_by_text"]),
        helper.make_node("ReduceSum", ["own", "axes"], ["total"], keepdims=1),
        helper.make_node("Add", ["total", "back_off"], ["norm"]),
        helper.make_node("Div", ["events_by_text", "norm"], ["taste"]),
        helper.make_node("MatMul", ["taste", "right"], ["personal"]),
        helper.make_node("Add", ["personal", "offset"], ["logits"]),
        helper.make_node("LogSoftmax", ["logits"], ["log_probs"], axis=-1),
    ]
    size = len(features)
    constants = {"features": features, "right": right, "back_off": back_off}
    _save(path, nodes, {"own": size, "offset": size}, size, constants, {"axes": [1]})


def run(path: Path, inputs: dict[str, Any]) -> npt.NDArray[np.float32]:
    """Run a graph once on the CPU, for a parity check."""
    from advprior.runtime.session import open_session

    return open_session(path, device="cpu").run_inputs(inputs)
