"""The device of a fit, through accelerate: placing, bf16 by autocast, and several processes that share the batches.

Same seeds give the same fit on every device, up to rounding: networks are made on the CPU and then moved, and whatever
is random is drawn from the CPU's generators (`Dropout`). What is kept of a fit, checkpoints included, lies on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from advprior.store.device import device_name, processes
from advprior.store.errors import AdvpriorError

Precision = Literal["auto", "no", "bf16"]
#: Of what a CPU takes at once in tokens: a card's kernels are short, and its memory is not a cache.
CARD_BATCH = 16
_FREE_SHARE = 0.4  # of a card's free memory that cached states may take
_Module = TypeVar("_Module", bound=nn.Module)


def fit_device() -> torch.device:
    """The device that the command says, as torch has it.

    Raises
    ------
    AdvpriorError
        ``PRI031`` where it cannot be had.
    """
    return torch.device(device_name(torch.cuda.device_count() if torch.cuda.is_available() else 0))


@dataclass(frozen=True)
class Compute:
    """Where and how precisely a fit computes.

    Attributes
    ----------
    device : torch.device
    precision : {"no", "bf16"}
        Of forwards that are learnt from; parameters, sums and heads stay float32.
    accelerator : accelerate.Accelerator, optional
        None: plain torch, in one process.
    """

    device: torch.device
    precision: str = "no"
    accelerator: Any = None

    @classmethod
    def of(cls, precision: Precision = "no") -> Compute:
        """What the command says; ``auto`` is bf16 on a card that has it, and float32 on a CPU.

        Raises
        ------
        AdvpriorError
            ``PRI031`` where the device cannot be had.
        """
        device = fit_device()
        if device.type == "cuda":
            torch.cuda.set_device(device)  # for kernels that go by the current one
        if precision == "auto":
            precision = "bf16" if device.type == "cuda" and _has_bf16(device) else "no"
        return cls(device, precision, _accelerator(device, precision))

    def __deepcopy__(self, memo: dict[int, Any]) -> Compute:
        """Itself: a copy of a network computes where that does."""
        return self

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.accelerator is None or bool(self.accelerator.is_main_process)

    @property
    def processes(self) -> int:
        """Processes that share the batches."""
        return 1 if self.accelerator is None else int(self.accelerator.num_processes)

    @property
    def process(self) -> int:
        """Number of this one."""
        return 0 if self.accelerator is None else int(self.accelerator.process_index)

    def autocast(self) -> AbstractContextManager[Any]:
        """Forwards inside are computed at ``precision``."""
        if self.accelerator is None or self.precision == "no":
            return nullcontext()
        context: AbstractContextManager[Any] = self.accelerator.autocast()
        return context

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """Sum over all processes."""
        if self.processes == 1:
            return value
        summed: torch.Tensor = self.accelerator.reduce(value, reduction="sum")
        return summed

    def any(self, flag: bool) -> bool:
        """Whether it is true of some process: what depends on a clock must not part them."""
        if self.processes == 1:
            return flag
        return bool(self.total(torch.tensor(float(flag), device=self.device)) > 0)

    def from_main(self, value: Any) -> Any:
        """What the process that writes has."""
        if self.processes == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value], from_process=0)[0]

    def gathered(self, parts: list[Any]) -> list[Any]:
        """The parts of all processes, in turn: the first of each, then the second of each …"""
        if self.processes == 1:
            return parts
        from accelerate.utils import gather_object

        every = gather_object([parts])
        longest = max(map(len, every))
        return [one[i] for i in range(longest) for one in every if i < len(one)]

    def facts(self) -> dict[str, Any]:
        """What a manifest says of it."""
        card = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None
        return {
            "device": str(self.device),
            "card": card,
            "mixed_precision": self.precision,
            "processes": self.processes,
            "torch": str(torch.__version__),
        }


def _has_bf16(device: torch.device) -> bool:
    """Whether a card multiplies in bf16 itself: older ones imitate it, at a loss."""
    return torch.cuda.get_device_capability(device)[0] >= 8  # Ampere


def _accelerator(device: torch.device, precision: str) -> Any:
    """An Accelerator on a device; accelerate keeps one state for a process, which another fit may have set."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    if AcceleratorState._shared_state or PartialState._shared_state:
        AcceleratorState._reset_state(reset_partial_state=processes() == 1)
    state = PartialState(cpu=device.type == "cpu")
    if processes() == 1:
        state.device = device
    return Accelerator(cpu=device.type == "cpu", mixed_precision=precision)


def placed(module: _Module, device: torch.device) -> _Module:
    """A module on a device, its dropout drawn on the CPU wherever it computes; in place."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout and child.p > 0:
                setattr(parent, name, Dropout(child.p).train(child.training))
    return module.to(device)


@contextmanager
def within_memory() -> Iterator[None]:
    """Say a card's want of memory as one error; of a CPU nobody is told before the process ends.

    Raises
    ------
    AdvpriorError
        ``PRI035``.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        first = str(error).strip().splitlines()[0][:160]
        raise AdvpriorError(
            "PRI035",
            "the card's memory is full",
            where="device: cuda",
            actual=first,
            expected="room for the network, its gradients, AdamW's two moments, and a batch's activations",
            fix="lower training.batch_tokens (activations grow with it), or fit one run at a time on the card",
        ) from error


@contextmanager
def lent(module: nn.Module, device: torch.device) -> Iterator[None]:
    """A module on a device for a while; then where it was."""
    home = next((p.device for p in module.parameters()), device)
    module.to(device)
    try:
        yield
    finally:
        module.to(home)


class Dropout(nn.Dropout):
    """Dropout whose mask the CPU's generator draws: on any device what `torch.nn.Dropout` leaves out on a CPU."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As `torch.nn.Dropout`."""
        if not self.training or self.p == 0 or input.device.type == "cpu":
            return super().forward(input)
        return input * drawn_mask(input, self.p).to(input.dtype)


def drawn_mask(like: torch.Tensor, p: float) -> torch.Tensor:
    """1 / (1 − p) where an element stays, else 0, drawn as torch draws for a tensor of that form on a CPU."""
    stay = torch.empty_like(like, device="cpu", dtype=torch.float32).bernoulli_(1 - p)
    return to_device(stay.bool(), like.device) / (1 - p)


def uniform(*size: int, device: torch.device) -> torch.Tensor:
    """Random numbers in [0, 1) that are the same on every device."""
    return to_device(torch.rand(*size), device)


def to_device(value: torch.Tensor | npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """A CPU tensor or an array on a device; the CPU does not wait for the copy."""
    tensor = torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value
    if device.type == "cpu":
        return tensor
    if device.type == "cuda" and tensor.device.type == "cpu" and tensor.numel():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def cache_place(size: int, device: torch.device, host_limit: int) -> torch.device | None:
    """Where ``size`` bytes of states are cached: on the device, on the CPU (pinned where the device is a card), or not.

    Parameters
    ----------
    size : int
    device : torch.device
    host_limit : int
        Bytes that the CPU's memory holds for it.
    """
    if device.type == "cuda" and size <= _FREE_SHARE * torch.cuda.mem_get_info(device)[0]:
        return device
    if device.type not in ("cpu", "cuda"):
        return device
    return torch.device("cpu") if size <= host_limit else None


def tokens_at_once(tokens: int, device: torch.device) -> int:
    """Tokens that a forward without learning takes: so many on a CPU, more on a card."""
    return tokens if device.type == "cpu" else tokens * CARD_BATCH
