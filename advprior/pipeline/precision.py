"""Half precision for a faster graph on GPUs, behind a gate: what it damages is measured on real histories first.

The head, the offset and the log-softmax stay in fp32, as do squares and means, which overflow. It is never taken on
trust: a log-probability that is off reorders the tail of a catalog long before anything looks broken.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from advprior.runtime.parity import allowed_difference, largest_difference
from advprior.store.arrays import Float
from advprior.store.errors import AdvpriorError

#: The gate. Nats, nats, share of the ten likeliest, nats.
LIMITS = {"mean_difference": 0.02, "max_difference": 1.0, "top10_overlap": 0.95, "nll_change": 0.005}
#: A prior alone against the same in a batch, of the largest log-prob: half precision rounds by the shape of the batch
ALONE = 4e-3
ALONE_SAMPLE = 5
SAMPLE = 200  # users that damage is measured on
_FP32_OPERATORS = ("Pow", "ReduceMean", "Sqrt", "Reciprocal", "LogSoftmax", "SimplifiedLayerNormalization")
_HEAD = ("LogSoftmax", "Cast", "Add", "MatMul", "Gemm")


@dataclass(frozen=True)
class Damage:
    """What a reduced graph does to priors, against the full one.

    Attributes
    ----------
    mean_difference, max_difference : float
        Absolute, of log-probabilities.
    top10_overlap : float
        Mean share of the ten likeliest advertisers that stay among them.
    nll_change : float
        Of labels after the cut-off, in nats; NaN without labels.
    priors : int
        Rows compared.
    """

    mean_difference: float
    max_difference: float
    top10_overlap: float
    nll_change: float
    priors: int

    def exceeded(self) -> list[str]:
        """What is beyond `LIMITS`, in words."""
        problems = []
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            if name == "nll_change" and np.isnan(value):
                continue
            good = value >= limit if name == "top10_overlap" else value <= limit  # a NaN is not good
            if not good:
                problems.append(f"{name} {value:.3f} (limit {limit})")
        return problems


def damage(full: Float, reduced: Float, truth: Float | None = None) -> Damage:
    """Compare log-probs [R, N]; ``truth`` [R, N] is multi-hot, rows of zeros have no label.

    Examples
    --------
    >>> full = np.log(np.asarray([[0.5, 0.3, 0.2]], np.float32))
    >>> swapped = np.log(np.asarray([[0.3, 0.5, 0.2]], np.float32))
    >>> measured = damage(full, swapped, np.asarray([[1, 0, 0]], np.float32))
    >>> round(measured.nll_change, 3), round(measured.max_difference, 3), measured.top10_overlap
    (0.511, 0.511, 1.0)
    """
    difference = np.abs(full.astype(np.float64) - reduced)
    k = min(10, full.shape[1])
    best = [np.argsort(-x, axis=1, kind="stable")[:, :k] for x in (full, reduced)]
    overlap = np.mean([len(set(a) & set(b)) / k for a, b in zip(*best, strict=True)])
    change = float("nan")
    if truth is not None and truth.sum():
        change = float(((full.astype(np.float64) - reduced) * truth).sum() / truth.sum())
    return Damage(float(difference.mean()), float(difference.max()), float(overlap), change, len(full))


def write_reduced(source: Path, out: Path) -> None:
    """Write ``source`` (fp32) as ``out`` in half precision."""
    import logging

    import onnx
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises a preprocessing that the exported graph does not need
    try:
        model = onnx.load(str(source))
        reduced = convert_float_to_float16(
            model,
            keep_io_types=True,
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_FP32_OPERATORS],
            node_block_list=_head_nodes(model),
        )
        _drop_round_trips(reduced)
        onnx.save(reduced, str(out))
    finally:
        root.setLevel(level)


def _head_nodes(model: Any) -> list[str]:
    """Names of the nodes from the head to the log-softmax: they stay in fp32."""
    made = {name: node for node in model.graph.node for name in node.output}
    nodes, waiting = [], [made[output.name] for output in model.graph.output]
    while waiting:
        node = waiting.pop()
        if node.op_type in _HEAD and node.name not in nodes:
            nodes.append(node.name)
            waiting += [made[name] for name in node.input if name in made]
    return nodes


def _drop_round_trips(model: Any) -> None:
    """Where fp32 goes through fp16 to fp32 again, between nodes that both stay in fp32, keep the fp32.

    The conversion casts what every blocked node gives; at the end of the graph that would round the log-probs.
    """
    from onnx import TensorProto

    def cast(node: Any, kind: int) -> bool:
        return bool(node is not None and node.op_type == "Cast" and node.attribute[0].i == kind)

    made = {name: node for node in model.graph.node for name in node.output}
    blocked = {*_HEAD, *_FP32_OPERATORS} - {"Cast"}
    inputs = {i.name for i in model.graph.input if i.type.tensor_type.elem_type == TensorProto.FLOAT}

    def fp32(name: str) -> bool:
        source = made.get(name)
        return name in inputs or cast(source, TensorProto.FLOAT) or _stays(source, blocked, made)

    for node in model.graph.node:
        down = made.get(node.input[0]) if cast(node, TensorProto.FLOAT) else None
        if down is not None and cast(down, TensorProto.FLOAT16) and fp32(down.input[0]):
            node.input[0] = down.input[0]  # a cast of fp32 to fp32, which the runtime drops: names stay as they are


def _stays(node: Any, blocked: set[str], made: dict[str, Any]) -> bool:
    """Whether the conversion left a node in fp32: all of its inputs that nodes make come from casts to fp32."""
    from onnx import TensorProto

    if node is None or node.op_type not in blocked:
        return False
    before = [made[name] for name in node.input if name in made]
    return bool(before) and all(
        b.attribute[0].i == TensorProto.FLOAT if b.op_type == "Cast" else _stays(b, blocked, made) for b in before
    )


def reduce_export(run: Path, folder: Path, tables: Path) -> dict[str, Any]:
    """Put a graph in half precision in the place of ``folder/model.onnx``, or refuse.

    Parameters
    ----------
    run : Path
        Finetune run of the LLM.
    folder : Path
        Holds the fp32 ``model.onnx``.
    tables : Path
        Canonical tables: priors of up to 200 users at the end of fine-tuning are compared, and the labels after it.

    Returns
    -------
    dict
        ``precision``, ``damage``.

    Raises
    ------
    AdvpriorError
        ``PRI014`` for a predictor without a network to reduce, ``PRI015`` when the damage is above `LIMITS`.
    """
    from advprior.history.histories import micros
    from advprior.history.read import load_histories
    from advprior.history.targets import dense, next_advertisers
    from advprior.predictors.llm.predictor import LLMPredictor
    from advprior.predictors.registry import load_predictor
    from advprior.store.tables import load_time_plan

    predictor = load_predictor(run)
    if not isinstance(predictor, LLMPredictor):
        raise AdvpriorError(
            "PRI014",
            f"{predictor.kind} has no network to reduce",
            where=str(run),
            expected="the LLM's run",
            fix="advprior export RUN, without --precision",
        )
    histories, catalog = load_histories(tables)
    predictor.catalog.require_same(catalog, where=f"{tables}/advertisers.parquet against {run}", fix="take its tables")
    plan = load_time_plan(tables)
    cutoff = np.asarray([micros(plan.finetune_end)], np.int64)
    rng = np.random.default_rng(0)
    users = np.sort(rng.choice(len(histories), min(SAMPLE, len(histories)), replace=False)).astype(np.int64)
    full = predictor.scorer(folder, "cpu").score(histories, users, cutoff)[:, 0]
    beside = folder / "reduced"
    beside.mkdir()
    write_reduced(folder / "model.onnx", beside / "model.onnx")
    small = predictor.scorer(beside, "cpu")
    reduced = small.score(histories, users, cutoff)[:, 0]
    horizon = micros(plan.train_end) - int(cutoff[0])
    labels = next_advertisers(histories, users, np.repeat(cutoff - 1, len(users)), horizon)
    measured = damage(full, reduced, dense(*labels, len(catalog)))
    again = [small.score(histories, users[i : i + 1], cutoff)[0, 0] for i in range(min(ALONE_SAMPLE, len(users)))]
    alone = largest_difference(np.stack(again), reduced[: len(again)])
    allowed = allowed_difference(reduced[: len(again)], ALONE)
    beyond = measured.exceeded()
    if not alone <= allowed:
        beyond.append(f"alone and in a batch differ by {alone:.1e} (limit {allowed:.1e})")
    if beyond:
        raise AdvpriorError(
            "PRI015",
            "half precision damages the priors",
            where=str(run),
            actual=", ".join(beyond),
            expected=", ".join(f"{n} {'>=' if n == 'top10_overlap' else '<='} {v}" for n, v in LIMITS.items()),
            fix=f"advprior export {run}, in fp32",
        )
    for file in folder.glob("model.onnx*"):
        file.unlink()
    for file in beside.iterdir():
        file.rename(folder / file.name)
    beside.rmdir()
    return {"precision": "fp16", "damage": asdict(measured) | {"alone_difference": alone}}
