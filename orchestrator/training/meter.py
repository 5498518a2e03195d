"""Loss terms over time, and the alarm when one is no longer a number."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from orchestrator.errors import SlimvitError


class LossMeter:
    """Collects loss terms on the device and reads them seldom: each reading waits for a GPU.

    Args:
        label: name of the stage, for the error message.
        eager: read after every step (a CPU has nothing to wait for).
    """

    def __init__(self, label: str, eager: bool) -> None:
        self.label, self.eager = label, eager
        self.names: tuple[str, ...] = ()
        self.pending: list[tuple[int, Tensor]] = []
        self.sums: dict[str, float] = {}
        """Sums over the epoch so far, and `count`, the micro-batches."""
        self.latest = math.nan
        """Loss of the last micro-batch that was read."""

    def add(self, step: int, loss: Tensor, terms: dict[str, Tensor]) -> None:
        """Note the loss and the terms of a micro-batch."""
        self.names = ("loss", *terms)
        self.pending.append((step, torch.stack([loss.detach().float(), *(t.float() for t in terms.values())])))
        if self.eager:
            self.read()

    def read(self) -> None:
        """Take in what was noted.

        Raises:
            SlimvitError: if a term is not finite; names stage, step and terms.
        """
        if not self.pending:
            return
        table = torch.stack([values for _, values in self.pending]).tolist()
        for (step, _), values in zip(self.pending, table, strict=True):
            bad = [f"{n} = {v}" for n, v in zip(self.names, values, strict=True) if not math.isfinite(v)]
            if bad:
                raise SlimvitError(
                    f"stage `{self.label}`: the loss is not finite at step {step}: {', '.join(bad)}. "
                    "The last checkpoint before it is kept. "
                    "Lower `optimizer.lr`, lengthen the warm-up, set `clip_grad`, or use `fp32`."
                )
            for name, value in zip(self.names, values, strict=True):
                self.sums[name] = self.sums.get(name, 0.0) + value
            self.sums["count"] = self.sums.get("count", 0.0) + 1
        self.latest = table[-1][0]
        self.pending.clear()

    @staticmethod
    def means(sums: dict[str, float]) -> dict[str, float]:
        """Means from sums (of this worker, or of all)."""
        return {name: total / sums["count"] for name, total in sums.items() if name != "count"}
