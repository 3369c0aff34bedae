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
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from threading import local
from typing import Any, TypeVar

import numpy as np

from advprior.runtime import cuda
from advprior.runtime.batching import Budget
from advprior.runtime.buffers import DeviceBuffers
from advprior.runtime.precision import FP32, TF32, precision_of
from advprior.store.arrays import Float, Int
from advprior.store.errors import AdvpriorError

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
#: Batches on one GPU at a time: while one is computed, the next is copied there and the last one back.
CUDA_LANES = 2
#: Before a budget is tuned: padded tokens, and bytes of one batch's outputs.
CUDA_BUDGET = Budget(16_384, 1 << 30)
CPU_OUTPUT_BYTES = 256 << 20
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
    precision : {"fp32", "tf32", "bf16", "fp16"}
        Of its products.
    device_id : int
        Which GPU, on CUDA.
    stopped : bool
        Set by another thread: :meth:`each` begins no further batch and ends with an error.
    """

    session: Any
    provider: str
    reason: str
    threads: int
    lanes: int = 1
    precision: str = FP32
    device_id: int = 0
    stopped: bool = False
    _of_thread: local = field(default_factory=local, repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.provider.removesuffix('ExecutionProvider')} ({self.reason})"

    @property
    def on_cuda(self) -> bool:
        """Whether it runs on a GPU."""
        return self.provider == _CUDA

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the graph's inputs: the exporter leaves out what the graph does not read."""
        return tuple(value.name for value in self.session.get_inputs())

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs."""
        return tuple(value.name for value in self.session.get_outputs())

    @property
    def budget(self) -> Budget:
        """What one batch may hold before it is tuned: on a CPU what the caches hold, and enough for its threads.

        Measured on CPUs: 512 tokens are best on one thread, also where each of two has a batch of its own, 768 on two
        that share one (256 to 2,048 tried). On a GPU see `advprior.runtime.tuning`.
        """
        return CUDA_BUDGET if self.on_cuda else Budget(min(256 * (1 + self.threads), 2048), CPU_OUTPUT_BYTES)

    @property
    def token_budget(self) -> int:
        """Padded tokens in one batch, of `budget`."""
        return self.budget.tokens

    def each(self, batches: Iterable[T], run: Callable[[T], R]) -> Iterator[tuple[T, R]]:
        """``(batch, run(batch))`` in order, :attr:`lanes` at a time; ``run`` makes the inputs and calls this engine.

        One thread for each of several batches keeps cores busier than several threads that share a batch and wait for
        each other after every product: .85 against .72 of the matmul peak on two cores. No more than twice the lanes
        are begun ahead, so that memory stays bounded.
        """
        if self.lanes == 1:
            for batch in self._until_stopped(batches):
                yield batch, run(batch)
            return
        rest = self._until_stopped(batches)
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

    def _until_stopped(self, batches: Iterable[T]) -> Iterator[T]:
        for batch in batches:
            if self.stopped:
                raise InterruptedError("nobody waits for this")
            yield batch

    def run(self, input_ids: Int, attention_mask: Int, positions: Int, offset: Float) -> Float:
        """Log-probabilities [B, P, N] at ``positions`` [B, P] of right-padded ``input_ids`` [B, T].

        ``offset`` [B, P, N] or [1, 1, N] is added to the logits.
        """
        return self.run_inputs(
            {"input_ids": input_ids, "attention_mask": attention_mask, "positions": positions, "offset": offset}
        )

    def run_inputs(self, inputs: dict[str, Any]) -> Float:
        """The graph's first output, for inputs by name."""
        return next(iter(self.run_all(inputs).values()))

    def run_all(self, inputs: dict[str, Any], outputs: tuple[str, ...] = ()) -> dict[str, Float]:
        """Outputs of the graph by name, in order, for inputs by name.

        Parameters
        ----------
        inputs : dict of arrays
            Those that the graph does not read are left out: a fused graph has no mask.
        outputs : tuple of str, optional
            Those that are computed; what only others need is left out. All by default.
        """
        names = outputs or self.outputs
        inputs = {name: value for name, value in inputs.items() if name in self.inputs}
        options = _only_needed() if outputs else None
        if self.on_cuda:
            values = self._run_bound(inputs, names, "cuda", options)
        else:
            values = self.session.run(list(names), inputs, options)
        return dict(zip(names, values, strict=True))

    def _run_bound(
        self, inputs: dict[str, Any], names: tuple[str, ...], device: str, options: Any | None = None
    ) -> list[Float]:
        """Run with inputs and outputs bound to the device: one copy each way, and none between nodes."""
        buffers = getattr(self._of_thread, "buffers", None)
        if buffers is None:
            buffers = self._of_thread.buffers = DeviceBuffers(device, self.device_id)
        binding = self.session.io_binding()
        for name, value in inputs.items():
            buffers.bind(binding, name, np.asarray(value))
        # shapes depend on the inputs: the session takes them from its arena, where the last batch's lay
        for name in names:
            binding.bind_output(name, device, self.device_id)
        self.session.run_with_iobinding(binding, options)
        outputs: list[Float] = binding.copy_outputs_to_cpu()
        return outputs


def _only_needed() -> Any:
    import onnxruntime as ort

    options = ort.RunOptions()
    options.only_execute_path_to_fetches = True
    return options


@dataclass(frozen=True)
class SessionChoice:
    """Where a graph is opened.

    Parameters
    ----------
    device : str
        ``auto`` takes CUDA where a session really gets it, else the CPU; ``cpu``; ``cuda``, or ``cuda:1`` for another
        GPU than the first.
    threads : int, optional
        The real cores of this process by default.
    many : bool
        For many batches by :meth:`Engine.each`: on a CPU each thread takes batches of its own.
    small : bool
        A graph of a few products, which a GPU cannot make faster: ``auto`` is the CPU.
    precision : str, optional
        What the graph's folder says by default (`advprior.runtime.precision`).
    """

    device: str = "auto"
    threads: int | None = None
    many: bool = False
    small: bool = False
    precision: str | None = None


def open_session(
    path: Path, device: str = "auto", threads: int | None = None, many: bool = False, small: bool = False
) -> Engine:
    """Open an exported graph; see `SessionChoice` for the parameters, and `open_graph` for errors."""
    return open_graph(path, SessionChoice(device, threads, many, small))


def open_graph(path: Path, choice: SessionChoice) -> Engine:
    """Open an exported graph.

    Parameters
    ----------
    path : Path
        A ``.onnx`` file.
    choice : SessionChoice

    Raises
    ------
    AdvpriorError
        ``PRI030`` when the file cannot be opened, ``PRI031`` when CUDA is asked for and the session has none (the
        error says which library is missing), ``PRI032`` when ONNX Runtime is not installed, ``PRI033`` when the
        device has no kernels for the graph's precision.
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
    ids = cuda.device_ids(choice.device)
    if len(ids) > 1:
        raise AdvpriorError("PRI031", "one session has one GPU", actual=choice.device, expected="cuda:0, say")
    device_id = ids[0] if ids else 0
    precision = choice.precision or precision_of(path)
    reason = _no_cuda(choice, device_id, _CUDA in ort.get_available_providers())
    threads = choice.threads or real_cores()
    options = _options(1 if choice.many else threads)
    providers: list[Any] = [_CPU]
    if reason is None:
        providers.insert(0, (_CUDA, cuda_options(device_id, precision)))
    session = _session(path, options, providers, precision)
    provider = session.get_providers()[0]
    if reason is None:
        reason = "the session has it" if provider == _CUDA else "CUDA is listed, but the session did not get it"
    if ids and provider != _CUDA:
        raise AdvpriorError(
            "PRI031",
            "CUDA cannot be used",
            actual=reason,
            expected="a session on CUDA",
            fix='pip uninstall -y onnxruntime && pip install "advprior[gpu]", or take --device auto',
        )
    lanes = 1 if not choice.many else CUDA_LANES if provider == _CUDA else threads
    if choice.many and provider != _CUDA:
        threads = 1
    return Engine(session, provider, reason, threads, lanes, precision, device_id)


def cuda_options(device_id: int, precision: str) -> dict[str, Any]:
    """Settings of the CUDA provider.

    Products of fp32 are fp32's: left to itself, the provider rounds their inputs to 10 bits (TF32) on Ampere and later,
    and a long forward then differs from the cut one by more than rounding. The arena grows by what a batch needs, not
    by doubling: batches come longest first, so that it is as large as it will be after the first ones.
    """
    return {
        "device_id": device_id,
        "use_tf32": int(precision == TF32),
        "arena_extend_strategy": "kSameAsRequested",
    }


def _no_cuda(choice: SessionChoice, device_id: int, listed: bool) -> str | None:
    """Why CUDA is not tried, None where it is."""
    if choice.device == "cpu":
        return "asked for"
    if choice.device == "auto" and choice.small:
        return "a small graph"
    if not listed:
        return "this build of ONNX Runtime has no CUDA"
    return cuda.problem(device_id)


def _options(threads: int) -> Any:
    """Settings of a session that leaves the cores alone while it waits."""
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
    return options


def _session(path: Path, options: Any, providers: list[Any], precision: str) -> Any:
    """An ONNX Runtime session."""
    import onnxruntime as ort

    try:
        with ExitStack() as stack:
            if len(providers) > 1:
                stack.enter_context(cuda.quiet_log())
            return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # ONNX Runtime's own exceptions share no base class but Exception
        first = str(error).splitlines()[0][:200]
        if "NOT_IMPLEMENTED" in first and precision != FP32:
            raise AdvpriorError(
                "PRI033",
                "this device has no kernels for the graph's precision",
                where=str(path),
                actual=f"{precision} on {'CUDA' if len(providers) > 1 else 'the CPU'}: {first}",
                expected="bf16 on CUDA alone; fp32, tf32 and fp16 anywhere",
                fix="--device cuda, or export in another precision: advprior export RUN --precision fp16 …",
            ) from error
        raise AdvpriorError(
            "PRI030",
            "the exported graph cannot be opened",
            where=str(path),
            actual=first,
            expected="a model.onnx written by `advprior export`",
            fix="advprior export RUN --force",
        ) from error


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
