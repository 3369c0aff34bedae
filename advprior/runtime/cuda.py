"""What stands between ONNX Runtime and a GPU: the libraries, the driver, the devices, and their memory.

A build for CUDA lists CUDA as available on every machine, and says only in its log which library it could not load.
Here the same libraries are loaded the same way first, so that an error can name the one that is missing and the
package that brings it. Nothing needs torch: the driver's own library answers for devices and memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import re
import struct
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from advprior.store.errors import AdvpriorError

#: Package that brings a library, by how its name begins.
PACKAGES = {
    "libcublas": "nvidia-cublas",
    "libcudart": "nvidia-cuda-runtime",
    "libcudnn": "nvidia-cudnn-cu13",
    "libcufft": "nvidia-cufft",
    "libcurand": "nvidia-curand",
    "libnvrtc": "nvidia-cuda-nvrtc",
    "libnvJitLink": "nvidia-nvjitlink",
}
_DRIVER = "libcuda.so.1"
_PROVIDER = "libonnxruntime_providers_cuda.so"
_DYNAMIC, _NEEDED = 6, 1  # of the ELF format: type of the section, tag of a library's name
log = logging.getLogger(__name__)


def device_ids(device: str) -> list[int]:
    """GPUs that ``cuda``, ``cuda:1`` or ``cuda:0,1`` names; none for ``auto`` and ``cpu``.

    Raises
    ------
    AdvpriorError
        ``PRI031`` for anything else.

    Examples
    --------
    >>> device_ids("cpu"), device_ids("cuda"), device_ids("cuda:0,2")
    ([], [0], [0, 2])
    """
    if device in ("auto", "cpu"):
        return []
    match = re.fullmatch(r"cuda(?::(\d+(?:,\d+)*))?", device)
    ids = [int(number) for number in (match[1] or "0").split(",")] if match else []
    if not ids or len(set(ids)) < len(ids):
        raise AdvpriorError(
            "PRI031", "no such device", actual=device, expected="auto, cpu, cuda, cuda:1 or, for several, cuda:0,1"
        )
    return ids


def single_devices(device: str) -> list[str]:
    """One name for each GPU that ``device`` names, or its own.

    >>> single_devices("cuda:0,1"), single_devices("auto")
    (['cuda:0', 'cuda:1'], ['auto'])
    """
    ids = device_ids(device)
    return [f"cuda:{number}" for number in ids] if len(ids) > 1 else [device]


def missing_library(message: str) -> str | None:
    """The library that a loader's message names, and what brings it; None where it names none.

    Examples
    --------
    >>> missing_library("libcublasLt.so.13: cannot open shared object file: No such file or directory")
    'libcublasLt.so.13 is missing (of the package nvidia-cublas, in the extra [gpu])'
    >>> missing_library("libcuda.so.1: cannot open shared object file: No such file or directory")
    'libcuda.so.1 is missing: no NVIDIA driver is installed'
    """
    match = re.search(r"(lib[\w+.-]+?\.so[.\d]*)", message)
    if match is None:
        return None
    library = match[1]
    if library == _DRIVER:
        return f"{library} is missing: no NVIDIA driver is installed"
    package = next((package for start, package in PACKAGES.items() if library.startswith(start)), None)
    source = f"of the package {package}, in the extra [gpu]" if package else "of the system"
    return f"{library} is missing ({source})"


def loading_problem(libraries: Iterable[str | Path]) -> str | None:
    """What the loader says of these libraries, in words, of each that does not load; None where all do."""
    problems = []
    for library in libraries:
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            problems.append(missing_library(str(error)) or str(error).splitlines()[0][:200])
    return "; ".join(dict.fromkeys(problems)) or None


def needed_libraries(path: Path) -> list[str]:
    """Names of the libraries that a library of Linux needs: ``DT_NEEDED`` of its ELF header, 64 bits, little-endian.

    ONNX Runtime's own is read, not loaded: it takes its memory from a host that only ONNX Runtime sets up.
    """
    with path.open("rb") as file:
        header = file.read(64)
        if header[:6] != b"\x7fELF\x02\x01":
            return []
        table, (size, count) = struct.unpack_from("<Q", header, 0x28)[0], struct.unpack_from("<HH", header, 0x3A)
        file.seek(table)
        raw = file.read(size * count)
        # type, then offset and size in the file, then which section holds its strings
        sections = [struct.unpack_from("<4xI16xQQI", raw, place) for place in range(0, size * count, size)]
        names: list[str] = []
        for kind, start, length, link in sections:
            if kind != _DYNAMIC:
                continue
            file.seek(start)
            entries = struct.iter_unpack("<qQ", file.read(length))
            _, strings, strings_length, _ = sections[link]
            file.seek(strings)
            text = file.read(strings_length)
            names += [text[value : text.index(b"\0", value)].decode() for tag, value in entries if tag == _NEEDED]
    return names


@cache
def preload() -> None:
    """Load CUDA's and cuDNN's libraries from NVIDIA's wheels: torch's and ONNX Runtime's are the same ones."""
    import onnxruntime as ort

    if hasattr(ort, "preload_dlls"):
        # it prints what it misses; `problem` says it once, and says who brings it
        with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(Exception):
            ort.preload_dlls()
        if text.getvalue():
            log.debug("CUDA libraries were not preloaded: %s", text.getvalue().splitlines()[0])


@cache
def problem(device_id: int = 0) -> str | None:
    """Why a session cannot have this GPU, as far as can be told before it is opened; None where nothing is amiss."""
    import onnxruntime as ort

    preload()
    provider = Path(ort.__file__).parent / "capi" / _PROVIDER
    if provider.is_file():  # not on Windows
        reason = loading_problem(needed_libraries(provider))
        if reason is not None:
            return reason
    driver = _driver()
    if driver is None:
        return loading_problem([_DRIVER]) or "the driver finds no GPU that it can start"
    count = _device_count(driver)
    if device_id >= count:
        return f"there is no GPU {device_id}: the driver has {count}"
    return None


@contextlib.contextmanager
def quiet_log() -> Iterator[None]:
    """Without ONNX Runtime's own log of a provider that it could not make: the session's answer says it."""
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    try:
        yield
    finally:
        ort.set_default_logger_severity(2)


def device_name(device_id: int = 0) -> str | None:
    """What the driver calls a GPU, None where it has none."""
    driver = _driver()
    if driver is None or _device_count(driver) <= device_id:
        return None
    name = ctypes.create_string_buffer(256)
    handle = ctypes.c_int()
    if driver.cuDeviceGet(ctypes.byref(handle), device_id) or driver.cuDeviceGetName(name, 256, handle):
        return None
    return name.value.decode(errors="replace")


def free_memory(device_id: int = 0) -> tuple[int, int] | None:
    """Free and total bytes of a GPU, by its driver; None where there is none."""
    driver = _driver()
    if driver is None or _device_count(driver) <= device_id:
        return None
    handle, context = ctypes.c_int(), ctypes.c_void_p()
    if driver.cuDeviceGet(ctypes.byref(handle), device_id):
        return None
    # the context that every library of this process shares, ONNX Runtime's session among them
    if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle):
        return None
    free, total, before = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_void_p()
    try:
        if driver.cuCtxPushCurrent_v2(context):
            return None
        failed = driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        driver.cuCtxPopCurrent_v2(ctypes.byref(before))
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(handle)
    return None if failed else (int(free.value), int(total.value))


@cache
def _driver() -> Any | None:
    """The driver's library, started; None where there is none."""
    try:
        library = ctypes.CDLL(_DRIVER)
    except OSError:
        return None
    return None if library.cuInit(0) else library


def _device_count(driver: Any) -> int:
    count = ctypes.c_int()
    return 0 if driver.cuDeviceGetCount(ctypes.byref(count)) else int(count.value)
