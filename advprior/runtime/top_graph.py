"""The end of a network as a graph of its own: states in, the K likeliest advertisers of each row out.

A row over 100,000 advertisers is 400 kB, and all that a top-K score keeps of it is some hundred numbers. So the head,
the offset, the log-softmax, its entropy and the top-K are computed where the states are, and [R, K] comes back in place
of [R, N]. What everyone shares of the offset goes in once for all rows, and habit as the few cells of each row that it
touches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from advprior.runtime.session import Engine
from advprior.store.arrays import Float, Int

TOP_FILE = "top.onnx"
_PAD = 8  # numbers: what the width of a product's inner side is a multiple of
_EXTERNAL = 1 << 30  # bytes of weights from which they lie in a file beside the graph: one file holds 2 GB at most


@dataclass(frozen=True)
class TopRows:
    """The K likeliest advertisers of R rows.

    Attributes
    ----------
    index : int32 [R, K]
        Best first.
    log_probs : float32 [R, K]
    tail : float32 [R]
        Log of the probability of all others.
    entropy : float32 [R]
        Of the whole row, in nats.
    """

    index: npt.NDArray[np.int32]
    log_probs: Float
    tail: Float
    entropy: Float


@dataclass(frozen=True)
class Cells:
    """Numbers of a few cells of a matrix [R, N], sorted by row; a cell may come more than once, and counts each time.

    Attributes
    ----------
    row, column : int64 [C]
    value : float32 [C]
    """

    row: Int
    column: Int
    value: Float

    def of_rows(self, start: int, stop: int) -> Cells:
        """Cells of rows from ``start`` to ``stop``, counted from ``start``."""
        first, last = np.searchsorted(self.row, [start, stop])
        return Cells(self.row[first:last] - start, self.column[first:last], self.value[first:last])

    def padded(self, rows: int) -> tuple[Int, Float]:
        """Columns and values [rows, W], one at least; what pads adds nothing to column 0.

        >>> columns, values = Cells(np.array([1, 1]), np.array([4, 2]), np.array([.5, 1.], np.float32)).padded(2)
        >>> columns.tolist(), values.tolist()
        ([[0, 0], [4, 2]], [[0.0, 0.0], [0.5, 1.0]])
        """
        counts = np.bincount(self.row, minlength=rows)
        place = np.arange(len(self.row)) - np.repeat(np.cumsum(counts) - counts, counts)
        shape = (rows, max(int(counts.max(initial=0)), 1))
        columns, values = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        columns[self.row, place], values[self.row, place] = self.column, self.value
        return columns, values


def states_with_bias(states: Float) -> Float:
    """States [R, H] with a one behind each, which the bias is multiplied by: a row of zeros says nothing at all."""
    rows, hidden = states.shape
    width = -(-(hidden + 1) // _PAD) * _PAD
    out = np.zeros((rows, width), np.float32)
    out[:, :hidden], out[:, hidden] = states, 1.0
    return out


def save_top(path: Path, weight: Float, bias: Float) -> None:
    """Write the graph of a head with ``weight`` [N, H] and ``bias`` [N].

    Inputs are ``states`` [R, W] (`states_with_bias`), ``everyone`` [S, N], ``snapshot`` [R] (a row of ``everyone``),
    ``columns`` and ``values`` [R, C] (`Cells.padded`) and ``k`` [1]; with e = exp(logits − max) and p = e / Σe::

        entropy = log Σe + max − Σ p · logits        tail = log Σ_rest e − log Σe
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    size, hidden = weight.shape
    matrix = states_with_bias(np.zeros((size, hidden), np.float32))
    matrix[:, :hidden], matrix[:, hidden] = weight, bias
    real, whole, value = TensorProto.FLOAT, TensorProto.INT64, helper.make_tensor_value_info
    graph = helper.make_graph(
        _top_nodes(helper.make_node),
        "advprior_top",
        [
            value("states", real, ["rows", matrix.shape[1]]),
            value("everyone", real, ["snapshots", size]),
            value("snapshot", whole, ["rows"]),
            value("columns", whole, ["rows", "cells"]),
            value("values", real, ["rows", "cells"]),
            value("k", whole, [1]),
        ],
        [
            value("log_probs", real, ["rows", "k"]),
            value("index", whole, ["rows", "k"]),
            value("tail", real, ["rows"]),
            value("entropy", real, ["rows"]),
        ],
        [
            numpy_helper.from_array(np.ascontiguousarray(matrix.T), "head"),
            numpy_helper.from_array(np.asarray([-1], np.int64), "last"),
            numpy_helper.from_array(np.asarray(0.0, np.float32), "nothing"),
            numpy_helper.from_array(np.asarray(np.finfo(np.float32).tiny, np.float32), "tiny"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if matrix.nbytes > _EXTERNAL:
        beside = {"save_as_external_data": True, "all_tensors_to_one_file": True, "location": f"{path.name}_data"}
        onnx.save(model, str(path), **beside)
    else:
        onnx.checker.check_model(model)
        onnx.save(model, str(path))


def _top_nodes(node: Callable[..., Any]) -> list[Any]:
    """Nodes of `save_top`'s graph."""
    return [
        node("MatMul", ["states", "head"], ["personal"]),
        node("Gather", ["everyone", "snapshot"], ["drift"], axis=0),
        node("Add", ["personal", "drift"], ["before_habit"]),
        node("ScatterElements", ["before_habit", "columns", "values"], ["logits"], axis=1, reduction="add"),
        node("ReduceMax", ["logits", "last"], ["most"], keepdims=1),
        node("Sub", ["logits", "most"], ["lower"]),
        node("Exp", ["lower"], ["e"]),
        node("ReduceSum", ["e", "last"], ["total"], keepdims=1),
        node("Log", ["total"], ["log_total"]),
        node("Mul", ["e", "lower"], ["products"]),
        node("ReduceSum", ["products", "last"], ["product"], keepdims=1),
        node("Div", ["product", "total"], ["mean"]),
        node("Sub", ["log_total", "mean"], ["entropy_column"]),
        node("Squeeze", ["entropy_column", "last"], ["entropy"]),
        node("TopK", ["lower", "k"], ["top_lower", "index"], axis=-1, largest=1, sorted=1),
        node("Sub", ["top_lower", "log_total"], ["log_probs"]),
        # summed over the rest itself: one minus the others' sum would lose a small tail
        node("Mul", ["top_lower", "nothing"], ["zeros"]),
        node("ScatterElements", ["e", "index", "zeros"], ["rest"], axis=1),
        node("ReduceSum", ["rest", "last"], ["rest_total"], keepdims=1),
        node("Max", ["rest_total", "tiny"], ["some_rest"]),
        node("Log", ["some_rest"], ["log_rest"]),
        node("Sub", ["log_rest", "log_total"], ["tail_column"]),
        node("Squeeze", ["tail_column", "last"], ["tail"]),
    ]


class TopHead:
    """An open graph of `save_top`.

    Parameters
    ----------
    engine : Engine
    most_bytes : int
        Of one matrix [R, N] on the device; a handful of them are held at once.
    """

    def __init__(self, engine: Engine, most_bytes: int) -> None:
        self.engine, self._most_bytes = engine, most_bytes

    @property
    def width(self) -> int:
        """Numbers of a state, the bias's column among them."""
        states = next(value for value in self.engine.session.get_inputs() if value.name == "states")
        return int(states.shape[1])

    def run(self, states: Float, everyone: Float, snapshot: Int, cells: Cells, k: int) -> TopRows:
        """The K likeliest of each row.

        Parameters
        ----------
        states : float32 [R, W]
            With the bias's column.
        everyone : float32 [S, N]
        snapshot : int64 [R]
            Row of ``everyone`` that each row starts from.
        cells : Cells
            Of [R, N], added to that.
        k : int
            Below N.
        """
        step = max(1, self._most_bytes // max(4 * everyone.shape[1], 1))
        parts = []
        for start in range(0, len(states), step):
            stop = min(start + step, len(states))
            columns, values = cells.of_rows(start, stop).padded(stop - start)
            inputs: dict[str, Any] = {
                "states": states[start:stop],
                "everyone": everyone,
                "snapshot": snapshot[start:stop],
                "columns": columns,
                "values": values,
                "k": np.asarray([k], np.int64),
            }
            parts.append(self.engine.run_all(inputs))
        if not parts:
            none = np.empty(0, np.float32)
            return TopRows(np.empty((0, k), np.int32), np.empty((0, k), np.float32), none, none)
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return TopRows(whole["index"].astype(np.int32), whole["log_probs"], whole["tail"], whole["entropy"])
