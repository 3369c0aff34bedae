"""Where fits compute: one setting for every predictor and the two towers, free of torch.

The setting is the option ``--device``, else the project's ``device``, else ``auto``. A command says it once
(`computing_on`); whoever fits asks (`device_name`). It changes no result beyond rounding, so it is no part of a run's
key: what is fitted on one device is current on another, and a checkpoint goes on anywhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from advprior.store.errors import AdvpriorError
from advprior.store.project_files import PROJECT_FILE, project_folder, read_yaml

AUTO, CPU, CUDA = "auto", "cpu", "cuda"
PATTERN = r"^(auto|cpu|cuda(:[0-9]+)?)$"
FORM = "auto, cpu, cuda, or one of several cards: cuda:1"
_wanted: ContextVar[str] = ContextVar("device", default=AUTO)


def device_setting(option: str | None, *places: Path | None) -> str:
    """What a command computes on: its option, else what the project says that it works in, else ``auto``.

    Parameters
    ----------
    option : str, optional
    places : Path or None
        Paths that the command was given.

    Raises
    ------
    AdvpriorError
        ``CFG001`` when the project file cannot be read, ``PRI031`` for what is no device.
    """
    if option is not None:
        return checked(option, "--device")
    project = project_folder(*places)
    raw = None if project is None else read_yaml(project / PROJECT_FILE, "the project file").get("device")
    return AUTO if project is None or raw is None else checked(str(raw), f"{project / PROJECT_FILE}: device")


def checked(device: str, where: str) -> str:
    """The same, if it names a device.

    Raises
    ------
    AdvpriorError
        ``PRI031``.
    """
    if re.match(PATTERN, device):
        return device
    raise AdvpriorError("PRI031", "no such device", where=where, actual=device, expected=FORM)


@contextmanager
def computing_on(device: str) -> Iterator[None]:
    """Let everything that is fitted inside compute on ``device``.

    >>> with computing_on("cpu"):
    ...     device_name(cards=1)
    'cpu'
    >>> device_name(cards=1), device_name(cards=0)
    ('cuda:0', 'cpu')

    Raises
    ------
    AdvpriorError
        ``PRI031`` for what is no device.
    """
    token = _wanted.set(checked(device, "device"))
    try:
        yield
    finally:
        _wanted.reset(token)


def device_name(cards: int) -> str:
    """The device to fit on: ``cpu``, or ``cuda:`` and the number of a card. Of several processes each has its own card.

    Parameters
    ----------
    cards : int
        Cards that torch can use.

    Raises
    ------
    AdvpriorError
        ``PRI031`` where CUDA is asked for and torch has none, or not so many.
    """
    device = _wanted.get()
    if device == CPU or (device == AUTO and not cards):
        return CPU
    _, _, number = device.partition(":")
    index = int(number) if number else local_process()
    if index < cards and not (number and processes() > 1):
        return f"{CUDA}:{index}"
    several = f"; process {process()} of {processes()}" if processes() > 1 else ""
    raise AdvpriorError(
        "PRI031",
        "this device cannot be had",
        where=f"device: {device}",
        actual=f"torch can use {cards} CUDA cards{several}",
        expected="a card for each process, and device: cuda where there are several" if several else "that card",
        fix="a CUDA build of torch and its driver (`nvidia-smi`), or device: cpu",
    )


def process() -> int:
    """Number of this process among those of `accelerate launch`; 0 is the one that writes."""
    return int(os.environ.get("RANK", "0")) if processes() > 1 else 0


def local_process() -> int:
    """Number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) if processes() > 1 else 0


def processes() -> int:
    """Processes that fit together: 1, or what `accelerate launch` started."""
    return max(int(os.environ.get("WORLD_SIZE", "1")), 1)
