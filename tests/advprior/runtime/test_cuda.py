"""What a machine without a GPU can show of one: names of devices and libraries, buffers, the provider's settings."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from advprior.runtime import cuda
from advprior.runtime.buffers import DeviceBuffers
from advprior.runtime.graphs import save_popularity
from advprior.runtime.precision import FP16, FP32, TF32, precision_of, write_note
from advprior.runtime.session import cuda_options, open_session
from advprior.store.errors import AdvpriorError


def test_a_library_that_is_missing_is_named_by_the_loader_itself(tmp_path: Path) -> None:
    assert cuda.loading_problem([]) is None
    assert cuda.loading_problem([Path("libcublasLt.so.99")]) == (
        "libcublasLt.so.99 is missing (of the package nvidia-cublas, in the extra [gpu])"
    )
    assert cuda.loading_problem([Path("libnobody.so.1")]) == "libnobody.so.1 is missing (of the system)"
    assert (cuda.loading_problem(["libcurand.so.99", "libcufft.so.99"]) or "").count("is missing") == 2
    broken = tmp_path / "libcudart.so.13"
    broken.write_bytes(b"no library")
    assert "libcudart.so.13" in (cuda.loading_problem([broken]) or "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ELF is Linux's")
def test_what_a_library_needs_is_read_from_its_header(tmp_path: Path) -> None:
    module = next(Path(ort.__file__).parent.glob("capi/*.so"))
    assert "libc.so.6" in cuda.needed_libraries(module)
    other = tmp_path / "other.so"
    other.write_bytes(b"MZ" * 100)
    assert cuda.needed_libraries(other) == []


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "cuda:0,0", "cuda:0,", ""])
def test_no_such_device(device: str) -> None:
    with pytest.raises(AdvpriorError, match="PRI031"):
        cuda.device_ids(device)


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="this build may have CUDA")
def test_a_machine_without_a_gpu_says_so() -> None:
    assert cuda.device_name() is None
    assert cuda.free_memory() is None
    assert cuda.problem()


def test_products_of_fp32_are_not_rounded_unless_asked_for() -> None:
    assert cuda_options(1, FP32) == {"device_id": 1, "use_tf32": 0, "arena_extend_strategy": "kSameAsRequested"}
    assert cuda_options(0, FP16)["use_tf32"] == 0
    assert cuda_options(0, TF32)["use_tf32"] == 1


def test_a_graph_knows_its_precision_from_the_note_beside_it(tmp_path: Path) -> None:
    save_popularity(tmp_path / "model.onnx", 5, 0.5)
    assert precision_of(tmp_path / "model.onnx") == open_session(tmp_path / "model.onnx", "cpu").precision == FP32
    write_note(tmp_path, precision=TF32)
    write_note(tmp_path, attention="fused")
    assert open_session(tmp_path / "model.onnx", "cpu").precision == TF32


def test_a_small_graph_stays_on_the_cpu(tmp_path: Path) -> None:
    save_popularity(tmp_path / "model.onnx", 5, 0.5)
    engine = open_session(tmp_path / "model.onnx", small=True)
    assert str(engine) == "CPU (a small graph)"


def test_buffers_are_used_again_whatever_the_shape(tmp_path: Path) -> None:
    save_popularity(tmp_path / "model.onnx", 50, 0.5)
    session = open_session(tmp_path / "model.onnx", "cpu", threads=1).session
    buffers, rng = DeviceBuffers("cpu"), np.random.default_rng(0)
    for _ in range(3):  # sweeps
        for rows in (90, 3, 40, 1, 81):
            values = rng.integers(0, 9, (rows, 50)).astype(np.float32)
            binding = session.io_binding()
            buffers.bind(binding, "popularity", values)
            binding.bind_output("log_probs", "cpu")
            session.run_with_iobinding(binding)
            expected = session.run(None, {"popularity": values})[0]
            np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], expected)
    assert buffers.allocations == 1  # the first batch was the largest
    shared = np.ones((2, 50), np.float32)
    shared.setflags(write=False)
    for values in (shared, shared, 2 * shared, shared):
        binding = session.io_binding()
        buffers.bind(binding, "popularity", values)
        binding.bind_output("log_probs", "cpu")
        session.run_with_iobinding(binding)
        np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], session.run(None, {"popularity": values})[0])
