"""What an error of a worker, or of a whole worker group, means: the step from exceptions to `failures.Failure`.

Two sides look at the same things. A worker that is alive sees what its stage raised. When workers are gone, only the
error of Ray Train is left, with one exception a rank; there a death explains the others, because a worker that lost
its peers fails too, and often sooner than Ray notices the death.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from cluster.storage import StoreUnavailable
from orchestrator.compiler import without_compiler
from orchestrator.errors import SlimvitError
from orchestrator.execution.failures import Failure, Kind

OfWorker = Literal["user error", "out of memory", "store", "crash", "cut off"]
"""What one worker saw. `cut off`: it lost the other workers, which says nothing about itself."""

_CUT_OFF = re.compile(
    r"gloo[/\\]|Connection (closed|reset) by peer|Broken pipe|NCCL|ProcessGroup|process group|c10d|TCPStore", re.I
)
_NO_GROUP = "process group has not been initialized"
"""What torch says in a worker that goes on for a moment after Ray Train took its process group down."""
_BROKEN_DEVICE = re.compile(
    r"\bECC\b|unspecified launch failure|NVLink|hardware (error|failure)|GPU is lost|fallen off the bus", re.I
)
"""Errors of a GPU that a program does not cause."""
_NODE_DIED = re.compile(r"\bnode\b[^.]{0,80}\b(died|dead|terminated|removed|failed|lost)", re.I)
_NOISE = re.compile(
    r"^\s*(class_name|actor_id|pid|name|namespace|ip)\s*:|^\[Rank|^Training failed|^A worker health check"
)
_OWN_DOING = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
"""Operating-system errors that come again however often one asks."""
_WEIGHT: tuple[Kind, ...] = ("preempted", "node lost", "out of memory", "crash")
"""What explains the rest of a group, first."""


def of_worker(error: BaseException, world_size: int = 1) -> OfWorker:
    """What an exception of a stage means, seen from the worker that raised it."""
    if isinstance(error, SlimvitError):
        return "user error"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory"
    if isinstance(error, RuntimeError):
        if _BROKEN_DEVICE.search(str(error)):
            return "crash"
        if world_size > 1 and (_CUT_OFF.search(str(error)) or _is_of_collectives(error)):
            return "cut off"
        return "user error"
    if world_size > 1 and isinstance(error, ConnectionError) and _CUT_OFF.search(str(error)):
        return "cut off"
    if world_size > 1 and isinstance(error, ValueError) and _NO_GROUP in str(error):
        return "cut off"
    if isinstance(error, OSError) and not isinstance(error, _OWN_DOING):
        return "store"
    return "user error"


def explain(error: BaseException) -> str:
    """Why a stage failed, for people: our own messages as they are, a full traceback for what nobody foresaw."""
    if isinstance(error, SlimvitError):
        return error.message
    if type(error).__name__ == "OutOfMemoryError":
        return (
            f"the GPU's memory does not suffice ({str(error).splitlines()[0]}). Lower `training.micro_batch` (the "
            "result stays the same, gradients are accumulated) or `training.batch_size`"
        )
    if isinstance(error, StoreUnavailable):
        return str(error)
    if (missing := without_compiler(error)) is not None:
        return missing
    if isinstance(error, ValueError | OSError):
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{error} ({type(error).__name__} in {'/'.join(Path(where.filename).parts[-3:])}:{where.lineno})"
    return "".join(traceback.format_exception(error)).rstrip()


def of_group(error: BaseException) -> tuple[Failure, frozenset[int] | None]:
    """What ended a worker group, and the ranks that ended it (`None` = unknown).

    Args:
        error: what `fit` of a Ray Train trainer raised.
    """
    told = getattr(error, "preemption_info", None)
    if told is not None:
        nodes = frozenset(told.preempted_node_ids)
        return Failure("preempted", "its node was taken away, with notice", nodes), None
    ranks: Mapping[int, BaseException] = getattr(error, "worker_failures", {})
    seen = {rank: _of_rank(one, len(ranks)) for rank, one in ranks.items()}
    for kind in _WEIGHT:
        guilty = frozenset(rank for rank, (found, _) in seen.items() if found == kind)
        if guilty:
            return Failure(kind, seen[min(guilty)][1]), guilty
    for found, reason in seen.values():
        if found == "user error":
            return Failure("user error", reason), None
    if seen:
        return Failure("crash", f"its workers lost each other: {next(iter(seen.values()))[1]}"), None
    if found_no_place(error):
        return Failure("crash", "there was no room for its workers within a minute"), None
    alone, reason = _of_rank(error, 1)
    if alone == "preempted" or alone == "node lost":  # of the group's controller, which is no worker
        return Failure(alone, reason), None
    return Failure("crash", first_line(error, last=True)), None


def found_no_place(error: BaseException) -> bool:
    """Whether a worker group never began because there was no room for it in time."""
    return type(getattr(error, "controller_failure", None)).__name__ == "WorkerGroupStartupTimeoutError"


def first_line(error: BaseException, *, last: bool = False) -> str:
    """One line of an error of Ray: what happened, without identifiers and logs around it."""
    lines = [line.strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line and not _NOISE.match(line)] or [type(error).__name__]
    return lines[-1 if last else 0][:500]


def _of_rank(error: BaseException, num_failed: int) -> tuple[Kind | Literal["cut off"], str]:
    """What became of one rank, and the reason."""
    from ray import exceptions

    error = getattr(error, "health_check_failure", error)
    if isinstance(error, exceptions.OutOfMemoryError):
        return "out of memory", (
            "Ray ended a worker because the memory of its node was nearly full. Lower `data.loader_workers` "
            "or `training.micro_batch`, or run fewer lanes side by side (`resources.lanes`)"
        )
    if isinstance(error, exceptions.RayActorError):
        lines = str(error).splitlines()
        telling = [line.strip() for line in lines if line.strip() and not _NOISE.match(line)]
        reason = (telling[-1] if telling else type(error).__name__)[:500]
        if error.preempted:
            return "preempted", reason
        return ("node lost" if _NODE_DIED.search(reason) else "crash"), reason
    if isinstance(error, exceptions.RayError):
        return "crash", first_line(error)
    found = of_worker(error, world_size=max(2, num_failed))
    if found == "store":  # the worker told the queue; that its group had to end says nothing new
        return "user error", first_line(error)
    return found, first_line(error)


def _is_of_collectives(error: BaseException) -> bool:
    """`torch.distributed.DistError` and what derives from it, without importing torch here."""
    return any(kind.__name__ == "DistError" for kind in type(error).__mro__)
