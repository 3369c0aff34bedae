"""The end of a network as a graph: the K likeliest, the tail and the entropy of the whole row that never comes back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from advprior.predictors.logit import log_softmax
from advprior.runtime.session import open_session
from advprior.runtime.top_graph import Cells, TopHead, save_top, states_with_bias
from advprior.runtime.topk import top_k
from tests.parity import assert_same_log_probs

N, HIDDEN = 60, 6


@pytest.fixture(scope="module")
def open_head(tmp_path_factory: pytest.TempPathFactory) -> tuple[TopHead, np.ndarray, np.ndarray]:
    path = tmp_path_factory.mktemp("top") / "top.onnx"
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(N, HIDDEN)).astype(np.float32), rng.normal(size=N).astype(np.float32)
    save_top(path, weight, bias)
    # three rows of the catalog at once: what is asked for in parts must come back whole
    return TopHead(open_session(path, device="cpu", threads=1), 3 * 4 * N), weight, bias


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**16), rows=st.integers(0, 9), k=st.integers(1, N - 1), scale=st.sampled_from([0.0, 1.0, 9.0])
)
def test_top_rows_are_those_of_whole_rows(open_head, seed: int, rows: int, k: int, scale: float) -> None:
    opened, weight, bias = open_head
    rng = np.random.default_rng(seed)
    states = scale * rng.normal(size=(rows, HIDDEN)).astype(np.float32)
    everyone, snapshot = rng.normal(size=(3, N)).astype(np.float32), rng.integers(0, 3, rows)
    count = rng.integers(0, 12) if rows else 0
    cells = Cells(
        np.sort(rng.integers(0, max(rows, 1), count)),
        rng.integers(0, N, count),
        rng.normal(size=count).astype(np.float32),
    )
    top = opened.run(states_with_bias(states), everyone, snapshot, cells, k)
    logits = states @ weight.T + bias + everyone[snapshot]
    np.add.at(logits, (cells.row, cells.column), cells.value)  # a cell that comes twice counts twice
    whole = log_softmax(logits)
    index, best, tail = top_k(whole, k)
    assert top.index.shape == top.log_probs.shape == (rows, k)
    assert_same_log_probs(top.log_probs, best)
    assert_same_log_probs(np.take_along_axis(whole, top.index.astype(np.int64), 1), best)  # ties may change places
    # below the smallest number of fp32 a tail is that number
    assert_same_log_probs(np.maximum(top.tail, -80.0), np.maximum(tail, -80.0))
    assert_same_log_probs(top.entropy, -(np.exp(whole, dtype=np.float64) * whole).sum(1))
    if rows and not scale:  # all states alike: nothing ties, as the bias and drift are random
        np.testing.assert_array_equal(top.index, index)


def test_a_row_of_zeros_says_nothing_not_even_the_bias(open_head) -> None:
    opened, _, _ = open_head
    everyone = np.random.default_rng(1).normal(size=(1, N)).astype(np.float32)
    silent = np.zeros_like(states_with_bias(np.zeros((1, HIDDEN), np.float32)))
    none = Cells(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    top = opened.run(silent, everyone, np.zeros(1, np.int64), none, 7)
    assert_same_log_probs(top.log_probs, top_k(log_softmax(everyone), 7)[1])


def test_weights_beyond_one_file_lie_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("advprior.runtime.top_graph._EXTERNAL", 1_000)
    weight = np.random.default_rng(2).normal(size=(300, HIDDEN)).astype(np.float32)
    save_top(tmp_path / "top.onnx", weight, np.zeros(300, np.float32))
    assert (tmp_path / "top.onnx_data").stat().st_size >= 4 * weight.size
    opened = TopHead(open_session(tmp_path / "top.onnx", device="cpu", threads=1), 1 << 20)
    states, everyone = np.ones((2, HIDDEN), np.float32), np.zeros((1, 300), np.float32)
    none = Cells(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    top = opened.run(states_with_bias(states), everyone, np.zeros(2, np.int64), none, 5)
    assert_same_log_probs(top.log_probs, top_k(log_softmax(states @ weight.T), 5)[1])
