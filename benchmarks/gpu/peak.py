"""What a card or a processor can do at most: the rate of one large matrix product, by ONNX Runtime itself."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from advprior.runtime.session import SessionChoice, open_graph

SIDE = {"cuda": 8192, "cpu": 2048}
REPEATS = 10
_TYPES = {"fp32": 1, "tf32": 1, "fp16": 10, "bf16": 16}  # onnx.TensorProto's numbers


def matmul_rate(device: str, precision: str) -> float:
    """Operations a second of a square matrix product [`SIDE`, `SIDE`], operands and result where they are computed.

    The product is repeated within the graph, so that calls and the transfer of the result cost nothing beside it.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    side, kind = SIDE[device], _TYPES[precision]
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
        session = open_graph(path, SessionChoice(device=device, precision=precision)).session
        scale = {"scale": np.ones(1, np.float32)}
        session.run(None, scale)
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            session.run(None, scale)
            seconds.append(time.perf_counter() - started)
    return 2.0 * side**3 * REPEATS / min(seconds)
