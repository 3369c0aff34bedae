"""Versions of the packages that decide a result: what a manifest names, and what a run's key knows."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

_ONNX_RUNTIME, _LIGHTGBM = ("onnxruntime", "onnxruntime-gpu"), ("lightgbm",)
_REPORTED = (
    "advprior",
    "feast",
    *_LIGHTGBM,
    "torch",
    "transformers",
    "optimum",
    *_ONNX_RUNTIME,
    "pandas",
    "numpy",
    "duckdb",
    "pyspark",
)
#: Versions read so far: what is installed stays so while a process runs, and reading takes 8 ms a package.
_READ: dict[str, str] = {}
#: Steps whose numbers come from a library that may give others when it is upgraded: its version is part of their key.
_DECIDED_BY = {
    "export": _ONNX_RUNTIME,
    "score": _ONNX_RUNTIME,
    **dict.fromkeys(("rank train", "rank ablate", "rank two-by-two"), _LIGHTGBM),
}


def versions() -> dict[str, str]:
    """Versions of the packages that decide a result, those that are installed."""
    return {"python": platform.python_version(), **_installed(_REPORTED)}


def libraries_of(step: str) -> dict[str, str]:
    """Versions of the libraries that decide the numbers of one step; none for most steps."""
    return _installed(_DECIDED_BY.get(step, ()))


def _installed(names: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    installed = {}
    for name in names:
        if name not in _READ:
            with suppress(PackageNotFoundError):
                _READ[name] = version(name)
        if name in _READ:
            installed[name] = _READ[name]
    return installed
