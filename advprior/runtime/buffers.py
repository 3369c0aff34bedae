"""Inputs on the device in buffers that are used again: no allocation for each batch, whatever its shape.

A buffer holds as many bytes as the largest input of its name so far, rounded up; a batch is written to its beginning
and bound with its own shape.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_LEAST = 1 << 12  # numbers in the smallest buffer


def capacity(count: int) -> int:
    """Numbers that a buffer for ``count`` of them holds: steps of a quarter, so that few sizes come up.

    >>> capacity(1), capacity(5_000), capacity(5_121), capacity(8_192)
    (4096, 5120, 6144, 8192)
    """
    power = 1 << max(count - 1, _LEAST - 1).bit_length()  # the power of two at or above
    half = power // 2
    for quarter in range(1, 4):
        if count <= half + quarter * half // 4 and half >= _LEAST:
            return half + quarter * half // 4
    return power


class DeviceBuffers:
    """Inputs of one thread's runs on one device.

    Parameters
    ----------
    device : {"cpu", "cuda"}
        The CPU's memory serves tests of the same path.
    device_id : int
    """

    def __init__(self, device: str, device_id: int = 0) -> None:
        self._device, self._device_id = device, device_id
        self._held: dict[str, tuple[npt.NDArray[Any], Any]] = {}
        self._last: dict[str, npt.NDArray[Any] | None] = {}
        self.allocations = 0

    def bind(self, binding: Any, name: str, value: npt.NDArray[Any]) -> None:
        """Copy ``value`` to the device and bind it as the input ``name``; a read-only array is copied once."""
        staging, held = self._room(name, value.dtype, value.size)
        if self._last.get(name) is not value:
            # one flat copy of the whole buffer: what lies behind the value is never read
            staging[: value.size] = value.ravel()
            held.update_inplace(staging)
            self._last[name] = None if value.flags.writeable else value
        binding.bind_input(name, self._device, self._device_id, value.dtype, value.shape, held.data_ptr())

    def _room(self, name: str, dtype: np.dtype[Any], count: int) -> tuple[npt.NDArray[Any], Any]:
        import onnxruntime as ort

        room = self._held.get(name)
        if room is None or room[0].dtype != dtype or len(room[0]) < count:
            staging = np.zeros(capacity(count), dtype)
            self._held[name] = (staging, ort.OrtValue.ortvalue_from_numpy(staging, self._device, self._device_id))
            self._last[name] = None
            self.allocations += 1
        return self._held[name]
