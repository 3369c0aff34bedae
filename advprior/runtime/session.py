"""ONNX Runtime sessions and batches for scoring: token ids in, log-probabilities out, no torch.

Knows neither prompts nor advertisers. Says which provider a session really got, since a GPU build
lists CUDA as available on machines that cannot use it.
"""

from __future__ import annotations

import logging
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from advprior.store.arrays import Float, Int
from advprior.store.errors import AdvpriorError

Device = Literal["auto", "cpu", "cuda"]

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")


@dataclass
class Engine:
    """An open session.

    Attributes
    ----------
    session : onnxruntime.InferenceSession
    provider : str
        The provider that the session really uses, such as ``CPUExecutionProvider``.
    reason : str
        Why this one.
    threads : int
        Threads that one run shares.
    lanes : int
        Runs that :meth:`each` has going at once.
    """

    session: Any
    provider: str
    reason: str
    threads: int
    lanes: int = 1

    def __str__(self) -> str:
        return f"{self.provider.removesuffix('ExecutionProvider')} ({self.reason})"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the graph's inputs: the exporter leaves out what the graph does not read."""
        return tuple(value.name for value in self.session.get_inputs())

    @property
    def token_budget(self) -> int:
        """Padded tokens in one batch: on a CPU what the caches hold, and enough for its threads to share.

        Measured: 512 is best on one thread, also where each of two has a batch of its own, 768 on two that share one
        (256 to 2,048 tried).
        """
        return 1024 if self.provider == _CUDA else min(256 * (1 + self.threads), 2048)

    def each(self, batches: Iterable[T], run: Callable[[T], R]) -> Iterator[tuple[T, R]]:
        """``(batch, run(batch))`` in order, :attr:`lanes` at a time; ``run`` makes the inputs and calls this engine.

        One thread for each of several batches keeps cores busier than several threads that share a batch and wait for
        each other after every product: .85 against .72 of the matmul peak on two cores. No more than twice the lanes
        are begun ahead, so that memory stays bounded.
        """
        if self.lanes == 1:
            for batch in batches:
                yield batch, run(batch)
            return
        rest = iter(batches)
        pool = ThreadPoolExecutor(self.lanes, thread_name_prefix="lane")
        try:
            begun: deque[tuple[T, Future[R]]] = deque(
                (batch, pool.submit(run, batch)) for batch in islice(rest, 2 * self.lanes)
            )
            while begun:
                batch, answer = begun.popleft()
                yield batch, answer.result()
                for following in islice(rest, 1):
                    begun.append((following, pool.submit(run, following)))
        finally:
            pool.shutdown(cancel_futures=True)

    def run(self, input_ids: Int, attention_mask: Int, positions: Int, offset: Float) -> Float:
        """Log-probabilities [B, P, N] at ``positions`` [B, P] of right-padded ``input_ids`` [B, T].

        ``offset`` [B, P, N] is added to the logits.
        """
        return self.run_inputs(
            {"input_ids": input_ids, "attention_mask": attention_mask, "positions": positions, "offset": offset}
        )

    def run_inputs(self, inputs: dict[str, Any]) -> Float:
        """The graph's first output, for inputs by name."""
        return next(iter(self.run_all(inputs).values()))

    def run_all(self, inputs: dict[str, Any]) -> dict[str, Float]:
        """Every output of the graph by name, in order, for inputs by name."""
        names = [output.name for output in self.session.get_outputs()]
        values = self._run_bound(inputs, "cuda") if self.provider == _CUDA else self.session.run(None, inputs)
        return dict(zip(names, values, strict=True))

    def _run_bound(self, inputs: dict[str, Any], device: str) -> list[Float]:
        """Run with inputs and outputs bound to the device: one copy each way, and none between nodes."""
        import onnxruntime as ort

        binding = self.session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value), device, 0))
        # shapes depend on the inputs: the session allocates them
        for output in self.session.get_outputs():
            binding.bind_output(output.name, device, 0)
        self.session.run_with_iobinding(binding)
        outputs: list[Float] = binding.copy_outputs_to_cpu()
        return outputs


def open_session(path: Path, device: str = "auto", threads: int | None = None, many: bool = False) -> Engine:
    """Open an exported graph.

    Parameters
    ----------
    path : Path
        A ``.onnx`` file.
    device : {"auto", "cpu", "cuda"}
        ``auto`` takes CUDA where a session really gets it, else the CPU.
    threads : int, optional
        The real cores of this process by default.
    many : bool
        For many batches by :meth:`Engine.each`: on a CPU each thread takes batches of its own.

    Raises
    ------
    AdvpriorError
        ``PRI030`` when the file cannot be opened, ``PRI031`` when ``device="cuda"`` and the session has none,
        ``PRI032`` when ONNX Runtime is not installed.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise AdvpriorError(
            "PRI032",
            "ONNX Runtime is not installed",
            actual=str(error),
            expected="onnxruntime or onnxruntime-gpu",
            fix='pip install "advprior[cpu]"   (or "advprior[gpu]", never both)',
        ) from error
    if device not in ("auto", "cpu", "cuda"):
        raise AdvpriorError("PRI031", "no such device", actual=device, expected="auto, cpu or cuda")
    threads = threads or real_cores()
    listed = _CUDA in ort.get_available_providers()
    providers = [_CUDA, _CPU] if listed and device != "cpu" else [_CPU]
    session = _session(path, 1 if many else threads, providers)
    provider = session.get_providers()[0]
    reason = _reason(provider, device, listed)
    if device == "cuda" and provider != _CUDA:
        raise AdvpriorError(
            "PRI031",
            "CUDA cannot be used",
            actual=reason,
            expected="a session on CUDA",
            fix='pip uninstall -y onnxruntime && pip install "advprior[gpu]", or take --device auto',
        )
    if many:
        return Engine(session, provider, reason, 1, threads if provider == _CPU else 1)
    return Engine(session, provider, reason, threads)


def _session(path: Path, threads: int, providers: list[str]) -> Any:
    """An ONNX Runtime session that leaves the cores alone while it waits."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # threads that spin while they wait take the cores of whoever shares the machine
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # every batch has another shape: a plan of memory per shape would only grow
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    if providers[0] == _CUDA and hasattr(ort, "preload_dlls"):
        try:
            ort.preload_dlls()
        except Exception as error:  # whatever is missing, the session below decides
            log.debug("CUDA libraries were not preloaded: %s", error)
    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # ONNX Runtime's own exceptions share no base class but Exception
        raise AdvpriorError(
            "PRI030",
            "the exported graph cannot be opened",
            where=str(path),
            actual=str(error).splitlines()[0][:200],
            expected="a model.onnx written by `advprior export`",
            fix="advprior export RUN --force",
        ) from error


def _reason(provider: str, device: str, listed: bool) -> str:
    """Why the session has this provider."""
    if provider == _CUDA:
        return "the session has it"
    if device == "cpu":
        return "asked for"
    if listed:
        return "CUDA is listed, but the session did not get it: no GPU, or its libraries are missing"
    return "this build of ONNX Runtime has no CUDA"


def real_cores() -> int:
    """Physical cores that this process may use: no hyper-threads, and no more than a container's share."""
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # not on macOS
        return max((os.cpu_count() or 2) // 2, 1)
    cores: set[tuple[str, str]] = set()
    try:
        for block in Path("/proc/cpuinfo").read_text().strip().split("\n\n"):
            fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in block.splitlines())}
            if int(fields.get("processor", -1)) in allowed and "core id" in fields:
                cores.add((fields.get("physical id", "0"), fields["core id"]))
    except (OSError, ValueError):
        cores = set()
    count = len(cores) or len(allowed)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            count = min(count, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        pass
    return max(count, 1)
