"""The few questions that are put to NVIDIA's management library (NVML), through its C interface.

Source: NVML API Reference Guide, "Device Queries" and "Clocks Event Reasons". The library comes with the driver.
"""

from __future__ import annotations

import ctypes
import os
from typing import Protocol

import torch

LIBRARY = "libnvidia-ml.so.1"
SUCCESS = 0
MAX_PROCESSES = 256

THROTTLE_REASONS = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""Bits that say that something is wrong. Running into the power limit (0x04) is not among them: under full load that is
how these devices always run."""


class NvmlUnavailable(RuntimeError):
    """The library is not there, or does not answer; says why."""


class Gpu(Protocol):
    """What is asked of a GPU. All methods raise `NvmlUnavailable` where there is no answer."""

    def joules(self) -> float:
        """Energy since the driver was loaded."""

    def other_processes(self) -> int:
        """Processes that compute on it, without this one."""

    def throttling(self) -> set[str]:
        """Why it runs slower than it could, now."""


class _Process(ctypes.Structure):
    """nvmlProcessInfo_t."""

    _fields_ = [
        ("pid", ctypes.c_uint),
        ("used_bytes", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    ]


class NvmlGpu:
    """A GPU behind the library.

    Args:
        uuid: `GPU-…`, which unlike the index does not depend on `CUDA_VISIBLE_DEVICES`.

    Raises:
        NvmlUnavailable: if there is no library, or no such device.
    """

    def __init__(self, uuid: str, library: str = LIBRARY) -> None:
        try:
            self.library = ctypes.CDLL(library)
        except OSError as error:
            raise NvmlUnavailable(f"there is no NVML library: {error}") from error
        self.device = ctypes.c_void_p()
        self._call("nvmlInit_v2")
        self._call("nvmlDeviceGetHandleByUUID", ctypes.c_char_p(uuid.encode()), ctypes.byref(self.device))

    def joules(self) -> float:
        """The counter of the board's energy; it counts in millijoules."""
        millijoules = ctypes.c_ulonglong()
        self._call("nvmlDeviceGetTotalEnergyConsumption", self.device, ctypes.byref(millijoules))
        return millijoules.value / 1000

    def other_processes(self) -> int:
        """In a container the library may know this process by another number: then one of the processes is this one."""
        count, processes = ctypes.c_uint(MAX_PROCESSES), (_Process * MAX_PROCESSES)()
        self._call("nvmlDeviceGetComputeRunningProcesses_v3", self.device, ctypes.byref(count), processes)
        found = {processes[i].pid for i in range(count.value)}
        return max(len(found) - 1, 0) if os.getpid() not in found else len(found - {os.getpid()})

    def throttling(self) -> set[str]:
        """The reasons of `THROTTLE_REASONS` that hold now."""
        reasons = ctypes.c_ulonglong()
        self._call("nvmlDeviceGetCurrentClocksThrottleReasons", self.device, ctypes.byref(reasons))
        return {text for bit, text in THROTTLE_REASONS.items() if reasons.value & bit}

    def _call(self, name: str, *arguments: object) -> None:
        function = getattr(self.library, name, None)
        if function is None:
            raise NvmlUnavailable(f"this NVML library has no {name}")
        code = function(*arguments)
        if code != SUCCESS:
            raise NvmlUnavailable(f"{name} answers: {self._text(code)}")

    def _text(self, code: int) -> str:
        describe = self.library.nvmlErrorString
        describe.restype = ctypes.c_char_p
        text: bytes = describe(code)
        return text.decode()


def gpu_of(device: torch.device) -> Gpu:
    """The GPU that torch calls by this name.

    Raises:
        NvmlUnavailable: if NVML does not know it.
    """
    return NvmlGpu(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
