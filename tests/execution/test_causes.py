"""From exceptions to what they mean."""

from __future__ import annotations

import pickle

import pytest
import torch
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError
from ray.train.v2.api.preemption import PreemptionInfo

from orchestrator.errors import DataError
from orchestrator.execution.causes import explain, of_group, of_worker

GLOO = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:8976")
DIED = "The actor died unexpectedly before finishing this task.\n\tclass_name: RayTrainWorker\n\tactor_id: 0badcafe\n{}"
KILLED = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: killed"
)
NODE = (
    "The actor died because its node has died. Node Id: 4f2e. the actor's node was terminated unexpectedly: no answer"
)


def dead(text: str, *, preempted: bool = False) -> Exception:
    error = RayActorError("0badcafe", DIED.format(text), preempted=preempted)
    return WorkerHealthCheckFailedError("A worker health check failed.", failure=error)


def without_group() -> Exception:
    """What torch raises where the process group was taken down."""
    with pytest.raises(ValueError, match="group") as raised:
        torch.distributed.all_reduce(torch.zeros(1))
    return raised.value


@pytest.mark.parametrize(
    ("error", "world_size", "means"),
    [
        (DataError("no images"), 2, "user error"),
        (ValueError("an option"), 1, "user error"),
        (RuntimeError("size mismatch"), 2, "user error"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 2, "out of memory"),
        (MemoryError(), 1, "out of memory"),
        (OSError(28, "No space left on device"), 1, "store"),
        (TimeoutError("the endpoint"), 2, "store"),
        (ConnectionRefusedError(111, "refused"), 2, "store"),
        (FileNotFoundError(2, "no such file"), 1, "user error"),
        (PermissionError(13, "denied"), 1, "user error"),
        (GLOO, 2, "cut off"),
        (GLOO, 1, "user error"),
        (without_group(), 2, "cut off"),
        (without_group(), 1, "user error"),
        (torch.distributed.DistNetworkError("The client socket has timed out"), 2, "cut off"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), 1, "crash"),
    ],
)
def test_what_a_worker_sees(error: Exception, world_size: int, means: str) -> None:
    assert of_worker(error, world_size) == means


@pytest.mark.parametrize(
    ("ranks", "kind", "guilty"),
    [
        ({0: dead(KILLED)}, "crash", {0}),
        ({0: GLOO, 1: dead(KILLED)}, "crash", {1}),
        ({0: dead(NODE), 1: GLOO}, "node lost", {0}),
        ({0: dead(NODE, preempted=True), 1: dead(KILLED)}, "preempted", {0}),
        ({0: dead(KILLED), 1: dead(NODE)}, "node lost", {1}),
        ({0: WorkerHealthCheckFailedError("A worker", failure=OutOfMemoryError("killed"))}, "out of memory", {0}),
        ({0: ActorUnavailableError("no route", None)}, "crash", {0}),
        ({0: GLOO}, "crash", None),
        ({0: ValueError("an option"), 1: GLOO}, "user error", None),
        ({0: OSError(5, "Input/output error")}, "user error", None),
    ],
)
def test_what_a_group_tells(ranks: dict, kind: str, guilty: set | None) -> None:
    error = pickle.loads(pickle.dumps(WorkerGroupError("[Rank 0 Error Snippet]:\nlong", ranks)))
    failure, found = of_group(error)
    assert (failure.kind, found) == (kind, None if guilty is None else frozenset(guilty))
    assert failure.reason
    assert "class_name" not in failure.reason


def test_notice_and_no_place() -> None:
    failure, ranks = of_group(PreemptionError(PreemptionInfo(None, {"n1": [0]})))
    assert (failure.kind, failure.nodes, ranks) == ("preempted", {"n1"}, None)
    failure, ranks = of_group(ControllerError(RuntimeError("no room\nfor 60 s")))
    assert (failure.kind, failure.reason, ranks) == ("crash", "for 60 s", None)


def test_people_read_no_traceback_of_their_own_mistakes() -> None:
    assert explain(DataError("no images")) == "no images"
    assert "training.micro_batch" in explain(torch.OutOfMemoryError("CUDA out of memory."))
    lacking = RuntimeError(
        "backend='inductor' raised:\nInvalidCxxCompiler: No working C++ compiler found\n\nSet TORCH…"
    )
    assert "(InvalidCxxCompiler: No working C++ compiler found). For a CPU it needs `g++`" in explain(lacking)
    with pytest.raises(RuntimeError) as caught:
        raise RuntimeError("nobody foresaw this")
    assert "Traceback" in explain(caught.value)
