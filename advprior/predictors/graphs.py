"""ONNX graphs of the predictors without a network, written by hand with the onnx helpers.

They are a few operators each; going through a tracer would cost torch and gain nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def _save(path: Path, nodes: list[Any], inputs: dict[str, int], size: int, constants: dict[str, Any]) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "advprior",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name, width in inputs.items()],
        [helper.make_tensor_value_info("log_probs", TensorProto.FLOAT, ["batch", size])],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()],
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


def save_svd(path: Path, factors: npt.NDArray[Any], weights: dict[str, float], smoothing: float) -> None:
    """``log_softmax(p·log(popularity + smoothing) + n·x̂ VᵀV + o·log1p(own))`` with x̂ the unit ``log1p(own)``."""
    from onnx import helper

    size = factors.shape[1]
    nodes = [
        helper.make_node("Add", ["own", "one"], ["own_plus"]),
        helper.make_node("Log", ["own_plus"], ["x"]),
        helper.make_node("Mul", ["x", "x"], ["x_squared"]),
        helper.make_node("ReduceSum", ["x_squared", "axes"], ["norm_squared"], keepdims=1),
        helper.make_node("Add", ["norm_squared", "tiny"], ["norm_safe"]),
        helper.make_node("Sqrt", ["norm_safe"], ["norm"]),
        helper.make_node("Div", ["x", "norm"], ["unit"]),
        helper.make_node("MatMul", ["unit", "factors_t"], ["latent"]),
        helper.make_node("MatMul", ["latent", "factors"], ["neighbours"]),
        helper.make_node("Add", ["popularity", "smoothing"], ["smooth"]),
        helper.make_node("Log", ["smooth"], ["log_popularity"]),
        helper.make_node("Mul", ["log_popularity", "w_popularity"], ["a"]),
        helper.make_node("Mul", ["neighbours", "w_neighbours"], ["b"]),
        helper.make_node("Mul", ["x", "w_own"], ["c"]),
        helper.make_node("Add", ["a", "b"], ["ab"]),
        helper.make_node("Add", ["ab", "c"], ["logits"]),
        helper.make_node("LogSoftmax", ["logits"], ["log_probs"], axis=-1),
    ]
    axes = helper.make_node(
        "Constant", [], ["axes"], value=helper.make_tensor("axes_value", 7, [1], [1])  # 7: int64
    )
    constants = {
        "one": 1.0, "tiny": 1e-12, "smoothing": smoothing, "factors": factors, "factors_t": factors.T,
        "w_popularity": weights["popularity"], "w_neighbours": weights["neighbours"], "w_own": weights["own"],
    }  # fmt: skip
    _save(path, [axes, *nodes], {"own": size, "popularity": size}, size, constants)


def run(path: Path, inputs: dict[str, Any]) -> npt.NDArray[np.float32]:
    """Run a graph once on the CPU, for a parity check."""
    from advprior.llm.engine import open_session

    return open_session(path, device="cpu").run_inputs(inputs)
