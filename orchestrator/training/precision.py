"""Number formats: autocast for the forward pass, a gradient scaler where float16 needs it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.errors import ResourceError
from strategies.state import Output


class Precision:
    """How a stage computes: `fp32`, or autocast to `bf16` or `fp16`.

    Raises:
        ResourceError: for `fp16` without a GPU.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        if name == "fp16" and device.type != "cuda":
            raise ResourceError(
                "`training.precision: fp16` needs a GPU; write `bf16` or `fp32`, or give the workers a GPU "
                "(`resources.gpus_per_worker: 1`)"
            )
        self.device = device
        self.dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> AbstractContextManager[Any]:
        """For the forward passes of student and teacher."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, dtype=self.dtype)

    def full(self, out: Output) -> Output:
        """The output in float32: losses lose too much in half precision."""
        if self.dtype is None:
            return out
        converted: Output = _full(out)
        return converted

    def backward(self, loss: Tensor) -> None:
        """Add the (scaled) gradients of a loss."""
        self.scaler.scale(loss).backward()

    def step(self, optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], clip: float | None) -> None:
        """Clip the global gradient norm and update; float16 gradients that overflowed are skipped."""
        if clip is not None:
            self.scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)


def _full(value: Any) -> Any:
    """The same with every floating tensor in float32, however deep it lies."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _full(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(_full(inner) for inner in value)
    if isinstance(value, Output):
        return replace(value, **{f.name: _full(getattr(value, f.name)) for f in fields(value)})
    return value
