"""What the workers of a group say to each other, besides gradients. With one worker, nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from orchestrator.training.interface import WorkerContext


class WorkerGroup:
    """The workers of a stage; the process group is up when there are several."""

    def __init__(self, context: WorkerContext) -> None:
        self.rank, self.world_size = context.rank, context.world_size
        self.device = torch.device(context.device)

    @property
    def is_first(self) -> bool:
        """Whether this worker reports and writes."""
        return self.rank == 0

    def parallel(self, module: nn.Module) -> nn.Module:
        """Average gradients over the workers after each backward pass."""
        if self.world_size == 1:
            return module
        ids = [self.device.index or 0] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True)

    def no_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Keep gradients local for now: another micro-batch follows."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over all workers, in float64 (exact for counts)."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, values: Sequence[float]) -> list[float]:
        """Element-wise maximum over all workers."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def sum_by_name(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sum over all workers of every name that any of them has, sorted by name."""
        total: dict[str, float] = {}
        for part in self.gather(dict(values)):
            for name, value in part.items():
                total[name] = total.get(name, 0.0) + value
        return dict(sorted(total.items()))

    def sum_tensor(self, values: Tensor) -> Tensor:
        """Element-wise sum over all workers, in the values' own number format; `values` is on the worker's device."""
        if self.world_size > 1:
            values = values.clone()
            dist.all_reduce(values, op=dist.ReduceOp.SUM)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Every worker's value, in the order of their ranks; any that can be pickled."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def from_first(self, value: int) -> int:
        """Worker 0's value."""
        return int(self.max([value if self.is_first else float("-inf")])[0])

    def share_buffers(self, module: nn.Module) -> None:
        """Give every worker worker 0's buffers (running statistics of batch norms), which are what is saved."""
        if self.world_size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def wait(self) -> None:
        """Go on when all workers are here."""
        self.sum([0.0])

    def _reduce(self, values: Sequence[float], operation: Any) -> list[float]:
        if self.world_size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=operation)
        result: list[float] = tensor.tolist()
        return result
