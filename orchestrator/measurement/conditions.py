"""What numbers were taken under, for the `conditions` of metric rows, and the state of torch that they need."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from pydantic import JsonValue
from timm.layers import use_fused_attn

from orchestrator.measurement.malloc import keep_freed_memory
from orchestrator.measurement.memory import Precision


@dataclass(frozen=True)
class Settings:
    """How a network and its baseline are timed."""

    device: torch.device
    precision: Precision = "fp32"
    compile: bool = False
    threads: int = 1
    """Compute threads on CPU."""
    batch_sizes: tuple[int, ...] = (1, 64)
    seconds: float = 2.0
    """For each timed quantity, network and baseline together."""
    max_drift: float = 5.0
    """Drift of the baseline that is accepted, in percent of its speed."""
    attempts: int = 2
    """How often something is timed at most while the device is not quiet."""


@contextmanager
def in_force(settings: Settings) -> Iterator[dict[str, JsonValue]]:
    """Put this process into the state in which numbers are taken, and say which that is.

    What training may have left behind (slow deterministic kernels, another number of threads) is set aside and put
    back. The C allocator keeps its setting: it has no way back, and training gains from it too.
    """
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    tuning = torch.backends.cudnn.benchmark
    try:
        torch.set_num_threads(settings.threads)
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = False
        yield {
            "device": device_name(settings.device),
            "precision": settings.precision,
            "compile": settings.compile,
            "threads": torch.get_num_threads(),
            "attention": "fused (torch)" if use_fused_attn() else "unfused",
            "float32_products": torch.get_float32_matmul_precision(),
            "malloc": keep_freed_memory() if settings.device.type == "cpu" else None,
            "torch": torch.__version__,
            "timm": timm.__version__,
        }
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = tuning


def device_name(device: torch.device) -> str:
    """Kind and model of a device: `cuda: NVIDIA H100 80GB HBM3`, `cpu: AMD EPYC 7B13`."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"cpu: {_processor()}"


def _processor() -> str:
    """Model of the processor; where the system does not say, its architecture."""
    table = Path("/proc/cpuinfo")
    if table.exists():
        for line in table.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
