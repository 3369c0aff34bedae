"""Sessions say what they really run on; batches stay under their budget."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import onnxruntime as ort
import pytest

from advprior.runtime.graphs import save_popularity
from advprior.runtime.session import open_session, real_cores
from advprior.store.errors import AdvpriorError
from tests.parity import assert_same_log_probs


@pytest.fixture
def graph(tmp_path):
    save_popularity(tmp_path / "model.onnx", 5, 0.5)
    return tmp_path / "model.onnx"


INPUTS = {"popularity": np.asarray([[0, 1, 2, 3, 4], [9, 0, 0, 0, 1]], np.float32)}
EXPECTED = np.log((INPUTS["popularity"] + 0.5) / (INPUTS["popularity"] + 0.5).sum(1, keepdims=True))


def test_cpu_says_so(graph):
    engine = open_session(graph, device="cpu", threads=1)
    assert engine.provider == engine.session.get_providers()[0] == "CPUExecutionProvider"
    assert str(engine) == "CPU (asked for)"
    assert engine.session.get_session_options().intra_op_num_threads == 1
    assert_same_log_probs(engine.run_inputs(INPUTS), EXPECTED)


def test_auto_takes_what_the_session_has_and_says_why(graph):
    engine = open_session(graph)
    assert engine.provider == engine.session.get_providers()[0]
    assert engine.reason
    assert engine.reason != "asked for"
    assert engine.threads == real_cores()


def test_batches_of_many_lanes_come_in_order_and_are_not_begun_far_ahead(graph):
    """More than one lane runs at once, the answers are those of one, and a reader that stops stops the rest."""
    from threading import Lock, get_ident

    engine = open_session(graph, device="cpu", threads=2, many=True)
    assert (engine.threads, engine.lanes) == (1, 2)
    begun, threads, lock = [], set(), Lock()

    def run(batch):
        with lock:
            begun.append(batch)
            threads.add(get_ident())
        time.sleep(0.01)
        return engine.run_inputs({"popularity": INPUTS["popularity"] + batch})

    alone = open_session(graph, device="cpu", threads=1)
    answers = engine.each(range(9), run)
    first, _ = next(answers)
    assert first == 0
    assert len(begun) <= 4
    rest = list(answers)
    assert [batch for batch, _ in rest] == list(range(1, 9))
    assert len(threads) == 2
    for batch, answer in rest:
        assert_same_log_probs(answer, alone.run_inputs({"popularity": INPUTS["popularity"] + batch}))

    begun.clear()
    for _ in engine.each(range(100), run):
        break
    assert len(begun) <= 5


def test_an_error_in_a_lane_reaches_the_reader(graph):
    engine = open_session(graph, device="cpu", threads=2, many=True)
    with pytest.raises(ZeroDivisionError):
        list(engine.each([1, 0, 2], lambda batch: 1 / batch))


def test_bound_inputs_give_the_same_numbers(graph):
    """The path that CUDA takes, here with memory of the CPU."""
    engine = open_session(graph, device="cpu", threads=1)
    np.testing.assert_array_equal(engine._run_bound(INPUTS, ("log_probs",), "cpu")[0], engine.run_inputs(INPUTS))
    # a column-major input is copied, not read as if it were row-major
    turned = {"popularity": np.asfortranarray(INPUTS["popularity"])}
    np.testing.assert_array_equal(engine._run_bound(turned, ("log_probs",), "cpu")[0], engine.run_inputs(INPUTS))


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="this build may have CUDA")
def test_cuda_that_is_not_there_is_refused(graph):
    with pytest.raises(AdvpriorError, match=r"PRI031(.|\n)*no CUDA"):
        open_session(graph, device="cuda")


def test_unknown_device(graph):
    with pytest.raises(AdvpriorError, match="PRI031"):
        open_session(graph, device="tpu")


@pytest.mark.parametrize("content", [None, b"", b"not a graph", "half"])
def test_a_graph_that_cannot_be_opened(graph, content):
    if content is None:
        graph.unlink()
    else:
        graph.write_bytes(graph.read_bytes()[: graph.stat().st_size // 2] if content == "half" else content)
    with pytest.raises(AdvpriorError, match="PRI030"):
        open_session(graph)


def test_no_training_stack_is_imported(graph):
    code = (
        "import sys; from pathlib import Path; from advprior.runtime.session import open_session; "
        f"open_session(Path({str(graph)!r})); "
        "print({'torch', 'transformers', 'optimum', 'onnx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "set()"), done.stderr


def test_real_cores_are_at_most_the_logical_ones():
    assert 1 <= real_cores() <= (os.cpu_count() or 1)
