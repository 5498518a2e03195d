"""A lane: one Ray Train worker group that runs stage after stage in warm processes.

Starting a group costs many seconds, almost all of it processes and imports. So a group is started once, and its train
function is a loop that asks the queue for work. A group lives once: when one of its workers dies, it ends with an
error, and driver and queue decide what follows. The stage that it was at goes on from its own last committed progress,
in whichever group takes it next.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.storage import ArtifactStore
from orchestrator.errors import SlimvitError
from orchestrator.execution.causes import explain, of_worker
from orchestrator.execution.notice import listen, told_to_end
from orchestrator.execution.reporter import Reporter
from orchestrator.planning.plan import Stage
from orchestrator.training.interface import Progress, StageInterrupted, StageIO, WorkerContext

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_ASK_AGAIN_S = 0.05
"""Pause before asking again when there is nothing to do, in seconds."""
_GIVE_UP_TOGETHER_S = 10.0
"""How long a worker that failed waits for the others of its group to fail at the same place, in seconds."""
NODE_LABEL = "ray.io/node-id"
"""Ray gives every node this label, with the node's id."""


@dataclass(frozen=True)
class Runners:
    """Dotted names `module:function` of what runs a stage: ``(stage, WorkerContext, StageIO) -> result``."""

    train: str = "orchestrator.training.stage:run_train_stage"
    measure: str = "orchestrator.measurement.stage:run_measure_stage"
    store: str = "orchestrator.training.store_stage:run_store_stage"


@dataclass(frozen=True)
class LaneSpec:
    """Everything a lane needs; sent to its workers."""

    lane: int
    queue: ActorHandle[Any]
    """The `StageQueue` as an actor."""
    store: ArtifactStore
    workers: int
    resources: dict[str, float]
    """Of one worker."""
    deadline_s: float | None
    run_name: str
    """Unique to this start of this lane: Ray Train silently resumes a name it knows."""
    folder: str
    """Path or address, private to the run; Ray Train keeps its own notes there."""
    runners: Runners = Runners()
    avoid: frozenset[str] = frozenset()
    """Ids of nodes on which no worker may be placed."""

    @property
    def threads(self) -> int:
        """Compute threads of a worker on CPU."""
        return max(1, int(self.resources["CPU"]))


def drive(spec: LaneSpec) -> None:
    """Run one lane until the queue has no more work for it. Blocks.

    Raises:
        ray.train.TrainingFailedError: if a worker died, or they could not be placed.
    """
    from ray.train.torch import TorchTrainer

    # `ray.train` exports these under types of the trainer before this one, which lack half of their options.
    from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig

    threads = str(spec.threads)
    run_config: Any = RunConfig(
        name=spec.run_name,
        storage_path=spec.folder,
        # What follows from a death, `failures` decides. A minute without a place ends a lane, too: then the driver
        # looks again where it fits.
        failure_config=FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=0),
        worker_runtime_env={
            "env_vars": {
                "OMP_NUM_THREADS": threads,
                "MKL_NUM_THREADS": threads,
                # Without it cuBLAS may give other bits on other runs.
                "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
            }
        },
        logging_config=LoggingConfig(log_level="ERROR"),
    )
    scaling_config = ScalingConfig(
        num_workers=spec.workers,
        use_gpu="GPU" in spec.resources,
        resources_per_worker=spec.resources,
        label_selector={NODE_LABEL: f"!in({', '.join(sorted(spec.avoid))})"} if spec.avoid else None,
    )
    TorchTrainer(work, train_loop_config={"spec": spec}, scaling_config=scaling_config, run_config=run_config).fit()


def work(config: dict[str, Any]) -> None:
    """The train function of every worker of a lane: ask, run, say how it went, until there is nothing left."""
    import ray
    import ray.train
    import ray.train.torch
    import torch
    from ray.train.collective import broadcast_from_rank_zero

    spec: LaneSpec = config["spec"]
    session = ray.train.get_context()
    context = WorkerContext(
        rank=session.get_world_rank(),
        world_size=session.get_world_size(),
        device=str(ray.train.torch.get_device()),
        threads=spec.threads,
        deadline_s=spec.deadline_s,
    )
    torch.set_num_threads(spec.threads)
    for runner in asdict(spec.runners).values():
        _resolve(runner)  # imported once, before any stage is timed
    gc.freeze()  # so that collecting after each stage does not go through all of torch each time
    group = broadcast_from_rank_zero(uuid.uuid4().hex)
    name = f"{socket.gethostname()}:{os.getpid()} {context.device}"
    here = ray.get_runtime_context()
    actor = here.current_actor
    ray.get(actor.execute.remote(listen))
    ray.get(spec.queue.join.remote(spec.lane, group, context.rank, context.world_size, name, actor, here.get_node_id()))
    turn = 0
    while (assignment := ray.get(spec.queue.ask.remote(spec.lane, group, turn))).kind != "end":
        if assignment.kind == "wait":
            if told_to_end():
                ray.get(spec.queue.leave.remote(spec.lane, group, context.rank))
            time.sleep(_ASK_AGAIN_S)
            continue
        _Turn(spec, context, group, turn).run(assignment.stage)
        turn += 1


@dataclass(frozen=True)
class _Turn:
    """One stage on one worker."""

    spec: LaneSpec
    context: WorkerContext
    group: str
    number: int

    def run(self, stage: Stage) -> None:
        if stage.alone and self.context.rank > 0:
            return  # a measurement has the machine for itself; the other workers wait for the next turn
        try:
            result = self._result(stage)
        except StageInterrupted:
            if self.context.rank == 0:
                self._tell("interrupted", stage.digest)
        except Exception as error:
            self._give_up(error, stage)
        else:
            if self.context.rank == 0:
                self._tell("finish", stage.digest, result)
        finally:
            _free_memory(self.context.device)

    def _result(self, stage: Stage) -> dict[str, Any]:
        context = (
            WorkerContext(device=self.context.device, threads=self.context.threads, deadline_s=self.context.deadline_s)
            if stage.alone
            else self.context
        )
        runner = _resolve(getattr(self.spec.runners, stage.kind))
        # Ray Train makes a private folder of each worker its working directory.
        with tempfile.TemporaryDirectory(prefix="stage-", dir=Path.cwd()) as scratch, self._reporter() as reporter:
            report = reporter.report if self.context.rank == 0 else _ignore
            io = StageIO(self.spec.store, Path(scratch), report=report, should_stop=reporter.should_stop)
            return runner(stage, context, io)

    def _reporter(self) -> Reporter:
        return Reporter(self._beat)

    def _beat(self, progress: Collection[Progress]) -> bool:
        if told_to_end():
            self._tell("leave", self.context.rank)
        wanted: bool = self._tell("beat", progress)
        return wanted

    def _give_up(self, error: Exception, stage: Stage) -> None:
        alone = stage.alone or self.context.world_size == 1
        meaning = of_worker(error, 1 if alone else self.context.world_size)
        if meaning in ("crash", "cut off"):
            raise error  # the group ends, and what happened to it is judged when all of it is known
        expected = isinstance(error, SlimvitError | ValueError | OSError)
        failed = self._tell("fail", self.number, self.context.rank, explain(error), meaning)
        if alone:
            if not expected and _gpu_is_broken(self.context.device):
                raise error  # the process must start anew; in this one every later stage would fail, too
            return
        # The others may hang in a collective that this worker never joins. If all gave up at the same place, the
        # process group is sound; otherwise it is not, and the group must start anew.
        patience = time.monotonic() + _GIVE_UP_TOGETHER_S
        while expected and failed < self.context.world_size and time.monotonic() < patience:
            time.sleep(_ASK_AGAIN_S)
            failed = self._tell("fail", self.number, self.context.rank, "")
        if not expected or failed < self.context.world_size:
            raise error

    def _tell(self, method: str, *arguments: Any) -> Any:
        import ray

        return ray.get(getattr(self.spec.queue, method).remote(self.spec.lane, self.group, *arguments))


def _resolve(name: str) -> Callable[..., dict[str, Any]]:
    module, _, function = name.partition(":")
    resolved: Callable[..., dict[str, Any]] = getattr(importlib.import_module(module), function)
    return resolved


def _free_memory(device: str) -> None:
    gc.collect()
    if device.startswith("cuda"):
        import torch

        with contextlib.suppress(RuntimeError):  # of a broken GPU context, which `_give_up` looks for
            torch.cuda.empty_cache()


def _gpu_is_broken(device: str) -> bool:
    """Whether this process has lost its GPU: after an illegal access every further call fails, whatever it does."""
    if not device.startswith("cuda"):
        return False
    import torch

    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def _ignore(progress: object) -> None:
    """Only the first worker speaks for its group."""
