"""What a card or a processor can do at most: the rate of one large matrix product, by ONNX Runtime itself."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from advprior.runtime.session import SessionChoice, open_graph

SIDE, SIDE_CPU = 8192, 4096
REPEATS = 10
_TYPES = {"fp32": 1, "tf32": 1, "fp16": 10, "bf16": 16}  # onnx.TensorProto's numbers


def cpu_matmul_rate() -> float:
    """Operations a second of a large product in float32, by numpy's library on all cores."""
    rng = np.random.default_rng(0)
    left, right = (rng.normal(size=(SIDE_CPU, SIDE_CPU)).astype(np.float32) for _ in range(2))
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - started)
    return 2.0 * SIDE_CPU**3 / min(seconds)


def matmul_rate(precision: str) -> float:
    """Operations a second of a square matrix product [`SIDE`, `SIDE`] on the card, operands and result there.

    The product is repeated within the graph, so that calls and the transfer of the result cost nothing beside it.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    side, kind = SIDE, _TYPES[precision]
    rng = np.random.default_rng(0)
    matrix = (rng.normal(size=(side, side)) / np.sqrt(side)).astype(np.float32)  # products keep their size
    nodes = [helper.make_node("Cast", [name], [f"{name}_0"], to=kind) for name in ("left", "right")]
    nodes += [helper.make_node("MatMul", [f"left_{i}", "right_0"], [f"left_{i + 1}"]) for i in range(REPEATS)]
    nodes.append(helper.make_node("Cast", [f"left_{REPEATS}"], ["last"], to=TensorProto.FLOAT))
    nodes.append(helper.make_node("ReduceMean", ["last"], ["mean"], keepdims=0))
    graph = helper.make_graph(
        nodes,
        "peak",
        [helper.make_tensor_value_info("scale", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("mean", TensorProto.FLOAT, [])],
        [numpy_helper.from_array(matrix, name) for name in ("plain", "right")],
    )
    graph.node.insert(0, helper.make_node("Mul", ["plain", "scale"], ["left"]))  # not folded when it is loaded
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "peak.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
        session = open_graph(path, SessionChoice(device="cuda", precision=precision)).session
        scale = {"scale": np.ones(1, np.float32)}
        session.run(None, scale)
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            session.run(None, scale)
            seconds.append(time.perf_counter() - started)
    return 2.0 * side**3 * REPEATS / min(seconds)
