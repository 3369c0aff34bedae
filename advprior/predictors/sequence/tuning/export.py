"""The sequence network as an ONNX graph, and the proof that both say the same."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from advprior.predictors.sequence.settings import SequenceSettings
from advprior.predictors.sequence.tokens import GAPS, PRICES, Vocabulary
from advprior.predictors.sequence.tuning.network import INPUTS, SequenceNetwork, as_tensors
from advprior.predictors.sequence.tuning.train import WEIGHTS
from advprior.predictors.tuning.tracing import quiet
from advprior.runtime.parity import require_parity, worst
from advprior.store.arrays import Float

_SHAPES = ((1, 1, 1), (3, 2, 2), (2, 17, 5), (5, 63, 3))  # batch, tokens, points


def export_sequence(
    run: Path, out: Path, size: int, vocabulary: Vocabulary, settings: SequenceSettings, encodings: Float | None
) -> dict[str, Any]:
    """Write ``model.onnx`` into ``out`` from the weights in ``run``.

    Returns
    -------
    dict
        ``parity``: largest difference in log-prob over several shapes, ``parity_allowed``; ``cases``.

    Raises
    ------
    AdvpriorError
        ``PRI004`` when the graph computes something else.
    """
    from advprior.runtime.session import open_session

    network = SequenceNetwork(
        size, vocabulary, settings.network, None if encodings is None else torch.from_numpy(encodings)
    )
    network.load_state_dict(torch.load(run / WEIGHTS, weights_only=True, map_location="cpu"))
    network.eval()
    rng = np.random.default_rng(0)
    axes = {name: {0: "batch", 1: "tokens"} for name in INPUTS[:4]}
    axes |= {"profile": {0: "batch"}, "log_probs": {0: "batch", 1: "points"}}
    axes |= {name: {0: "batch", 1: "points"} for name in INPUTS[5:]}
    example = _case(rng, 3, 7, 2, size, vocabulary)
    with quiet():
        # the network is small and traced: the newer exporter would need another package and minutes
        warnings.filterwarnings("ignore", message="You are using the legacy", category=DeprecationWarning)
        torch.onnx.export(
            network,
            tuple(as_tensors(example).values()),
            str(out / "model.onnx"),
            input_names=list(INPUTS),
            output_names=["log_probs"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    session = open_session(out / "model.onnx", device="cpu")
    checks = []
    for batch, tokens, points in _SHAPES:
        case = _case(rng, batch, min(tokens, settings.network.context), points, size, vocabulary)
        with torch.inference_mode():
            ours = network(*as_tensors(case).values()).numpy()
        read = {name: case[name] for name in session.inputs}
        where = f"{out} at batch {batch}, {tokens} tokens, {points} points"
        checks.append(require_parity(session.run_inputs(read), ours, where))
    return worst(checks)


def _case(
    rng: np.random.Generator, batch: int, tokens: int, points: int, size: int, vocabulary: Vocabulary
) -> dict[str, Any]:
    levels = [len(v) + 1 for v in vocabulary.profile_levels]
    columns = [rng.integers(0, n, batch) for n in levels]
    return {
        "advertiser": rng.integers(0, size, (batch, tokens)),
        "category": rng.integers(0, len(vocabulary.categories) + 1, (batch, tokens)),
        "price": rng.integers(0, PRICES, (batch, tokens)),
        "gap": rng.integers(0, GAPS, (batch, tokens)),
        "profile": np.stack(columns, 1) if columns else np.zeros((batch, 0), np.int64),
        "positions": rng.integers(0, tokens + 1, (batch, points)),
        "since": rng.integers(0, GAPS, (batch, points)),
        "offset": rng.normal(0.0, 2.0, (batch, points, size)).astype(np.float32),
    }
